"""
Mean losses in nats per token on fixed windows of a data set, the same ones for every run.
"""

import itertools
import math

import torch

import hardware


def evaluate(loss_of, data: dict, split: str, windows: int, rank=0, world=1, progress=lambda *where: None) -> dict:
    """train: {train_loss}, on as many windows as val has.
    val: {val_loss, val_a, val_b}, the whole and its two halves: one to choose learning rates by, one for figures that no
    choice has seen (left out where there is a single window).
    loss_of: x, y (B, T) -> mean loss; data: {split: Loader}; windows: 0 for all; progress(split, batch, of how many) is
    called before every batch. Sums over all processes."""
    loader, n = data[split], max(1, (len(data['val'].tokens) - 1) // data['val'].block_size)
    n = min(windows, n) if windows else n
    halves = {None: n} if split == 'train' else {0: n - n // 2, 1: n // 2}  # their windows; None: the whole
    batch, of = itertools.count(1), sum(math.ceil(k / loader.batch_size / world) for k in halves.values())

    def told(x, y):
        progress(split, next(batch), of)
        return loss_of(x, y)

    sums = [total(told, loader.eval_batches(n, rank, world, half), loader.device) for half in halves]
    if split == 'train':
        return dict(train_loss=sums[0][0] / sums[0][1])
    (a, n), (b, m) = sums
    return dict(val_loss=(a + b) / (n + m), val_a=a / n) | (dict(val_b=b / m) if m else {})


def total(loss_of, batches, device: torch.device) -> tuple[float, float]:
    """(sum of the losses, tokens) of batches (x, y, tokens in them), over all processes."""
    sums = torch.zeros(2, device=device, dtype=torch.float32 if device.type == 'mps' else torch.float64)
    for x, y, n in batches:
        loss = loss_of(x, y)  # of 0 tokens too: other processes may need this one for theirs
        if n:
            sums += torch.stack([loss * n, torch.tensor(float(n), device=device)])
    return tuple(hardware.total(sums).tolist())
