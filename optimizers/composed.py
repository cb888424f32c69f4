"""
step_rule = composed: all factors of a product take one step, which bounds the change of the product.

For W = F_N ... F_1 with spectral norms s_i, let each factor move by -r O_i with |O_i| <= 1. Then (the triangle inequality,
term by term of the expanded product)

    |W' - W| <= prod(s_i + r) - prod(s_i) <= r (prod(s_i + 1) - prod(s_i))        for r <= 1

so r = eta / (prod(s_i + 1) - prod(s_i)) gives |W' - W| <= eta, exactly and not only to first order, whatever the sizes of
the factors. The divisor is at least 1, so eta <= 1 is enough. For two factors r = eta / (s_1 + s_2 + 1): Spectron (arXiv
2602.12429). One factor: r = eta. eta = lr * scale(d_out, d_in), the step of a dense W.

Factors that are batches of matrices are block-diagonal maps, up to permutations and identities beside them: their norm is
the largest of the batch, and the bound holds for the whole W. q, k and v one below the other: it holds for each of them, as
for dense ones. A sum over the batch (Kronecker terms): the bounds of the terms add up. Muon's O has a norm of at most
1.21 (muon.LARGEST), which multiplies the bound. AdamW's part of a layer (sparse values) and a dense guide have their own steps.

The norms come from two power iterations a step, each with a vector that is kept from step to step, and saved.
"""

import itertools
import math

import torch

ITERATIONS, FIRST = 2, 30  # power iterations: of a step, of a new vector


class Composed:
    """A matrix has a number: its place in the optimizer's stacks, laid end to end. Two layers a and b with factors.0 (8, 4) and
    factors.1 (4, 8), which are the chains 0 and 1, and a matrix c (4, 8) that is no factor:

        stack     (8, 4)     (4, 8)
        number    0    1     2    3    4
        matrix    a.0  b.0   a.1  b.1  c
        chain     0    1     0    1    -1
        factors   [[0], [2], [1], [3]]: the matrices of a.0, a.1, b.0, b.1

    With terms (Kronecker) factors has a row for each term of a factor: their bounds add up. Otherwise the matrices of a row are
    the blocks of one factor (or q, k and v), whose norm is the largest of theirs; shorter rows are filled with the number of no
    matrix, of norm 0."""

    name = 'right'  # state: an estimate of the first right singular vector of each matrix

    def __init__(self, optimizer, sizes: dict, device):
        """sizes: {(m, n): B} of all matrices, also of those that are whole in another process."""
        chains = []  # [[name of a factor's tensor]], a chain for each layer that is a product
        self.reach, self.terms = [], 1  # scale(d_out, d_in) of each chain; products in a sum
        for name, layer, found in optimizer.layers:
            chain = [f'{name}.{k}' for k in found if k.startswith('factors.')]
            if chain:
                chains.append(chain)
                last = optimizer.places[chain[-1]][1]
                rows = last[0][0][0] if len(last) > 1 else layer.d_out  # of q, where q, k and v are apart
                self.reach.append(optimizer.scale(rows, layer.d_in))
                if layer.is_sum:
                    self.terms = last[0][1].stop - last[0][1].start
        self.chains, self.vectors = chains, {}
        if not chains:
            return
        N = len(chains[0])  # one kind of layer: all chains are equally long
        self.shape = len(chains), N, self.terms
        starts, total = dict(zip(sizes, itertools.accumulate(sizes.values(), initial=0))), sum(sizes.values())
        factors, chain = [[] for _ in range(math.prod(self.shape))], torch.full((total,), -1)
        for c, tensors in enumerate(chains):
            for i, tensor in enumerate(tensors):
                for shape, where in optimizer.places[tensor][1]:
                    numbers = range(starts[shape] + where.start, starts[shape] + where.stop)
                    chain[numbers.start : numbers.stop] = c
                    for term, number in enumerate(numbers):
                        factors[(c * N + i) * self.terms + (term if self.terms > 1 else 0)].append(number)
        most = max(map(len, factors))
        self.factors = torch.tensor([f + [total] * (most - len(f)) for f in factors], device=device)
        self.chain, self.alone = chain.clamp(min=0).to(device), (chain < 0).to(device)
        self.reach = torch.tensor(self.reach, device=device)
        self.own_step = torch.cat([torch.full((B,), optimizer.scale(*shape)) for shape, B in sizes.items()]).to(device)
        gen = torch.Generator().manual_seed(0)
        here = {shape: [] for shape in sizes}  # places of the matrices that are whole here
        for name in optimizer.here:
            for shape, where in optimizer.places[name][1]:
                here[shape] += range(where.start, where.stop)
        self.own = torch.tensor([starts[s] + i for s, found in here.items() for i in found], device=device)
        vectors = {s: torch.randn(B, 1, s[1], generator=gen)[here[s]].to(device) for s, B in sizes.items()}
        self.vectors = {s: v for s, v in vectors.items() if len(v)}
        for shape, W in optimizer.stack(optimizer.tensors.values()).items():
            norm(W, self.vectors[shape], FIRST)

    def rates(self, optimizer) -> dict:
        """{(m, n): (B, 1, 1), or a number}: what O is multiplied by."""
        if not self.chains:
            return {shape: optimizer.lr * -optimizer.scale(*shape) for shape in optimizer.state}
        stacks = optimizer.stack(optimizer.tensors.values())
        norms = [norm(stacks[shape], v, ITERATIONS) for shape, v in self.vectors.items()]
        s = self.reach.new_zeros(len(self.chain) + 1)  # of chains whose home is elsewhere: not used here
        s[self.own] = torch.cat([s[:0], *norms])
        s = s[self.factors].amax(1).view(self.shape)
        bound = ((1 + s).prod(1) - s.prod(1)).sum(1)  # (chains)
        step = torch.where(self.alone, self.own_step, (self.reach / bound)[self.chain])
        rates = (step * -optimizer.lr)[self.own].split([len(v) for v in self.vectors.values()])
        return {shape: r[:, None, None] for shape, r in zip(self.vectors, rates)}


def norm(W, v, iterations: int):
    """Spectral norms (B) of W (B, m, n), from below; v (B, 1, n) is improved in place. A zero matrix leaves it as it is."""
    for _ in range(iterations):
        new = (v @ W.mT) @ W
        size = new.norm(dim=2, keepdim=True)
        v.copy_(torch.where(size > 0, new / size.clamp(min=1e-30), v))
    return (v @ W.mT).norm(dim=(1, 2)) / v.norm(dim=(1, 2)).clamp(min=1e-30)
