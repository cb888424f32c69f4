"""
Train a GPT whose linear layers are dense matrices or products of factors.

    python train.py config/expansive_shakespeare.py                              on one device, the best there is
    python train.py config/expansive_shakespeare.py --max_iters=500 --seed_model=2
    torchrun --standalone --nproc_per_node=4 train.py config/expansive_shakespeare.py
    python train.py config/expansive_shakespeare.py --init_from=resume           go on exactly where it stopped
    python train.py config/grow_shakespeare.py                                   train a small model, grow it, go on

Exit codes: 0 done, 2 a mistake in config or data, 3 the loss diverged, 130 interrupted (after saving).
"""

import contextlib
import dataclasses
import gc
import math
import os
import sys
import time
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

# read once, when torch is loaded. A thread that waits by spinning takes its core from other jobs of the machine
os.environ.setdefault('OMP_WAIT_POLICY', 'passive')

import configurator  # noqa: F401  first: it answers Ctrl-C while torch is loaded

# isort: split
import torch
import torch.distributed as dist

import checkpoint
import files
import hardware
import linear
import logger
import optimizers
import parallel
from configurator import Diverged, key, load, no_namesakes, overrides, root_path, run
from linear import factors
from model import GPTConfig
from optimizers import optim
from surgery import distill, guide, rotate, shares, start
from tokens import loader, losses

SKIPS = 100  # updates left out in a row: no accident any more


@dataclass
class TrainConfig(
    start.Keys, distill.Keys, rotate.Keys, optimizers.Keys, logger.Keys, parallel.Keys, hardware.Keys, GPTConfig
):
    vocab_size: int = key(0, "vocabulary of the model; 0: the data set's", low=0)
    bias: bool = key(False, 'bias in linear layers and LayerNorms, as GPT-2; false is a bit better and faster')
    out_dir: str = key('out', 'where checkpoints and logs go', group='run and output')
    eval_interval: int = key(2000, 'iterations between evaluations, each followed by a checkpoint', low=1)
    log_interval: int = key(1, 'iterations between lines of the log', low=1)
    eval_iters: int = key(200, 'batches per evaluation, the same for every run; 0: the whole split', low=0)
    patience: int = key(
        0,
        'end where so many iterations brought no lower loss on the first half of val (val_a), for data that will be'
        ' overfitted; 0: never',
        low=0,
    )
    eval_only: bool = key(False, 'evaluate once and exit; nothing is written')
    always_save_checkpoint: bool = key(True, 'write ckpt.pt after each evaluation; false: only if val loss improved')
    save_checkpoint: bool = key(True, 'false: write no checkpoint at all, only the log; for runs of minutes')
    keep_last: int = key(0, 'keep the last so many checkpoints, as ckpt-ITERATION.pt beside ckpt.pt and best.pt', low=0)
    on_nan: str = key(
        'stop',
        'a loss or gradient that is NaN or infinite: stop at the next line of the log, or leave out the update and go on'
        f' (skip; the end after {SKIPS} in a row; every step waits for the GPU)',
        choices=('stop', 'skip'),
    )
    dataset: str = key('openwebtext', 'folder under data/', group='data')
    gradient_accumulation_steps: int = key(40, 'micro-batches per step, shared out among the processes', low=1)
    batch_size: int = key(12, 'micro-batch size in sequences', low=1)
    data_order: str = key(
        'permutation',
        "windows without replacement (permutation), or anywhere with replacement (random, nanoGPT's)",
        choices=('permutation', 'random'),
    )
    seed_data: int = key(1337, 'seed of the order of the data', low=0, high=2**64 - 1)
    seed_model: int = key(1337, 'seed of initialisation and dropout', low=0, high=2**40)
    learning_rate: float = key(6e-4, 'peak learning rate', above=0, group='optimizer')
    max_iters: int = key(600000, 'optimizer steps', low=0)
    hidden_lr: float = key(1.0, "factor on the learning rate (not the decay) of the blocks' matrices", above=0)
    weight_decay: float = key(1e-1, 'decay of matrices', low=0)
    beta1: float = key(0.9, 'AdamW', low=0, high=0.99999)
    beta2: float = key(0.95, 'AdamW', low=0, high=0.99999)
    grad_clip: float = key(1.0, 'largest norm of the gradient of the matrices the network computes with; 0: off', low=0)
    decay_lr: bool = key(
        True, 'follow the schedule; false: constant learning_rate, no warmup', group='schedule of the learning rate'
    )
    schedule: str = key('cosine', 'shape of the decay (wsd: warmup, stable, decay)', choices=('cosine', 'wsd'))
    warmup_iters: int = key(2000, 'steps of linear warmup', low=0)
    lr_decay_iters: int = key(600000, 'step at which min_lr is reached; about max_iters', low=0)
    wsd_decay_iters: int = key(60000, 'wsd: length of the final linear decay', low=0)
    min_lr: float = key(6e-5, 'final learning rate; about learning_rate / 10', low=0)
    GROUPS = ('run and output', 'data', 'size of the model', 'optimizer', 'schedule of the learning rate', 'architecture',
              'device and speed')  # what --help shows first  # fmt: skip

    @property
    def tokens_per_iter(self) -> int:
        return self.gradient_accumulation_steps * self.batch_size * self.block_size

    def idle(self):
        off = [*rotate.idle(self), *optim.idle(self), *optimizers.idle(self), *parallel.idle()]
        off += [] if self.save_checkpoint else ['keep_last']
        return super().idle() | {k: v for k, v in overrides(self).items() if k in off}

    def problems(self, sized=None):
        """sized: whether the model's sizes are known; None: as init_from says, since those of a checkpoint are in its file."""
        if sized is None:
            sized = self.init_from in ('scratch', 'transfer')
        found = (super().problems() or rotate.problems(self)) if sized else []  # the latter looks at the layers
        world = hardware.rank_world()[1]
        if (steps := self.gradient_accumulation_steps) % world:
            found.append(
                f'gradient_accumulation_steps = {steps}: must be divisible by the number of processes ({world}), as'
                f' {steps + -steps % world} is'
            )
        if not self.out_dir:
            found.append('out_dir: must name a folder, such as out/x')
        return found + [line for part in (start, distill, optim, parallel) for line in part.problems(self)]


no_namesakes(TrainConfig, linear.Keys, optimizers.Keys)


def hooks(cfg, device, compile, quiet=False) -> list:
    """What changes the model or its loss while it trains, in this order (surgery/hook.py)."""
    found = []
    if cfg.guide_iters:
        found.append(guide.Guide(cfg))
    if cfg.expansion_schedule != 'all':
        found.append(rotate.Rotation(cfg))
    if cfg.distill_from:
        found.append(distill.Teacher(cfg, device, compile, quiet))
    return found


class Trainer:
    """Everything between two steps: model, optimizer, data and where in it we are. bench.py times the same step()."""

    def __init__(self, cfg, device: torch.device):
        self.device, self.dtype = device, hardware.choose_dtype(cfg.dtype, device)
        self.rank, self.world = hardware.rank_world()
        self.out_dir = root_path(cfg.out_dir)
        self.accumulation = cfg.gradient_accumulation_steps // self.world  # micro-batches of this process
        self.iter = 0  # optimizer steps done
        self.seconds, self.tokens, self.flops = 0.0, 0, 0  # of training on all devices, without evaluations
        self.loss_sum, self.loss_count = torch.zeros((), device=device), 0  # since the last line of the log
        self.best_val_loss, self.best_iter = math.inf, 0
        self.best_is_now = False  # resuming: ckpt.pt is the best one, too
        self.data_before = None  # resuming, and the data set has been prepared otherwise: {split: tokens} of before
        self.best_before = None  # resuming, and evaluations see other text now: (best_iter, best_val_loss) of before
        self.lowest_a, self.lowest_a_iter = math.inf, 0  # of val_a, which may end a run; figures are of val_b
        self.saved = None  # iteration of the last checkpoint
        self.skipped = 0  # updates left out in a row, up to now
        self.out_of_patience, self.interrupted = False, False
        self.progress = lambda split, batch, of: None  # called at every batch of an evaluation
        self.autocast = hardware.autocast(device, self.dtype)
        torch.set_float32_matmul_precision('high')  # TF32: for the products of factors too; bf16 follows anyway

        # the checkpoint to start from, and the data: their tokens must mean the same
        path, ckpt = start.read(cfg)
        self.began = ckpt.get('began', '') if cfg.init_from == 'resume' else cfg.init_from
        self.saved_as = Path(path).name if cfg.init_from == 'resume' else 'ckpt.pt'
        self.vocabulary = start.data_vocabulary(cfg, ckpt, path, self.rank, self.world)
        self.meta = loader.read_meta(cfg.dataset)
        cfg = start.settle(cfg, ckpt, path, loader.padded_vocabulary(self.meta), quiet=self.rank > 0)
        self.cfg = cfg = dataclasses.replace(cfg)  # a copy, which hooks may change
        data = (cfg.block_size, cfg.batch_size, cfg.vocab_size, device, cfg.data_order, cfg.seed_data)
        self.data = {split: loader.Loader(cfg.dataset, split, *data) for split in ('train', 'val')}

        # model; position: windows of the training data consumed so far
        self.model, moments, self.position, self.history = start.build(cfg, ckpt, self.data['train'], self.rank > 0)
        self.model.to(device)
        if self.world > 1:  # every process computes the factors' gradients itself, from the same W.grad
            for _, p, *_ in factors.leaves(self.model):
                dist.broadcast(p.data, 0)
        self.compile = cfg.compile if cfg.compile is not None else device.type == 'cuda'
        if self.compile:
            hardware.keep_compiled(self.dtype)
        self.reshard, self.about_reshard = parallel.prepare(self.model, cfg, device, self.dtype, self.compile)
        torch.manual_seed(cfg.seed_model * 1_000_003 + self.rank)  # dropout differs between processes

        # optimizer; the scaler does nothing unless dtype is float16
        why_not = 'activation_checkpointing was not tried inside one' if cfg.activation_checkpointing else ''
        micro, step = cfg.batch_size * cfg.block_size, cfg.tokens_per_iter / self.world  # tokens of this process
        self.graphs, self.about_graphs = hardware.graphs(cfg.cuda_graph, self.model, micro, device, self.dtype, why_not)
        self.scaler = torch.amp.GradScaler(device.type, enabled=self.dtype == torch.float16)
        self.optimizer = optim.Optimizer(self.model, cfg, step, self.graphs, self.compile, self.dtype)
        self.hooks = hooks(cfg, device, self.compile, quiet=self.rank > 0)
        self.teacher = next((h.model.weights for h in self.hooks if isinstance(h, distill.Teacher)), '')  # a checksum
        self.other_teacher = False  # resuming, and distill_from has other weights now
        self.wrap()
        if cfg.init_from == 'resume':
            self.restore(ckpt)
        elif moments:
            self.optimizer.load_state_dict(moments)

    def wrap(self):
        """Compile, DDP, CUDA graph, FLOPs per token: all that depends on the model's modules. Called again when these change."""
        self.flops_per_token = self.model.flops_per_token() + sum(hook.flops_per_token for hook in self.hooks)
        self.forward, self.eval_forward = parallel.wrap(self.model, self.device, self.compile)
        self.first_micro_step = self.micro_step = self.forward_backward
        if self.graphs:  # the first graph of a step writes the gradients, the other adds to them
            self.first_micro_step = hardware.Replay(self.afresh)
            self.micro_step = hardware.Replay(
                self.forward_backward, eager=3 * (self.accumulation - 1), beside=self.first_micro_step
            )

    def afresh(self, x, y):
        """forward_backward() of the first micro-batch of a step: its gradients are new tensors, no sums."""
        self.optimizer.zero_grad()
        return self.forward_backward(x, y)

    def forward_backward(self, x, y):
        """Add the gradients of one micro-batch x, y (B, T); returns its loss, a scalar on the device."""
        with self.autocast:
            soft = next((h.soft(x) for h in self.hooks if h.soft), None)
            _, loss = self.forward(x, y, soft=soft)
        self.scaler.scale(loss / self.accumulation).backward()
        return loss.detach()

    def step(self):
        """One optimizer step, and what the hooks do around it. Nothing here waits for the GPU."""
        cfg = self.cfg
        self.optimizer.set_lr(optim.lr_at(cfg, self.iter))
        skip = cfg.on_nan == 'skip'
        before = self.loss_sum.clone() if skip else None
        for micro in range(self.accumulation):
            x, y = self.data['train'].batch(self.position + (micro * self.world + self.rank) * cfg.batch_size)
            parallel.average(self.forward, on=micro == self.accumulation - 1, reshard=self.reshard)
            self.loss_sum += self.micro_step(x, y) if micro else self.first_micro_step(x, y)
        self.loss_count += self.accumulation
        for hook in self.hooks:
            hook.before_update(self.model, self.optimizer, self.iter)
        moved = optim.update(self.optimizer, self.scaler, skip)
        self.skipped = 0 if moved else self.skipped + 1
        if skip and not moved:
            self.loss_sum.copy_(before)
            self.loss_count -= self.accumulation
        self.position += cfg.gradient_accumulation_steps * cfg.batch_size
        self.tokens += cfg.tokens_per_iter
        self.flops += self.flops_per_iter()
        self.iter += 1
        if any([hook.after_update(self.model, self.optimizer, self.iter) for hook in self.hooks]):
            self.wrap()

    def flops_per_iter(self) -> int:
        """FLOPs of the next step on all devices, without what a hook does once. Hooks and a resume change them, so a run adds
        them up step by step."""
        return self.cfg.tokens_per_iter * self.flops_per_token + self.world * self.optimizer.factors.flops_per_update()

    def train_loss(self) -> list[float]:
        """[sum of the losses since the last line of the log, their number], over all processes. Waits for the GPU."""
        return hardware.total(torch.stack([self.loss_sum, self.loss_sum.new_tensor(self.loss_count)])).tolist()

    def take_train_loss(self) -> float | None:
        """Mean loss of the steps since the last call, over all micro-batches; None if all of them were left out."""
        value, count = self.train_loss()
        self.loss_sum, self.loss_count = torch.zeros((), device=self.device), 0
        return value / count if count else None

    @cached_property
    def fingerprint(self) -> dict:
        """{split: [number of tokens, their checksum]} of the data set, which tells it from one that was prepared otherwise."""
        return loader.checksums({split: data.tokens for split, data in self.data.items()})

    @torch.no_grad()
    def evaluate(self, split: str) -> dict:
        """{train_loss} or {val_loss, val_a, val_b} in nats per token: see tokens/losses.py."""

        def loss_of(x, y):
            with self.autocast:
                return self.eval_forward(x, y)[1]

        self.model.eval()
        windows = self.cfg.eval_iters * self.cfg.batch_size
        found = losses.evaluate(loss_of, self.data, split, windows, self.rank, self.world, self.progress)
        self.model.train()
        return found

    def save(self, improved: bool):
        """Write ckpt.pt, best.pt if val loss improved, and a copy for keep_last. With sharded_checkpoints every process writes
        its share instead, except at the end of the run. Every process calls this."""
        if not self.cfg.save_checkpoint or self.cfg.eval_only:
            return
        rng, (loss_sum, loss_count) = hardware.random_states(self.device), self.train_loss()
        self.saved = self.iter
        if self.rank and not parallel.sharded(self.model):
            return
        kept = ('position', 'seconds', 'tokens', 'flops', 'best_iter', 'lowest_a', 'lowest_a_iter')
        resume = {k: getattr(self, k) for k in kept}
        resume |= dict(optimizer=self.optimizer.state_dict(), scaler=self.scaler.state_dict(), rng=rng)
        resume |= dict(transfer=self.history, tokenizer=self.vocabulary, data=self.fingerprint)
        resume |= dict(teacher=self.teacher, began=self.began)
        if 0 <= loss_sum < math.inf:
            resume |= dict(loss_sum=loss_sum, loss_count=int(loss_count))
        config = dataclasses.asdict(self.cfg)
        ckpt = checkpoint.pack(self.model, config, self.iter, self.best_val_loss, self.optimizer.factors, **resume)
        last = self.iter >= self.cfg.max_iters or self.out_of_patience
        if self.cfg.sharded_checkpoints and parallel.sharded(self.model) and not last:
            self.saved_as = f'shards-{self.iter}'
            shares.save(self.out_dir / self.saved_as, ckpt, keep=self.best_iter)
            return
        ckpt, self.saved_as = parallel.gather(ckpt, keep=not self.rank), 'ckpt.pt'
        if self.rank:
            return
        checkpoint.save(self.out_dir / 'ckpt.pt', ckpt)
        if improved:
            files.copy(self.out_dir / 'ckpt.pt', self.out_dir / 'best.pt')
        checkpoint.keep(self.out_dir, self.iter, self.cfg.keep_last)
        shares.clear(self.out_dir, keep={self.best_iter} - {self.iter})

    def restore(self, ckpt: dict):
        """Continue from ckpt as if the run had never stopped. This is exact to the bit on a CPU with as many processes as
        before, and on one GPU with deterministic = True."""
        self.optimizer.load_state_dict(ckpt['optimizer'])
        if self.scaler.is_enabled() and ckpt['scaler']:
            self.scaler.load_state_dict(ckpt['scaler'])
        self.iter, self.position, self.best_val_loss = ckpt['iter_num'], ckpt['position'], ckpt['best_val_loss']
        self.seconds = ckpt.get('seconds', 0.0)
        self.saved, self.best_iter = self.iter, ckpt.get('best_iter', self.iter)  # older checkpoints do not say
        self.lowest_a, self.lowest_a_iter = ckpt.get('lowest_a', math.inf), ckpt.get('lowest_a_iter', self.iter)
        self.best_is_now = 0 < self.iter == ckpt.get('best_iter')
        self.data_before, other_eval = start.other_data(ckpt, self.cfg, self.fingerprint)
        if other_eval:  # losses on two texts do not compare
            self.best_before = self.best_iter, self.best_val_loss
            self.best_val_loss, self.best_iter = math.inf, self.iter
            self.lowest_a, self.lowest_a_iter = math.inf, self.iter
        if ckpt['config'].get('distill_from') == self.cfg.distill_from:
            self.other_teacher = ckpt.get('teacher', self.teacher) != self.teacher
        self.tokens = ckpt.get('tokens', self.iter * checkpoint.tokens_per_iter(ckpt['config']))
        since = self.history['since'] if self.history else 0  # as if all its steps had cost what the next one does
        self.flops = ckpt.get('flops', max(0, self.iter - since) * self.flops_per_iter())
        if not self.rank:
            self.loss_sum.fill_(ckpt.get('loss_sum', 0.0))
            self.loss_count = ckpt.get('loss_count', 0)
        hardware.set_random_state(ckpt['rng'], self.rank, self.device)


def train(cfg, again='go on with --init_from=resume'):
    """A whole run; if transfer_from is a config, the small model is trained first. again: what is printed after an interruption,
    on how to continue."""
    device, rank = hardware.choose_device(cfg.device, cfg.deterministic), hardware.rank_world()[0]
    if cfg.init_from == 'transfer' and cfg.transfer_from.endswith('.py'):
        cfg, small = start.source(cfg, load(TrainConfig, [cfg.transfer_from]))
        if small:
            with hardware.processes(device, cfg.backend, cfg.ddp_timeout):  # one group for both runs
                train(small, again='repeat the command to go on')
                hardware.start_afresh()  # its memory is free for the large model
                return train(cfg, again)
    lock = contextlib.nullcontext() if rank or cfg.eval_only else files.alone(root_path(cfg.out_dir))
    with lock, hardware.processes(device, cfg.backend, cfg.ddp_timeout):
        t = Trainer(start.restarted(cfg, device), device)
        facts = logger.facts(t)
        lines = [] if rank or cfg.eval_only else [logger.take_folder(t)]
        log = logger.Log(t.cfg, t.out_dir, t.meta, facts, start=t.iter, quiet=rank > 0, dry=cfg.eval_only)
        lines += [
            t.about_graphs,
            t.about_reshard,
            *optim.notes(t.cfg, t.iter),
            *t.optimizer.describe(),
            *factors.table(t.model, t.optimizer.factors),
        ]
        lines += [line for hook in t.hooks for line in hook.describe(t.model, t.optimizer)]
        log.head(t.cfg, facts, lines)
        with log.closing(lambda: logger.ending(t)):
            stopped = loop(t, log)
            log.say(logger.kept(t, stopped, again))
    if stopped:
        sys.exit(130)


def loop(t: Trainer, log: logger.Log) -> bool:
    """Train until max_iters or out of patience; True if a signal ended it before, with its checkpoint saved."""
    cfg, interrupt = t.cfg, hardware.Interrupt(quiet=t.rank > 0)  # finish the step, save, leave
    peak = hardware.peak_flops(t.device, t.dtype)
    t.progress = lambda *where: (log.evaluating(*where), interrupt.leave())
    resumed_at = since = t.iter
    flops = t.flops
    t0 = mark = time.time()  # t0, since and flops: start of the interval that the next line of the log times
    while True:
        done = t.iter >= cfg.max_iters
        stop = interrupt.agreed(t.device, ask=done or t.iter % cfg.log_interval == 0)

        # evaluate, and write checkpoints
        if not stop and (t.iter % cfg.eval_interval == 0 or done or cfg.eval_only):
            hardware.sync(t.device)  # steps that are still running count as training
            e0 = time.time()
            t.seconds += e0 - mark
            try:
                found = t.evaluate('train') | t.evaluate('val')
            except hardware.Stopped:  # resuming makes this evaluation again
                stop = True
            else:
                done = after_evaluation(t, log, found, done, save=t.iter > resumed_at)
            mark = time.time()
            log.eval_seconds = mark - e0
            t0 += mark - e0
        if stop and t.saved != t.iter:
            hardware.sync(t.device)
            t.seconds += time.time() - mark
            t.save(improved=False)
        if stop or done or cfg.eval_only:
            t.interrupted = stop
            return stop

        t.step()
        if cfg.on_nan == 'skip' and t.skipped:
            seen = logger.windows(t, 1)
            log.say(f'NOTE: the gradient of iteration {t.iter - 1} is not finite, no update: it saw {seen}')
            if t.skipped == SKIPS:
                check_finite(math.nan, t, t.iter - since)

        if (t.iter - 1) % cfg.log_interval == 0:
            loss = t.take_train_loss()  # waits for the device: a clock read before would time the launches only
            now = time.time()
            ms = (now - t0) * 1000 / (t.iter - since)
            first = since == resumed_at  # holds compilation and warm-up: no speed to report
            if loss is not None:
                log.train(
                    iter=t.iter - 1,
                    loss=loss,
                    lr=optim.lr_at(cfg, t.iter - 1),
                    grad_norm=None if t.skipped else t.optimizer.grad_norm.item(),
                    ms=None if first else ms,
                    tokens_per_s=None if first else cfg.tokens_per_iter / ms * 1000,
                    mfu=(t.flops - flops) / t.world / (now - t0) / peak if peak and not first else None,
                )
                check_finite(loss, t, t.iter - since)
            if first:
                gc.collect()
                gc.freeze()  # what exists now lives to the end: no half-second pauses to look through it
                gc.enable()
                now = time.time()
            t0, since, flops = now, t.iter, t.flops  # writing a line is part of the next interval


def after_evaluation(t: Trainer, log: logger.Log, found: dict, done: bool, save: bool) -> bool:
    """Log an evaluation, found = {train_loss, val_loss, val_a, val_b}, and write the checkpoints that are due. save: whether this
    iteration has no checkpoint yet. Returns whether the run is at its end: done, or out of patience. Raises Diverged."""
    cfg = t.cfg
    log.metrics(kind='eval', iter=t.iter, **found, tokens=t.tokens, flops=t.flops, seconds=t.seconds)
    log.say(f'step {t.iter}: train loss {found["train_loss"]:.4f}, val loss {found["val_loss"]:.4f}')
    check_finite(found['val_loss'], t)
    improved = found['val_loss'] < t.best_val_loss
    if improved:
        t.best_val_loss, t.best_iter = found['val_loss'], t.iter
    if found['val_a'] < t.lowest_a:
        t.lowest_a, t.lowest_a_iter = found['val_a'], t.iter
    if not done and 0 < cfg.patience <= t.iter - t.lowest_a_iter:
        done = t.out_of_patience = True
        log.say(f'no lower val_a than that of iteration {t.lowest_a_iter}: the end (patience = {cfg.patience})')
    # a lower loss is kept even where nothing else is new: the run was interrupted in this evaluation, or it starts from
    # weights that were trained, which may stay its best
    if improved and (t.iter or cfg.init_from != 'scratch') or save and (done or cfg.always_save_checkpoint):
        t.save(improved)
    return done


def check_finite(loss: float, t: Trainer, steps: int = 0):
    """Raises Diverged if the loss is NaN or infinite. steps: the number of training steps that it is the mean of; 0: it comes
    from an evaluation."""
    if not math.isfinite(loss):
        path = t.out_dir / 'ckpt.pt'
        kept = f'the last good checkpoint is {path}' if path.exists() else 'no checkpoint was written yet'
        seen = f'; it saw {logger.windows(t, steps)}' if steps else ''
        rates = 'learning_rate or grad_clip' if t.cfg.optimizer == 'adamw' else 'matrix_lr or learning_rate'
        raise Diverged(f'the loss is {loss} at iteration {t.iter}: lower {rates}; {kept}{seen}')


def main():
    gc.disable()  # up to the first step: the compiler makes much and drops little
    try:
        train(load(TrainConfig, sys.argv[1:]))
    finally:
        gc.enable()


if __name__ == '__main__':
    run(main)
