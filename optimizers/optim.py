"""
The optimizer and its schedule.

`Optimizer` moves the leaves of a model (the factors where a matrix is formed from factors, which it owns): all by AdamW,
or the matrices of the blocks by one of optimizers/ and the rest by AdamW. To the training loop it looks like an optimizer
over the matrices that the network computes with.
"""

import math
import re

import torch

import optimizers
import parallel
from configurator import UserError
from linear.factors import Factors


def lr_at(cfg, it: int) -> float:
    """Learning rate of iteration it: linear warmup, then cosine to min_lr at lr_decay_iters, or (wsd) constant and
    linear to min_lr over the last wsd_decay_iters before lr_decay_iters (Hu et al. 2024, arXiv 2404.06395)."""
    if not cfg.decay_lr:
        return cfg.learning_rate
    if it < cfg.warmup_iters:
        return cfg.learning_rate * (it + 1) / (cfg.warmup_iters + 1)
    if it >= cfg.lr_decay_iters:
        return cfg.min_lr
    if cfg.schedule == 'cosine':
        ratio = (it - cfg.warmup_iters) / (cfg.lr_decay_iters - cfg.warmup_iters)
        coeff = 0.5 * (1.0 + math.cos(math.pi * ratio))  # 1 -> 0
    else:
        coeff = min(1.0, (cfg.lr_decay_iters - it) / max(1, cfg.wsd_decay_iters))
    return cfg.min_lr + coeff * (cfg.learning_rate - cfg.min_lr)


def problems(cfg) -> list[str]:
    """What is wrong with the keys of optimizer and schedule, one line each."""
    found = optimizers.problems(cfg)
    if not cfg.decay_lr:
        return found
    if cfg.min_lr > cfg.learning_rate:
        found.append(f'min_lr = {cfg.min_lr:g}: must be at most learning_rate ({cfg.learning_rate:g})')
    if cfg.warmup_iters > cfg.lr_decay_iters:
        found.append(f'warmup_iters = {cfg.warmup_iters}: must be at most lr_decay_iters ({cfg.lr_decay_iters})')
    if cfg.schedule == 'wsd' and cfg.wsd_decay_iters + cfg.warmup_iters > cfg.lr_decay_iters:
        found.append(
            f'wsd_decay_iters = {cfg.wsd_decay_iters}: with warmup_iters ({cfg.warmup_iters}) must be at most'
            f' lr_decay_iters ({cfg.lr_decay_iters})'
        )
    return found


def idle(cfg) -> list[str]:
    """Keys of the schedule that have no effect, given the others."""
    if not cfg.decay_lr:
        return ['schedule', 'warmup_iters', 'lr_decay_iters', 'wsd_decay_iters', 'min_lr']
    return ['wsd_decay_iters'] if cfg.schedule != 'wsd' else []


def notes(cfg, it=0) -> list[str]:
    """What is worth saying of the schedule, one line each. it: the iteration at which a run goes on."""
    if it > cfg.max_iters and not cfg.eval_only:
        return [f'NOTE: the checkpoint is of iteration {it}, beyond max_iters = {cfg.max_iters}: nothing is trained']
    if cfg.eval_only or not cfg.decay_lr or not 0 < cfg.max_iters < cfg.lr_decay_iters:
        return []
    last = lr_at(cfg, cfg.max_iters - 1)
    return [
        f'NOTE: max_iters = {cfg.max_iters} is below lr_decay_iters = {cfg.lr_decay_iters}: the schedule will not be'
        f' finished, the last learning rate is {last:.3g}'
    ]


class Optimizer:
    """AdamW with nanoGPT's decay rule (matrices decay, vectors do not) and each layer's own rate and decay scales; the
    matrices of the blocks can have an optimizer of their own (`matrix_optimizer`; None: AdamW moves them, too).

    It owns the factors beside the model (`factors`, by tokens: see linear.factors.Factors): making the optimizer takes
    them out of the model.

    The learning rate of a parameter at iteration it, with lr = lr_at(cfg, it), which set_lr() receives:
        AdamW             lr * lr_scale of factors.leaves(), for matrices of the blocks also * hidden_lr (build_adamw)
        matrix optimizer  lr * hidden_lr, with matrix_lr instead of learning_rate as the peak if it is set
                          (MatrixOptimizer.set_lr); how far a matrix moves at that rate is its scale(m, n)
    lr_scale is 1 for vectors and embeddings, Layer.dense_lr_scale for matrices (mup_base, set by linear.make), and Layer.lr_scale
    for factors: dense_lr_scale times what structured_lr or expansion_lr says (Structured.__init__, Expanded.match).

    Clipping: the norm is taken over the gradients of the matrices that the network computes with, before the chain
    rule, so that it means the same in every arm and costs the same however wide the factors are. The chain rule is
    linear: scaling W's gradient scales the factors' alike. `param_groups` holds those matrices; torch's GradScaler
    unscales what it finds there, and calls step() when all of it is finite.

    On a GPU the update of a small model is a long row of short kernels, and launching them takes longer than running
    them: it is captured once as a CUDA graph and replayed. captured: the backward pass is one as well, from the fourth step
    on. It writes gradients at one address each, so nothing drops them between steps. compile: compile the forming of W and
    what `matrix_optimizer` does element by element. dtype: of W as it is formed.
    """

    def __init__(self, model, cfg, tokens=math.inf, captured=False, compile=False, dtype=torch.float32):
        self.model, self.cfg, self.captured, self.grad_norm = model, cfg, captured, None
        self.compile = compile and all(p.is_cuda for p in model.parameters())
        # the rule needs W, whatever is cheaper; a whole W has no place in shares of it
        path = 'materialised' if cfg.step_rule == 'product' else 'factored' if parallel.sharded(model) else None
        self.factors = Factors(model, tokens, self.compile, dtype, path)
        self.build()

    def build(self):
        """The optimizers without state, over what the model and the factors hold now."""
        self.weights = list(self.model.parameters())  # what the network computes with
        self.param_groups = [dict(params=self.weights)]
        cuda = all(p.is_cuda for p in self.weights)
        # a replay reads gradients at fixed addresses; copying them there costs more than it saves for a large model
        small = sum(p.numel() for p in self.weights) < 2**25
        self.capturable = cuda and (self.captured or small) and not parallel.sharded(self.model)
        leaves = list(self.factors.leaves())
        self.leaves, self.matrix_optimizer = {name: p for name, p, *_ in leaves}, None
        if kind := optimizers.OPTIMIZERS[self.cfg.optimizer]:
            blocks = [found for found in self.factors.matrices() if found[0].startswith('transformer.h.')]
            self.matrix_optimizer = kind(
                blocks, self.leaves | self.factors.formed(), self.cfg, self.capturable, self.compile
            )
        self.by_matrix_optimizer = self.matrix_optimizer.tensors if self.matrix_optimizer else {}
        moved = set(self.matrix_optimizer.parameters if self.matrix_optimizer else ())
        self.build_adamw([leaf for leaf in leaves if leaf[0] not in moved])
        if self.cfg.step_rule == 'product':  # what follows W needs no gradient of its own
            rest = {id(p) for p in self.by_adamw.values()}
            self.factors.tensors = [p for p in self.factors.tensors if id(p) in rest]
        self.steps, self.graphs = 0, None

    def build_adamw(self, leaves: list):
        """AdamW over leaves [(name, parameter, lr_scale, decay_scale)], a group for each pair of scales."""
        cfg, groups = self.cfg, {}  # {(lr_scale, decay_scale): {name: parameter}}
        for name, p, lr_scale, decay_scale in leaves:
            if name.startswith('transformer.h.') and p.dim() >= 2:
                lr_scale, decay_scale = lr_scale * cfg.hidden_lr, decay_scale / cfg.hidden_lr
            groups.setdefault((lr_scale, decay_scale), {})[name] = p
        self.by_adamw = {name: p for g in groups.values() for name, p in g.items()}
        self.adamw = torch.optim.AdamW(
            [
                dict(
                    params=list(g.values()),
                    lr=torch.tensor(cfg.learning_rate, device='cuda') if self.capturable else cfg.learning_rate,
                    lr_scale=lr_scale,
                    weight_decay=cfg.weight_decay * decay_scale,
                )
                for (lr_scale, decay_scale), g in groups.items()
            ],
            betas=(cfg.beta1, cfg.beta2),
            fused=all(p.is_cuda for p in self.weights) or all(p.is_cpu for p in self.weights),
            capturable=self.capturable,
        )

    def release(self) -> dict:
        """Hold neither parameters nor state until rebuild(): a hook changes the model in between, and what it removes
        is freed at once. Returns the state, as state_dict()."""
        moments = self.state_dict()
        if self.grad_norm is not None:
            self.grad_norm = self.grad_norm.clone()  # the old one lies in the graph's memory
        self.weights = self.param_groups = self.leaves = self.graphs = self.static_grads = None
        self.adamw = self.by_adamw = self.matrix_optimizer = self.by_matrix_optimizer = None
        self.factors.release()
        return moments

    def rebuild(self, moments: dict):
        """Go on with the model as it is now. The state of what is gone is left out, what is new starts without; the
        update is captured anew."""
        self.factors.collect()
        self.build()
        self.load_state_dict({name: moments.get(name) for name in self.stateful()})

    def groups(self):
        """(who moves it, peak rate, decay, {name: parameter}) of all that moves. A step shrinks by rate * decay."""
        names = iter(self.by_adamw.items())
        for g in self.adamw.param_groups:
            found = dict(next(names) for _ in g['params'])
            yield 'adamw', self.cfg.learning_rate * g['lr_scale'], g['weight_decay'], found
        if mine := self.matrix_optimizer:
            for name, p in mine.parameters.items():
                yield self.cfg.optimizer, mine.peak(), self.cfg.weight_decay * mine.decays[name], {name: p}

    def describe(self) -> list[str]:
        """A table for the head of a run, where not all have the rate learning_rate and the decay of nanoGPT's rule."""
        cfg, lines = self.cfg, {}  # lines: {what is printed of a group: {name: parameter}}
        for who, rate, decay, found in self.groups():
            lines.setdefault((who, f'{rate:.4g}', f'{decay:.4g}'), {}).update(found)
        usual = {('adamw', f'{cfg.learning_rate:.4g}', f'{decay:.4g}') for decay in (cfg.weight_decay, 0.0)}
        if lines.keys() <= usual:
            return []
        of_product = ''
        if cfg.step_rule != 'factor' and any(hasattr(layer, 'factors') for _, layer, _ in self.factors.matrices()):
            of_product = f'; under step_rule = {cfg.step_rule} the rate of factors is that of their product'
        return [
            f"peak rates and decays (a step shrinks by rate x decay; the log's lr is that of learning_rate{of_product}):",
            '  optimizer  tensors      numbers  peak rate     decay  names',
        ] + [
            f'  {who:9}  {len(found):7}  {sum(p.numel() for p in found.values()):11,}  {rate:>9}  {decay:>8}  {in_blocks(found)}'
            for (who, rate, decay), found in sorted(lines.items(), key=lambda item: item[0][0] == 'adamw')
        ]

    def finite(self) -> bool:
        """Whether all gradients are finite. Waits for the GPU."""
        norm = torch.nn.utils.get_total_norm([p.grad for p in self.weights if p.grad is not None])
        return bool(parallel.whole(norm).isfinite())

    def step(self):
        """Clip, chain rule to the factors, move, form the matrices again."""
        self.steps += 1
        # the first steps have set up the optimizer state and the libraries; in the fourth the backward pass is captured
        if self.capturable and self.steps == 3 + self.captured:
            self.capture()
        if self.graphs:
            if apart := [(g, p.grad) for g, p in zip(self.static_grads, self.weights) if g is not p.grad]:
                torch._foreach_copy_(*map(list, zip(*apart)))
            for graph in self.graphs:
                graph.replay()
        else:
            self.move()
            self.factors.form()

    def move(self):
        """The part of step() that moves the leaves: clip, chain rule, AdamW, matrix optimizer."""
        # with no clipping the norm is still measured: it is the first thing to look at when a run goes wrong
        norm = torch.nn.utils.clip_grad_norm_(self.weights, self.cfg.grad_clip or math.inf)
        self.grad_norm = parallel.whole(norm)
        self.factors.pull()
        self.adamw.step()
        if self.matrix_optimizer:
            self.matrix_optimizer.step()

    def capture(self):
        """Two graphs, so that the products (and what autograd keeps of them) that form() writes lie where move()
        reads them. Both are captured in the order form, move and replayed in the order move, form."""
        grads = [p.grad for p in self.weights]
        self.static_grads = grads if self.captured else [torch.empty_like(p) for p in self.weights]
        for p, g in zip(self.weights, self.static_grads):
            p.grad = g
        stream, form, move = torch.cuda.Stream(), torch.cuda.CUDAGraph(), torch.cuda.CUDAGraph()
        options = dict(stream=stream, capture_error_mode='thread_local')  # NCCL's watchdog lives in another thread
        if self.factors:
            self.factors.products = None
            with torch.cuda.graph(form, **options):
                self.factors.form()
            form.replay()  # capturing computed nothing
        with torch.cuda.graph(move, **options):
            self.move()
        self.graphs = (move, form) if self.factors else (move,)
        for p, g in zip(self.weights, grads):
            p.grad = g

    def set_lr(self, lr: float):
        """lr: lr_at of this iteration. Each group gets its share of it, see the docstring of the class."""
        for g in self.adamw.param_groups:
            if self.capturable:
                g['lr'].fill_(lr * g['lr_scale'])
            else:
                g['lr'] = lr * g['lr_scale']
        if self.matrix_optimizer:
            self.matrix_optimizer.set_lr(lr)

    def zero_grad(self):
        for p in self.weights:
            p.grad = None

    def restart(self, names):
        """The state of these leaves as at the start, in place: a captured update goes on with the same tensors."""
        state = self.adamw.state_dict()['state']
        for i, name in enumerate(self.by_adamw):
            if name in names:
                for v in state.get(i, {}).values():
                    v.zero_()
        for name in self.by_matrix_optimizer:
            if name in names:
                self.matrix_optimizer.restart(name)

    def stateful(self) -> set:
        """The names in the state: of parameters, or of a W in place of the factors that follow it (step_rule = product)."""
        return {*self.by_adamw, *self.by_matrix_optimizer}

    def state_dict(self) -> dict:
        """{parameter name: {step, exp_avg, exp_avg_sq}, or what the matrices' optimizer keeps}: by name, so that it can follow
        a parameter through surgery. A parameter that was never moved has a state as well, torch's AdamW has none for it."""
        state = self.adamw.state_dict()['state']
        found = {name: state.get(i) or without_moments(p) for i, (name, p) in enumerate(self.by_adamw.items())}
        return found | (self.matrix_optimizer.state_dict() if self.matrix_optimizer else {})

    def load_state_dict(self, state: dict):
        """Where state has None for a name, that parameter starts anew."""
        if odd := sorted(set(state) ^ self.stateful()):
            raise UserError(
                f'the optimizer state does not fit the model and step_rule: {len(odd)} names differ, first {odd[0]}; resume'
                ' with those that it was trained with, or start a new run from its weights: --init_from=FOLDER/ckpt.pt and'
                ' another --out_dir'
            )
        full = self.adamw.state_dict()
        mine = lambda name, p: {k: parallel.share(v, p) for k, v in (state[name] or without_moments(p)).items()}
        full['state'] = {i: mine(name, p) for i, (name, p) in enumerate(self.by_adamw.items())}
        for name, entry in zip(self.by_adamw, full['state'].values()):
            if 'exp_avg' not in entry:
                raise UserError(
                    f'optimizer = {self.cfg.optimizer}: the checkpoint has {", ".join(entry)} for {name}, this needs the'
                    ' moments of AdamW; resume with the optimizer that it was trained with, or start a new run from its'
                    ' weights: --init_from=FOLDER/ckpt.pt and another --out_dir'
                )
        self.adamw.load_state_dict(full)
        for name in self.by_matrix_optimizer:
            self.matrix_optimizer.load(name, state[name])


def in_blocks(names, most=4) -> str:
    """Names of parameters in a few words: h.* stands for several blocks, and no `weight` is said."""
    found = {}  # {name without its block: names}
    for name in names:
        name = name.removeprefix('transformer.').removesuffix('.weight')
        found.setdefault(re.sub(r'^h\.\d+\.', 'h.*.', name), []).append(name)
    said = [k if own[1:] else own[0] for k, own in found.items()]
    return ', '.join(said[:most]) + (f' and {len(said) - most} more' if said[most:] else '')


def update(optimizer: Optimizer, scaler, skip: bool) -> bool:
    """Move, and drop the gradients. False if it did not move: in float16 the gradients overflowed, and the scaler scales
    less from now on; or (skip) they are not finite."""
    steps = optimizer.steps
    scaler.unscale_(optimizer)
    if scaler.is_enabled() or not skip or optimizer.finite():
        scaler.step(optimizer)
    scaler.update()
    if not optimizer.captured:
        optimizer.zero_grad()
    return optimizer.steps > steps


def without_moments(p) -> dict:
    """AdamW's state of a parameter that was never moved."""
    return dict(step=torch.zeros(()), exp_avg=torch.zeros_like(p), exp_avg_sq=torch.zeros_like(p))
