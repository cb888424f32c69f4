"""
Mean losses in nats per token on fixed windows of a data set, the same ones for every run.
"""

import torch

import hardware


def evaluate(loss_of, data: dict, split: str, windows: int, rank=0, world=1) -> dict:
    """train: {train_loss}, on as many windows as val has.
    val: {val_loss, val_a, val_b}, the whole and its two halves: one to choose learning rates by, one for figures that no
    choice has seen (left out where there is a single window).
    loss_of: x, y (B, T) -> mean loss; data: {split: Loader}; windows: 0 for all. Sums over all processes."""
    if split == 'train':
        n = max(1, (len(data['val'].tokens) - 1) // data['val'].block_size)
        batches = data[split].eval_batches(min(windows, n) if windows else n, rank, world)
        loss, n = total(loss_of, batches, data[split].device)
        return dict(train_loss=loss / n)
    halves = [data[split].eval_batches(windows, rank, world, half) for half in (0, 1)]
    (a, n), (b, m) = (total(loss_of, batches, data[split].device) for batches in halves)
    return dict(val_loss=(a + b) / (n + m), val_a=a / n) | (dict(val_b=b / m) if m else {})


def total(loss_of, batches, device: torch.device) -> tuple[float, float]:
    """(sum of the losses, tokens) of batches (x, y, tokens in them), over all processes."""
    sums = torch.zeros(2, device=device, dtype=torch.float32 if device.type == 'mps' else torch.float64)
    for x, y, n in batches:
        loss = loss_of(x, y)  # of 0 tokens too: other processes may need this one for theirs
        if n:
            sums += torch.stack([loss * n, torch.tensor(float(n), device=device)])
    return tuple(hardware.total(sums).tolist())
