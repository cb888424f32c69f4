"""
The MNIST experiment of expansive networks (github.com/Eternalyze0/expansive_networks, 2025): a chain of linear maps on a skip, trained
beside a small network and multiplied into it for testing.

    python toys/mnist.py --seeds=1,2,3                         scikit-learn's digits: 8x8 pixels, needs no download
    python toys/mnist.py --dataset=mnist --chain=20 --seeds=1,2,3,4,5,6,7,8,9,10
    python compare.py config/compare/mnist_mlp.py              the comparison

mlp: 784-128-10; with chain = 20, x <- x + E20...E1 x between fc1 and the ReLU, each E 128x128 without bias.
cnn: PyTorch's MNIST example; with chain = 5, x <- x + E5...E1 x behind fc1's ReLU, 128-1000-1000-1000-1000-128 (the
bias of these maps is not on record; here they have none).
With --held_out=5000 val_loss and val_error are those of 5,000 training images that are kept back, for choosing the rate,
and test_loss and test_error those of the test set; without, the test set is all there is, as in its author's runs.
AdamW 1e-3, betas 0.95 and 0.95, batch 64, rate x 0.7 after each epoch, 20 epochs. Its author reported 99.12% -> 99.24%
(cnn) and +27 of 10,000 (mlp), one run each. All seeds of an arm train at once; errors are those after the last epoch.
"""

import dataclasses
import gzip
import hashlib
import sys
import urllib.request
import zlib
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import configurator  # noqa: E402, F401  first: it answers Ctrl-C while torch is loaded

# isort: split
import torch  # noqa: E402
import torch.nn as nn  # noqa: E402
import torch.nn.functional as F  # noqa: E402

import hardware  # noqa: E402
from configurator import ROOT, UserError, key, load, root_path, run  # noqa: E402
from files import alone, write  # noqa: E402
from tokens.download import given  # noqa: E402
from tokens.recipes import unpack  # noqa: E402
from toys.seeds import (  # noqa: E402
    Clock,
    Stack,
    batches,
    example_flops,
    make_optimizer,
    make_step,
    read_seeds,
    set_lr,
    write_runs,
)

MNIST = {  # sha256 of the uncompressed files
    'train-images-idx3-ubyte': 'ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db',
    'train-labels-idx1-ubyte': '65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5',
    't10k-images-idx3-ubyte': '0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7',
    't10k-labels-idx1-ubyte': 'ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2',
}
MIRROR = 'https://ossci-datasets.s3.amazonaws.com/mnist/'


@dataclass
class MnistConfig:
    dataset: str = key('digits', "digits (scikit-learn's, 8x8) or mnist", choices=('digits', 'mnist'))
    net: str = key('mlp', 'the network', choices=('mlp', 'cnn'))
    held_out: int = key(
        0,
        'training images kept back to choose rates by (5000 of mnist); 0: none, and val_error is that of the test set',
        low=0,
    )
    chain: int = key(0, 'linear maps on the skip; 0: the baseline', low=0)
    inner: int = key(0, 'width between the maps of the chain; 0: as fc1 (mlp) or 1000 (cnn)', low=0)
    seeds: str = key('1,2,3', 'trained at once, a run each')
    learning_rate: float = key(1e-3, 'AdamW, of the first epoch', above=0)
    beta: float = key(0.95, 'both betas of AdamW', low=0, high=0.99999)
    gamma: float = key(0.7, 'the rate is multiplied by it after each epoch', above=0)
    epochs: int = key(20, 'passes over the data', low=1)
    max_iters: int = key(0, 'steps; 0: all epochs', low=0)
    batch_size: int = key(64, 'images per step', low=1)
    out_dir: str = key('out/mnist', 'each seed leaves its run in s<seed> here')
    device: str = key('auto', 'cuda, cpu; auto: the best there is')
    cuda_graph: bool = key(True, 'on a GPU: replay the step as a CUDA graph')
    wandb_log: bool = key(False, 'log each seed to wandb')
    wandb_project: str = key('mnist', 'wandb project')
    wandb_run_name: str = key('mnist', 'wandb run name')

    def problems(self):
        most, found = examples(self.dataset) - self.batch_size, []
        if self.held_out > most:
            found.append(f'held_out = {self.held_out}: leaves no batch to train on; at most {most}')
        if self.inner and self.chain < 2:
            found.append(
                f'inner = {self.inner}: lies between two maps of a chain; give chain = 2 or more, or leave it out'
            )
        return found


# -----------------------------------------------------------------------------
# data


def idx(name: str) -> torch.Tensor:
    """A file of MNIST: from data/mnist, NANOMORPH_DATA/mnist or the network, checked by sha256."""
    places = [ROOT / 'data' / 'mnist' / f'{name}.gz']
    if path := given(f'mnist/{name}.gz'):
        places.append(path)
    found, packed = next((p for p in places if p.exists()), None), b''
    if found:
        raw = unpack(found)
    else:
        try:
            with urllib.request.urlopen(MIRROR + f'{name}.gz', timeout=30) as r:
                packed = r.read()
            raw = gzip.decompress(packed)
        except (OSError, EOFError, zlib.error) as e:
            raise UserError(
                f'dataset = mnist: {name}.gz is not in {", ".join(str(p.parent) for p in places)} and {MIRROR} cannot be'
                f' read ({e}); put it there, or --dataset=digits'
            ) from None
    if hashlib.sha256(raw).hexdigest() != MNIST[name]:
        raise UserError(
            f'{found or MIRROR + name + ".gz"} has another content than MNIST (sha256); put the right one there'
        )
    if packed:
        write(places[0], packed)
    shape = [int.from_bytes(raw[4 + 4 * i : 8 + 4 * i], 'big') for i in range(raw[3])]
    return torch.frombuffer(bytearray(raw[4 + 4 * raw[3] :]), dtype=torch.uint8).view(shape)


def images(dataset: str):
    """x, y, x, y of training and test: x (N, 1, H, W) float with mean 0 and std 1 over the training pixels."""
    if dataset == 'mnist':
        x, y, xt, yt = (idx(n) for n in MNIST)
    else:
        try:
            from sklearn.datasets import load_digits
        except ImportError:
            raise UserError(
                'dataset = digits: needs scikit-learn; pip install scikit-learn, or --dataset=mnist'
            ) from None
        d = load_digits()
        order = torch.randperm(len(d.target), generator=torch.Generator().manual_seed(0))  # one split for everyone
        every, label = torch.tensor(d.images)[order], torch.tensor(d.target)[order]
        x, y, xt, yt = every[:1297], label[:1297], every[1297:], label[1297:]
    x, xt = x.float(), xt.float()
    mean, std = x.mean(), x.std()
    return ((x - mean) / std).unsqueeze(1), y.long(), ((xt - mean) / std).unsqueeze(1), yt.long()


# -----------------------------------------------------------------------------
# networks


class Chain(nn.Module):
    """x + E_n...E_1 x, linear: (I + E_n...E_1) in one matrix."""

    def __init__(self, d: int, n: int, inner: int):
        super().__init__()
        widths = [d] + [inner] * (n - 1) + [d]
        self.maps = nn.ModuleList(nn.Linear(a, b, bias=False) for a, b in zip(widths, widths[1:]))

    def forward(self, x):
        y = x
        for m in self.maps:
            y = m(y)
        return x + y


class MLP(nn.Module):
    def __init__(self, pixels: int, chain: int, inner: int):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(pixels, 128), nn.Linear(128, 10)
        self.chain = Chain(128, chain, inner or 128) if chain else nn.Identity()  # last: the rest starts as without it

    def forward(self, x):
        return self.fc2(F.relu(self.chain(self.fc1(x.flatten(-3)))))


class CNN(nn.Module):
    def __init__(self, side: int, chain: int, inner: int):
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(1, 32, 3), nn.Conv2d(32, 64, 3)
        self.drop1, self.drop2 = nn.Dropout(0.25), nn.Dropout(0.5)
        self.fc1, self.fc2 = nn.Linear(64 * ((side - 4) // 2) ** 2, 128), nn.Linear(128, 10)
        self.chain = Chain(128, chain, inner or 1000) if chain else nn.Identity()

    def forward(self, x):
        x = F.conv2d(F.relu(self.conv1(x)), self.conv2.weight)
        # bias and ReLU behind the pooling, of which nothing depends on it: a quarter of the numbers
        x = F.relu(F.max_pool2d(x, 2) + self.conv2.bias[:, None, None])
        x = self.drop1(x).flatten(-3)
        return self.fc2(self.drop2(self.chain(F.relu(self.fc1(x)))))


def make_net(cfg, side: int):
    return MLP(side**2, cfg.chain, cfg.inner) if cfg.net == 'mlp' else CNN(side, cfg.chain, cfg.inner)


@torch.no_grad()
def collapse(params: dict, net: str) -> dict:
    """Stacked parameters of the network without its chain that computes the same: the chain goes into fc1 (mlp: it
    stands before the ReLU) or into fc2 (cnn: behind it, and dropout between them does nothing in testing)."""
    maps = [v for k, v in params.items() if k.startswith('chain.maps')]
    plain = {k: v.clone() for k, v in params.items() if not k.startswith('chain.maps')}
    product = maps[0].double()
    for m in maps[1:]:
        product = m.double() @ product
    product = product + torch.eye(product.shape[-1], device=product.device, dtype=product.dtype)
    if net == 'mlp':
        plain['fc1.weight'] = (product @ plain['fc1.weight'].double()).to(maps[0].dtype)
        plain['fc1.bias'] = (product @ plain['fc1.bias'].double().unsqueeze(-1)).squeeze(-1).to(maps[0].dtype)
    else:
        plain['fc2.weight'] = (plain['fc2.weight'].double() @ product).to(maps[0].dtype)
    return plain


# -----------------------------------------------------------------------------
# training


def examples(dataset: str) -> int:
    return 60000 if dataset == 'mnist' else 1297


def steps(cfg) -> int:
    return cfg.max_iters or cfg.epochs * ((examples(cfg.dataset) - cfg.held_out) // cfg.batch_size)


def costs(cfg) -> dict:
    """For compare.py: parameters, FLOPs and examples ("tokens") of a whole run."""
    side = 28 if cfg.dataset == 'mnist' else 8
    net = make_net(cfg, side)
    examples = steps(cfg) * cfg.batch_size
    flops = example_flops(net, torch.zeros(1, 1, side, side))
    return dict(params=sum(p.numel() for p in net.parameters()), flops=flops * examples, tokens=examples)


@torch.no_grad()
def test(stack: Stack, x, y):
    """(loss per image, errors in %, logits) of every seed on these images."""
    stack.train(False)
    logits = torch.cat([stack(part, shared=True) for part in x.split(1000)], dim=1)  # (S, N, 10)
    stack.train(True)
    target = y.expand(len(logits), -1)
    loss = F.cross_entropy(logits.transpose(1, 2), target, reduction='none').mean(1)
    return loss, (logits.argmax(-1) != target).float().mean(1) * 100, logits


def train(cfg):
    device = hardware.choose_device(cfg.device)
    seeds = read_seeds(cfg.seeds)
    x, y, *test_set = (t.to(device) for t in images(cfg.dataset))
    judged = dict(val=test_set)
    if cfg.held_out:
        judged = dict(val=(x[-cfg.held_out :], y[-cfg.held_out :]), test=test_set)
        x, y = x[: -cfg.held_out], y[: -cfg.held_out]
    side, last = x.shape[-1], steps(cfg)
    stack = Stack(lambda: make_net(cfg, side), seeds, device)
    optimizer = make_optimizer(torch.optim.AdamW, stack, cfg.learning_rate, device, betas=(cfg.beta, cfg.beta))
    total = torch.zeros(len(seeds), device=device)
    step = make_step(stack, optimizer, x, y, total, cfg.cuda_graph)
    torch.manual_seed(seeds[0])  # dropout
    torch.set_float32_matmul_precision('high')  # TF32 on a GPU, as convolutions are by default
    lines, it, epoch, clock = [[] for _ in seeds], 0, 0, Clock(device)

    def evaluate(train_loss):
        clock.stop()
        found = {name: test(stack, *part) for name, part in judged.items()}
        for i, (mine, a) in enumerate(zip(lines, train_loss.tolist())):
            mine.append(dict(iter=it, train_loss=a, tokens=it * cfg.batch_size, seconds=clock.seconds))
            for name, (loss, errors, _) in found.items():
                mine[-1] |= {f'{name}_loss': loss[i].item(), f'{name}_error': errors[i].item()}
        said = ', '.join(f'{k} loss {v.mean():.4f}, errors {e.mean():.3f}%' for k, (v, e, _) in found.items())
        print(f'step {it}: {said}, over {len(seeds)} seeds', flush=True)
        clock.start()

    evaluate(test(stack, x[:1000], y[:1000])[0])
    while it < last:
        set_lr(optimizer, cfg.learning_rate * cfg.gamma**epoch)
        total.zero_()
        count = 0
        for index in batches(len(x), cfg.batch_size, seeds, epoch, device):
            if it == last:
                break
            step(index)
            count, it = count + 1, it + 1
        epoch += 1
        evaluate(total / count)

    params = sum(p[0].numel() for p in stack.params.values())
    difference, collapsed = 0.0, params
    torch.set_float32_matmul_precision('highest')
    if cfg.chain:
        logits = test(stack, *test_set)[2]
        plain = Stack(lambda: make_net(dataclasses.replace(cfg, chain=0), side), seeds, device)
        plain.params = collapse(stack.params, cfg.net)
        _, errors2, logits2 = test(plain, *test_set)
        collapsed, difference = sum(p[0].numel() for p in plain.params.values()), (logits - logits2).abs().max().item()
        changed = int((logits.argmax(-1) != logits2.argmax(-1)).sum())
        print(
            f'collapsed: {params:,} -> {collapsed:,} parameters, largest difference of a logit {difference:.2g},'
            f' {changed} of {logits[..., 0].numel():,} predictions changed, errors {errors2.mean():.3f}%'
        )
    facts = dict(
        device=hardware.device_name(device), processes=1,
        dtype='float32, TF32 products' if device.type == 'cuda' else 'float32', data_edition=cfg.dataset, params=params,
        params_collapsed=collapsed, tokens_per_iter=cfg.batch_size, flops_per_update=0,
        flops_per_token=example_flops(make_net(cfg, side), torch.zeros(1, 1, side, side)),
        collapse_difference=difference, peak_memory=hardware.peak_memory(device),
    )  # fmt: skip
    done = dataclasses.replace(cfg, max_iters=last)
    write_runs(done, root_path(cfg.out_dir), seeds, facts, lines, it)


def main():
    cfg = load(MnistConfig, sys.argv[1:])
    with alone(root_path(cfg.out_dir)):
        train(cfg)


if __name__ == '__main__':
    run(main)
