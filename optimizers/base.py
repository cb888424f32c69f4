"""
The contract of a matrix optimizer: it moves the matrices of the blocks, AdamW moves the rest (optimizers/optim.py).

An optimizer is one file of this folder with one class derived from MatrixOptimizer, and one line in OPTIMIZERS of __init__.py.
The class says which state it keeps, how it averages gradients (`average`), in which direction a matrix moves (`direction`),
and how far at unit rate (`scale`). Everything else is here: matrices of equal shape lie in one stack (B, m, n),
whatever tensors they are parts of, so that a step is a few batched products. What goes element by element is compiled on a
GPU: averages and step take one pass each. Nothing here waits for the GPU, and state and rate stay where they are, as a
captured update needs it.

Where a process has shares of the tensors (parallel = fsdp), averages are shares, too. For its direction each matrix is put
together in one process, its home; what it moves by goes back in shares. The other state stays at home.
"""

from dataclasses import dataclass

import torch

import parallel
from configurator import UserError, key
from optimizers import product
from optimizers.composed import Composed


@dataclass
class Keys:
    """The keys of every matrix optimizer."""

    matrix_lr: float = key(
        0.0,
        'peak rate of the matrices, under the schedule of learning_rate; 0: learning_rate',
        low=0,
        group='optimizer',
    )
    step_rule: str = key(
        'factor',
        'how far the factors of a product move: each as a matrix by itself; all by one step that bounds the'
        ' change of the product (composed); or so that the matrix which they form moves as a dense one (product)',
        choices=('factor', 'composed', 'product'),
    )


@dataclass
class Momentum(Keys):
    """The keys of an optimizer that averages gradients with momentum."""

    momentum: float = key(0.95, 'share of the old average of gradients', low=0, high=0.99999)


class MatrixOptimizer:
    """Moves tensors that are matrices, or batches of them.

    Attributes:
        cfg          the training config
        parameters   {name: parameter} of what is moved
        tensors      {name: tensor} of what has a direction: a parameter, or the W that factors form (step_rule = product)
        averaged     {name of a tensor: {name of an average: tensor of the same shape}}
        state        {(m, n): {name: tensor (B, m, 1) or (B, 1, n)}} of the matrices that are whole here: all state but averages
        state_names  the names in state
        places       {name of a tensor: (its Matrix, where its matrices lie in the stacks)}, see lay()
        here         those of places whose tensors are whole here: all, unless there are shares
        exchange     parallel.Exchange of shares, or None
        views        {name of a tensor: views of its matrices}, where these can be changed as they lie
        decays       {name of a parameter: factor on weight_decay}
    """

    Keys = Keys  # the config keys that it reads: this dataclass, or one derived from it

    # names of state: at least one average of gradients, as large as the matrix (growth moves it as gradients move)
    averages = ('momentum',)
    per_row = ()  # with one number a row
    bounded = False  # True: no direction has a spectral norm far above 1, as step_rule = composed needs it
    precision = None  # of products; none: bfloat16 on a GPU that has it, float32 elsewhere

    def __init__(self, layers, parameters: dict, cfg, capturable=False, compile=False):
        """layers: [(name, layer, {key: Matrix})]. parameters: {name: tensor}, at least those of the layers; of a layer whose W
        is formed of factors W as well, as NAME.weight."""
        self.cfg, self.layers, self.decays = cfg, layers, {}
        for name, layer, found in layers:
            scales = decay_scales(layer)
            self.decays |= {f'{name}.{k}': scales.get(k, 1.0) / cfg.hidden_lr for k in found}
        self.parameters = {name: parameters[name] for name in self.decays}
        self.product = product.Product(layers, parameters) if cfg.step_rule == 'product' else None
        self.tensors, of = {}, {}  # of: {name: Matrix}
        for name, _, found in self.product.as_dense(layers) if self.product else layers:
            for k, M in found.items():
                self.tensors[f'{name}.{k}'], of[f'{name}.{k}'] = parameters[f'{name}.{k}'], M
        self.device = device = next(iter(self.tensors.values())).device if self.tensors else torch.device('cpu')
        self.places, all_sizes = lay(of)
        self.here, sizes, self.exchange = self.places, all_sizes, None
        if any(map(parallel.is_share, self.tensors.values())):
            where = homes(layers, parallel.world(next(iter(self.tensors.values()))))
            self.exchange = parallel.Exchange(list(self.tensors.values()), where)
            names = list(self.tensors)
            self.here, sizes = lay({names[i]: of[names[i]] for i in self.exchange.mine})
        self.averaged = {name: {k: torch.zeros_like(p) for k in self.averages} for name, p in self.tensors.items()}
        self.state = {s: {k: torch.zeros(B, s[0], 1, device=device) for k in self.per_row} for s, B in sizes.items()}
        self.lr = (
            torch.zeros((), device=device) if capturable or compile else 0.0
        )  # where graph and compiled code read it
        self.argument, self.move = (torch.compile(f, dynamic=True) if compile else f for f in (self.argument, move))
        self.rule = Composed(self, all_sizes, device) if cfg.step_rule == 'composed' else None
        self.state_names = self.per_row
        if self.rule and self.rule.chains:
            self.state_names = *self.per_row, self.rule.name
            for shape, vectors in self.rule.vectors.items():
                self.state[shape][self.rule.name] = vectors
        self.views = {} if self.exchange else self.find_views()

    # ------------------------------------------------------------------------- what an optimizer says

    def average(self, G, state: dict):
        """G: gradients, to be left as they are. state: their averages, which are updated. Returns a new tensor, what `direction`
        takes. Element by element, as G may be any share of a tensor."""
        raise NotImplementedError(f'{type(self).__name__}.average')

    def direction(self, U, state: dict):
        """U (B, m, n): what `average` gave, rounded to self.dtype; it may be overwritten. state: of these matrices, without
        averages. Returns (B, m, n), of any dtype: what is subtracted from the matrices at lr * scale = 1."""
        raise NotImplementedError(f'{type(self).__name__}.direction')

    def scale(self, m: int, n: int) -> float:
        """How far a matrix (m, n) moves at unit rate."""
        return 1.0

    @classmethod
    def problems(cls, cfg) -> list[str]:
        """What is wrong with the keys of a config, one line each. A rule of steps is part of the contract: extend this."""
        found = []
        if cfg.expansion_lr == 'matched':
            rule = 'composed' if cls.bounded else 'product'
            found.append(
                f"expansion_lr = matched: is a ratio of AdamW's steps; with optimizer = {cfg.optimizer} use step_rule = {rule}"
            )
        if getattr(cfg, 'expansion_moments', 'reset') == 'map':
            found.append(
                f"expansion_moments = map: is known for AdamW's moments only; with optimizer = {cfg.optimizer} use reset"
            )
        if cfg.step_rule == 'composed' and not cls.bounded:
            found.append(
                f'step_rule = composed: bounds steps of spectral norm 1, and those of {cfg.optimizer} can be larger; use'
                ' optimizer = muon, or step_rule = factor or product'
            )
        if cfg.step_rule in ('composed', 'product') and cfg.structured_norm:
            found.append(
                'structured_norm = True: the cap and its gains change the size of a product, whose step step_rule ='
                f' {cfg.step_rule} decides; leave one of them out'
            )
        return found + (product.problems(cfg) if cfg.step_rule == 'product' else [])

    # ------------------------------------------------------------------------- one step

    @torch.no_grad()
    def step(self):
        """Move the parameters by the gradients of `tensors`, which lie in .grad; no gradient may be missing."""
        own = [{k: parallel.local(v) for k, v in found.items()} for found in self.averaged.values()]
        stacks = self.stack([self.argument(parallel.local(p.grad), a) for p, a in zip(self.tensors.values(), own)])
        steps = {shape: self.direction(U, self.state[shape]) for shape, U in stacks.items()}
        if self.rule:  # a rate for each matrix
            rates = self.rule.rates(self)
            steps = {shape: s * rates[shape] for shape, s in steps.items()}
            rates = dict.fromkeys(steps, 1.0)
        else:
            rates = {shape: self.lr * -self.scale(*shape) for shape in steps}
        keep = {s: 1 - self.lr * (s * self.cfg.weight_decay) for s in set(self.decays.values())}
        for name, p in self.parameters.items():
            if name not in self.views:
                parallel.local(p).mul_(keep[self.decays[name]])
        names, changes = [], []
        for name, (M, places) in self.here.items():
            if name in self.views:
                for view, (shape, where) in zip(self.views[name], places):
                    self.move(view, steps[shape][where], rates[shape], keep[self.decays[name]])
            else:
                names.append(name)
                dtype = self.tensors[name].dtype
                changes.append(M.fold([steps[shape][where].to(dtype) * rates[shape] for shape, where in places]))
        if self.exchange:
            names, changes = self.tensors, self.exchange.scatter(changes)
        formed = {}  # of each W that factors form: its change
        for name, change in zip(names, changes):
            if self.product and name in self.product.weights:
                formed[name] = change
            else:
                parallel.local(self.tensors[name]).add_(change)
        if self.product:
            self.product.follow(formed, self.dtype)

    def argument(self, G, state):
        """What `direction` takes. It is rounded before it is sent or laid into a stack: there it will be anyway."""
        return self.average(G, state).to(self.dtype)

    def stack(self, tensors) -> dict:
        """{(m, n): (B, m, n)} of tensors, or shares, that stand in the order of self.tensors: a copy of what is whole here."""
        if self.exchange:
            tensors = self.exchange.gather([parallel.local(t) for t in tensors])
        parts = {}
        for t, (M, places) in zip(tensors, self.here.values()):
            for part, (shape, _) in zip(M.unfold(t.detach()), places):
                parts.setdefault(shape, []).append(part)
        return {shape: torch.cat(p) for shape, p in parts.items()}

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of products."""
        return self.precision or fastest(self.device)

    def find_views(self) -> dict:
        """{name of a tensor: views of its matrices} of the tensors whose matrices can be changed in place. Cores of tensor trains
        cannot, as their matrices are copies; a W that factors form is left out, since its factors move."""
        formed = self.product.weights if self.product else {}
        found = {
            name: self.places[name][0].unfold(p.detach()) for name, p in self.tensors.items() if name not in formed
        }
        lies = lambda v, p: v.untyped_storage().data_ptr() == p.untyped_storage().data_ptr()
        return {name: views for name, views in found.items() if all(lies(v, self.tensors[name]) for v in views)}

    def peak(self) -> float:
        """The highest rate of the schedule."""
        return self.cfg.hidden_lr * (self.cfg.matrix_lr or self.cfg.learning_rate)

    def set_lr(self, lr: float):
        """lr: lr_at of this iteration, as the schedule of learning_rate has it; with a matrix_lr in proportion to that."""
        lr *= self.peak() / self.cfg.learning_rate
        if torch.is_tensor(self.lr):
            self.lr.fill_(lr)
        else:
            self.lr = lr

    # ------------------------------------------------------------------------- state

    def layout(self, name: str, k: str):
        """The Matrix by which state k of a tensor is stored, with a number for each row or column of its matrices."""
        M = self.places[name][0]
        return M.per_row() if k in self.per_row else M.per_column()

    def parts(self, name: str, k: str) -> list:
        """[state k of each part] of a tensor that is whole here."""
        return [self.state[shape][k][where] for shape, where in self.here[name][1]]

    def state_dict(self) -> dict:
        """{name of a tensor: {name of state: tensor, an average as the tensor lies}}: copies. Every process that has shares calls
        this."""
        found = {name: {k: v.clone() for k, v in own.items()} for name, own in self.averaged.items()}
        for i, name in enumerate(self.tensors):
            for k in self.state_names:
                M = self.layout(name, k)
                v = M.fold(self.parts(name, k)) if name in self.here else torch.empty(M.shape, device=self.device)
                found[name][k] = self.exchange.copy(v.contiguous(), i) if self.exchange else v.contiguous()
        return found

    @torch.no_grad()
    def load(self, name: str, entry: dict | None):
        """Set the state of a tensor; without an entry it stays as it starts. UserError if it is another optimizer's."""
        if entry is None:
            return
        wanted = {k: tuple(v.shape) for k, v in self.averaged[name].items()}
        wanted |= {k: tuple(self.layout(name, k).shape) for k in self.state_names}
        given = {k: tuple(v.shape) for k, v in entry.items()}
        if wanted != given:
            sizes = wanted.keys() == given.keys()
            raise UserError(
                f'optimizer = {self.cfg.optimizer}, step_rule = {self.cfg.step_rule}: the checkpoint has'
                f' {tell(given, sizes)} for {name}, this needs {tell(wanted, sizes)}; resume with the optimizer that it was'
                ' trained with, or start a new run from its weights: --init_from=FOLDER/ckpt.pt and another --out_dir'
            )
        for k, v in self.averaged[name].items():
            v.copy_(parallel.share(entry[k], v))
        for k in self.state_names if name in self.here else ():
            for mine, new in zip(self.parts(name, k), self.layout(name, k).unfold(entry[k])):
                mine.copy_(new)

    def restart(self, name: str):
        """The state of a tensor as at the start, in place."""
        for v in self.averaged[name].values():
            parallel.local(v).zero_()
        for k in self.per_row if name in self.here else ():
            for part in self.parts(name, k):
                part.zero_()


def move(p, step, rate, keep):
    """p <- keep p + rate step."""
    p.mul_(keep).add_(step.to(p.dtype) * rate)


def lay(matrices: dict) -> tuple:
    """{name of a tensor: Matrix} -> {name: (Matrix, [(m, n) of each part, its slice of their stack])}, {(m, n): B}."""
    places, sizes = {}, {}
    for name, M in matrices.items():
        found = []
        for B, *shape in shapes(M):
            shape, at = tuple(shape), sizes.get(tuple(shape), 0)
            sizes[shape] = at + B
            found.append((shape, slice(at, at + B)))
        places[name] = M, found
    return places, sizes


def shapes(M) -> list:
    """[(B, m, n)] of its parts."""
    return [part.shape for part in M.unfold(torch.empty(M.shape, device='meta'))]


def homes(layers: list, processes: int) -> list:
    """The process that is home to each tensor: one for all of a layer, whose step may depend on all of them. The layer that
    costs most (multiply-adds of a square product, B m n min(m, n)) goes first, to who has least to do."""
    cost = [sum(B * m * n * min(m, n) for M in found.values() for B, m, n in shapes(M)) for _, _, found in layers]
    work, home = [0] * processes, {}
    for i in sorted(range(len(layers)), key=lambda i: -cost[i]):
        home[i] = work.index(min(work))
        work[home[i]] += cost[i]
    return [home[i] for i, (_, _, found) in enumerate(layers) for _ in found]


def decay_scales(layer) -> dict:
    """{key: factor on weight_decay} of the factors of a layer that all move at the same rate."""
    if not hasattr(layer, 'factors'):
        return {}
    return {f'factors.{i}': s for i, s in enumerate(layer.decay_scale([1.0] * len(layer.factors)))}


def fastest(device) -> torch.dtype:
    return torch.bfloat16 if device.type == 'cuda' and torch.cuda.is_bf16_supported() else torch.float32


def tell(shapes: dict, sizes: bool) -> str:
    return ', '.join(f'{k} {shape}' if sizes else k for k, shape in shapes.items()) or 'nothing'
