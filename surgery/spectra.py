"""
Singular values of every matrix, across model sizes and through training. The command is `transfer.py spectra`:

    python transfer.py spectra --checkpoints=out/small/ckpt.pt,out/large/ckpt.pt --out=out/spectra.png

Do models of different size converge to the same singular values? A spectrum is compared as a function of the relative
index i/k, of k values, divided by its root mean square: what is left is its shape. Two shapes a, b are at the distance
sqrt(mean over x in (0, 1) of (a(x) - b(x))^2), the 2-Wasserstein distance of the normalized values; 0 is equal, and a
matrix of independent Gaussian entries of the same shape says what no training gives. Blocks are matched by relative
depth. The table has, per kind of matrix and pair of checkpoints, the mean distance over blocks, the two distances to
the Gaussian, and how the largest and the root mean square singular value compare.
"""

import itertools
import math
from dataclasses import dataclass
from pathlib import Path

import torch

import checkpoint
import files
from configurator import UserError, key, root_path
from surgery import reader

GRID = (torch.arange(256, dtype=torch.float64) + 0.5) / 256  # relative indices at which shapes are compared
OWN = dict(checkpoint=str, kind=str, singular_values=[float])  # lines of --data, for files.ready


@dataclass
class SpectraConfig:
    checkpoints: str = key('', 'checkpoints to compare, separated by commas; equal sizes or not, one run or several')
    out: str = key('out/spectra.png', 'picture to write; empty: only the table')
    data: str = key('', 'file for all singular values, a JSON line per matrix; empty: none')

    def problems(self):
        return [] if self.checkpoints else ['checkpoints: must be given, --checkpoints=PATH,PATH,...']


def matrices(model):
    """(kind, block or None, matrix) of every matrix of a model; q, k and v apart."""
    c = model.config
    yield 'wte', None, model.transformer.wte.weight
    if not c.tie_head:
        yield 'lm_head', None, model.lm_head.to_dense()
    for i, block in enumerate(model.transformer.h):
        for name, W in zip('qkv', block.attn.c_attn.to_dense().split(block.attn.widths)):
            yield f'attn.{name}', i, W
        yield 'attn.c_proj', i, block.attn.c_proj.to_dense()
        for name in ('c_fc', 'c_gate', 'c_proj'):
            if hasattr(block.mlp, name) and c.mlp != 'moe':  # whose experts are no single matrix
                yield f'mlp.{name}', i, getattr(block.mlp, name).to_dense()


def shape_of(s):
    """The spectrum s (k,), descending, on GRID: index rescaled to (0, 1), values to root mean square 1."""
    s = s.double() / s.double().square().mean().sqrt().clamp_min(1e-300)
    at = (GRID * len(s) - 0.5).clamp(0, len(s) - 1)
    low = at.floor().long().clamp(max=max(0, len(s) - 2))
    high = (low + 1).clamp(max=len(s) - 1)
    return s[low] + (at - low) * (s[high] - s[low])


def distance(a, b) -> float:
    return (shape_of(a) - shape_of(b)).square().mean().sqrt().item()


@torch.no_grad()
def read_spectra(path: str) -> dict:
    """name, size and {kind: [(relative depth, singular values, shape), ...]} of a checkpoint. An expanded layer counts
    as the matrix it stands for."""
    ckpt = reader.load(path)
    model = checkpoint.build(ckpt, path)
    c, kinds = model.config, {}
    for kind, i, W in matrices(model):
        depth = 0.0 if i is None else (i + 0.5) / c.n_layer
        kinds.setdefault(kind, []).append((depth, torch.linalg.svdvals(W.float()), tuple(W.shape)))
    label = f'{Path(path).parent.name}/{Path(path).stem}'
    return dict(name=f'{label} ({c.n_layer}x{c.n_embd}, {ckpt["iter_num"]} it.)', kinds=kinds)


def gaussian(shape):
    """Singular values of a matrix of independent Gaussian entries."""
    W = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    if shape[0] > 16 * shape[1]:  # an embedding: its Gram matrix is cheaper
        return torch.linalg.eigvalsh((W.T @ W).double()).flip(0).sqrt()
    return torch.linalg.svdvals(W)


def pairs_by_depth(a, b):
    """Each block of the deeper model with the nearest, by relative depth, of the other."""
    if len(a) < len(b):
        return [(min(a, key=lambda s: abs(s[0] - t[0])), t) for t in b]
    return [(s, min(b, key=lambda t: abs(s[0] - t[0]))) for s in a]


def compare_spectra(models: list[dict]) -> list[dict]:
    """A row per kind of matrix and pair of models."""
    random = {s: gaussian(s) for m in models for blocks in m['kinds'].values() for _, _, s in blocks}
    mean = lambda values: sum(values) / len(values)
    over = lambda a, b: a / b if b else math.nan  # a matrix of zeros has no size to compare with
    rows = []
    for (i, a), (j, b) in itertools.combinations(enumerate(models), 2):
        for kind in a['kinds']:
            if kind not in b['kinds']:
                continue
            pairs = pairs_by_depth(a['kinds'][kind], b['kinds'][kind])
            rms = lambda s: s.double().square().mean().sqrt().item()
            rows.append(
                dict(
                    kind=kind,
                    a=i,
                    b=j,
                    distance=mean([distance(s, t) for (_, s, _), (_, t, _) in pairs]),
                    a_gaussian=mean([distance(s, random[n]) for (_, s, n), _ in pairs]),
                    b_gaussian=mean([distance(t, random[n]) for _, (_, t, n) in pairs]),
                    top=mean([over(t[0].item(), s[0].item()) for (_, s, _), (_, t, _) in pairs]),
                    rms=mean([over(rms(t), rms(s)) for (_, s, _), (_, t, _) in pairs]),
                )
            )
    return rows


def table(models: list[dict], rows: list[dict]) -> str:
    lines = [f'{chr(65 + i)} = {m["name"]}' for i, m in enumerate(models)]
    lines.append(f'{"matrix":12} {"pair":>5} {"distance":>9} {"1st-Gauss":>9} {"2nd-Gauss":>9} {"top":>7} {"rms":>7}')
    for r in rows:
        lines.append(
            f'{r["kind"]:12} {chr(65 + r["a"])}-{chr(65 + r["b"]):3} {r["distance"]:9.4f} {r["a_gaussian"]:9.4f}'
            f' {r["b_gaussian"]:9.4f} {r["top"]:7.3f} {r["rms"]:7.3f}'
        )
    return '\n'.join(lines + ['top, rms: largest and root mean square singular value, the second over the first'])


def picture(models: list[dict], out: Path):
    """Shapes, one panel per kind of matrix, one colour per checkpoint, a line per block; dotted: a Gaussian matrix."""
    from matplotlib.figure import Figure  # only here: it takes a second to import

    kinds = list(dict.fromkeys(k for m in models for k in m['kinds']))
    columns = min(4, len(kinds))
    fig = Figure(figsize=(4 * columns, 6))
    grid = fig.subplots(-(-len(kinds) // columns), columns, squeeze=False, sharex=True)
    for ax in grid.flat[len(kinds) :]:
        ax.axis('off')
    for ax, kind in zip(grid.flat, kinds):
        for i, m in enumerate(models):
            for j, (_, s, n) in enumerate(m['kinds'].get(kind, [])):
                ax.plot(GRID, shape_of(s), color=f'C{i}', lw=1, alpha=0.6, label=m['name'] if j == 0 else None)
                if j == 0:
                    ax.plot(GRID, shape_of(gaussian(n)), ':', color=f'C{i}', lw=1)
        ax.set_title(kind, fontsize=10)
        ax.grid(alpha=0.3)
    grid[0, 0].legend(fontsize=7)
    fig.supxlabel('index / number of singular values')
    fig.supylabel('singular value / root mean square')
    files.save_picture(fig, out)


def spectra(cfg: SpectraConfig):
    paths = [p for p in cfg.checkpoints.split(',') if p]
    if len(paths) < 2:
        raise UserError('checkpoints: give at least two, separated by commas')
    if cfg.data:
        files.ready(root_path(cfg.data), OWN, 'transfer.py spectra', 'data')
    if cfg.out:
        files.check_picture(root_path(cfg.out))
    models = [read_spectra(p) for p in paths]
    print(table(models, compare_spectra(models)))
    if cfg.data:
        lines = [
            dict(checkpoint=m['name'], kind=kind, depth=depth, shape=n, singular_values=[float(f'{v:.6g}') for v in s])
            for m in models
            for kind, blocks in m['kinds'].items()
            for depth, s, n in blocks
        ]
        files.write_lines(root_path(cfg.data), lines)
    if cfg.out:
        picture(models, root_path(cfg.out))
        print(f'wrote {root_path(cfg.out)}')
