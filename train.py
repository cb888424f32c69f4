"""
Train a GPT, plain or with expanded linear layers.

    python train.py config/expansive_shakespeare.py                              one device, whatever there is
    python train.py config/expansive_shakespeare.py --max_iters=500 --seed_model=2
    torchrun --standalone --nproc_per_node=4 train.py config/expansive_shakespeare.py
    python train.py config/expansive_shakespeare.py --init_from=resume           go on exactly where it stopped
    python train.py config/grow_shakespeare.py                                   train a small model, grow it, go on

Exit codes: 0 done, 2 a mistake in config or data, 3 the loss diverged, 130 interrupted (after saving).
"""

import dataclasses
import gc
import math
import signal
import sys
import time
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel as DDP

import checkpoint
import files
import hardware
from configurator import Diverged, UserError, key, load, overrides, root_path, run
from linear import factors
from logger import Log
from model import GPT, GPTConfig
from optim import Optimizer, lr_at
from surgery import distill, reader, rotate, start
from surgery.grow import growth
from tokens import loader


@dataclass
class TrainConfig(GPTConfig):
    vocab_size: int = key(0, "vocabulary of the model; 0: the data set's", low=0)
    bias: bool = key(False, 'bias in linear layers and LayerNorms, as GPT-2; false is a bit better and faster')
    out_dir: str = key('out', 'where checkpoints and logs go', group='run and output')
    eval_interval: int = key(2000, 'iterations between evaluations, each followed by a checkpoint', low=1)
    log_interval: int = key(1, 'iterations between lines of the log', low=1)
    eval_iters: int = key(200, 'batches per evaluation, the same for every run; 0: the whole split', low=0)
    patience: int = key(
        0, 'end where this many iterations brought no lower val loss, for data that will be overfitted; 0: never', low=0
    )
    eval_only: bool = key(False, 'evaluate once and exit')
    always_save_checkpoint: bool = key(True, 'write ckpt.pt after each evaluation; false: only if val loss improved')
    save_checkpoint: bool = key(True, 'false: write no checkpoint at all, only the log; for runs of minutes')
    init_from: str = key(
        'scratch',
        "scratch, resume (out_dir's ckpt.pt), transfer (grow a small model), a checkpoint, a Hugging Face GPT-2 folder,"
        ' gpt2 ... gpt2-xl',
    )
    transfer_from: str = key(
        '',
        'transfer: checkpoint of the small model, or the config that trains it first',
        group='init_from = transfer: growing a small model',
    )
    transfer_method: str = key('', 'transfer: how it grows, such as clone or clone+stack; see growth.py')
    transfer_noise: float = key(0.0, 'transfer: paired noise over the size of the weights, to tell copies apart', low=0)
    transfer_moments: str = key(
        'auto',
        "transfer: Adam's moments grow with the weights (move) or start anew (fresh); auto: move where that is known",
        choices=('auto', 'move', 'fresh'),
    )
    distill_from: str = key(
        '', 'checkpoint of a model whose logits the loss follows too; empty: none', group='distillation'
    )
    distill_weight: float = key(
        0.5, 'distill_from: weight of the divergence from it; cross-entropy has the rest', above=0, high=1
    )
    note: str = key('', 'printed at the start; config files say here which preset they chose', group='notes and wandb')
    wandb_log: bool = key(False, 'log to wandb as well')
    wandb_project: str = key('owt', 'wandb project')
    wandb_run_name: str = key('gpt2', 'wandb run name')
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
    weight_decay: float = key(1e-1, 'AdamW decay of matrices', low=0)
    beta1: float = key(0.9, 'AdamW', low=0, high=0.99999)
    beta2: float = key(0.95, 'AdamW', low=0, high=0.99999)
    grad_clip: float = key(1.0, 'largest norm of the gradient of the matrices the network computes with; 0: off', low=0)
    expansion_schedule: str = key(
        'all',
        'expanded layers: all of them, one after the other (rotate), or none, with the restarts of rotate (reset)',
        choices=('all', 'rotate', 'reset'),
        group='linear = expanded, which layers at which iteration: see surgery/rotate.py',
    )
    expansion_every: int = key(100, 'rotate, reset: iterations until the next layer', low=1)
    expansion_moments: str = key(
        'reset',
        "rotate: Adam's moments of the two layers that change start anew (reset) or are carried over (map)",
        choices=('reset', 'map'),
    )
    decay_lr: bool = key(
        True, 'follow the schedule; false: constant learning_rate, no warmup', group='schedule of the learning rate'
    )
    schedule: str = key('cosine', 'shape of the decay (wsd: warmup, stable, decay)', choices=('cosine', 'wsd'))
    warmup_iters: int = key(2000, 'steps of linear warmup', low=0)
    lr_decay_iters: int = key(600000, 'step at which min_lr is reached; about max_iters', low=0)
    wsd_decay_iters: int = key(60000, 'wsd: length of the final linear decay', low=0)
    min_lr: float = key(6e-5, 'final learning rate; about learning_rate / 10', low=0)
    device: str = key('auto', 'cuda, cuda:1, cpu, mps; auto: the best there is', group='device and speed')
    backend: str = key('auto', 'of torchrun processes: nccl on GPUs, gloo on CPUs', choices=('auto', 'nccl', 'gloo'))
    dtype: str = key(
        'auto',
        'precision of matrix products; auto: bfloat16 on a GPU that has it (else float16), float32 elsewhere',
        choices=('auto', 'float32', 'bfloat16', 'float16'),
    )
    compile: bool | None = key(None, 'torch.compile; none: on CUDA')
    cuda_graph: bool = key(
        False, 'replay the step as CUDA graphs: faster for models that leave the GPU idle; one process'
    )

    GROUPS = (  # what --help shows first
        'run and output',
        'data',
        'size of the model',
        'optimizer',
        'schedule of the learning rate',
        'architecture',
        'device and speed',
    )

    @property
    def tokens_per_step(self):
        return self.batch_size * self.block_size * self.gradient_accumulation_steps / hardware.rank_world()[1]

    def idle(self):
        off = dict(
            all=('expansion_every', 'expansion_moments'),
            rotate=(),
            reset=('expansion', 'expansion_depth', 'expansion_init', 'expansion_decay', 'expansion_lr', 'linear_path'),
        )[self.expansion_schedule]
        return super().idle() | {k: v for k, v in overrides(self).items() if k in off}

    def problems(self, sized=None):
        """sized: whether the model's sizes are known already; those of a checkpoint are not before it is read."""
        sized, world = self.init_from in ('scratch', 'transfer') if sized is None else sized, hardware.rank_world()[1]
        found = (super().problems() or rotate.problems(self)) if sized else []  # the latter looks at the layers
        if self.gradient_accumulation_steps % world:
            found.append(
                f'gradient_accumulation_steps = {self.gradient_accumulation_steps}: must be divisible by the number of'
                f' processes ({world})'
            )
        if not self.out_dir:
            found.append('out_dir: must name a folder, such as out/x')
        if self.cuda_graph and world > 1:
            found.append(f'cuda_graph = True: needs a single process, this is one of {world}')
        if self.init_from == 'transfer':
            missing = [k for k in ('transfer_from', 'transfer_method') if not getattr(self, k)]
            found += [f"{k}: must be given, for init_from = 'transfer'" for k in missing]
        elif self.init_from != 'resume' and (given := [k for k in overrides(self) if k.startswith('transfer_')]):
            found.append(f"init_from = '{self.init_from}': {', '.join(given)} go with init_from = 'transfer'")
        if not self.distill_from and 'distill_weight' in overrides(self):
            found.append(f'distill_weight = {self.distill_weight:g}: goes with distill_from')
        if self.decay_lr:
            if self.min_lr > self.learning_rate:
                found.append(f'min_lr = {self.min_lr:g}: must be at most learning_rate ({self.learning_rate:g})')
            if self.warmup_iters > self.lr_decay_iters:
                found.append(
                    f'warmup_iters = {self.warmup_iters}: must be at most lr_decay_iters ({self.lr_decay_iters})'
                )
            if self.schedule == 'wsd' and self.wsd_decay_iters + self.warmup_iters > self.lr_decay_iters:
                found.append(
                    f'wsd_decay_iters = {self.wsd_decay_iters}: with warmup_iters ({self.warmup_iters}) must be at most'
                    f' lr_decay_iters ({self.lr_decay_iters})'
                )
        return found


def padded_vocabulary(meta: dict) -> int:
    """The data set's vocabulary, a large one rounded up to a multiple of 64 for speed: 50257 -> 50304."""
    n = meta.get('vocab_size', 50304)
    return n if n < 1024 else math.ceil(n / 64) * 64


class Trainer:
    """Everything between two steps: model, optimizer, data and where in it we are. bench.py times the same step()."""

    def __init__(self, cfg, device: torch.device):
        self.device, self.dtype = device, hardware.choose_dtype(cfg.dtype, device)
        self.rank, self.world = hardware.rank_world()
        self.out_dir = root_path(cfg.out_dir)
        self.accumulation = cfg.gradient_accumulation_steps // self.world  # micro-batches of this process
        self.iter, self.position, self.best_val_loss, self.best_iter = 0, 0, math.inf, 0
        self.seconds = 0.0  # spent training, without evaluations
        self.out_of_patience, self.halves = False, []
        self.loss_sum, self.loss_count = torch.zeros((), device=device), 0
        self.autocast = hardware.autocast(device, self.dtype)
        torch.set_float32_matmul_precision('high')  # TF32: for the products of factors too; bf16 follows anyway

        # data; one process prepares what is missing
        if self.rank == 0:
            loader.prepare(cfg.dataset)
        if self.world > 1:
            dist.barrier()
        self.meta = loader.read_meta(cfg.dataset)
        ckpt = None
        if cfg.init_from != 'scratch':
            path = dict(resume=self.out_dir / 'ckpt.pt', transfer=cfg.transfer_from).get(cfg.init_from, cfg.init_from)
            ckpt = reader.load(path)
            if cfg.init_from != 'transfer':
                cfg = start.take_model_keys(cfg, ckpt, path)
        if not cfg.vocab_size:
            cfg = dataclasses.replace(cfg, vocab_size=padded_vocabulary(self.meta))
        if cfg.init_from == 'transfer':
            cfg = growth.prepare(cfg, ckpt)
        if found := cfg.problems(sized=True):
            raise UserError('\n'.join(found))
        self.cfg = cfg
        data = (cfg.block_size, cfg.batch_size, cfg.vocab_size, device, cfg.data_order, cfg.seed_data)
        self.data = {split: loader.Loader(cfg.dataset, split, *data) for split in ('train', 'val')}

        # model
        torch.manual_seed(cfg.seed_model)
        self.model = GPT(rotate.model_config(cfg, ckpt['iter_num'] if cfg.init_from == 'resume' else 0))
        moments, self.transfer = None, ckpt.get('transfer') if cfg.init_from == 'resume' else None
        if cfg.init_from == 'transfer':
            moments, self.transfer = growth.start(self.model, cfg, ckpt, self.data['train'], self.rank > 0)
            same = [ckpt['config'].get(k) == getattr(cfg, k) for k in ('dataset', 'block_size', 'seed_data')]
            self.position = ckpt.get('position', 0) if all(same) else 0  # data that the small model has not seen
        elif ckpt:
            factors.load_state(self.model, ckpt['model'])
        self.model.to(device)
        if self.world > 1:  # every process computes the factors' gradients itself, from the same W.grad
            for _, p, *_ in factors.leaves(self.model):
                dist.broadcast(p.data, 0)
        torch.manual_seed(cfg.seed_model * 1_000_003 + self.rank)  # dropout differs between processes

        # the scaler does nothing unless dtype is float16
        if cfg.cuda_graph and device.type != 'cuda':
            raise UserError(f'cuda_graph = True: needs a CUDA device, this is {device.type}; --cuda_graph=false')
        self.scaler = torch.amp.GradScaler(device.type, enabled=self.dtype == torch.float16)
        self.wrap()
        if cfg.init_from == 'resume':
            self.restore(ckpt)
        elif moments:
            self.optimizer.load_state_dict(moments)

    def wrap(self):
        """Optimizer, compiled forward, DDP."""
        cfg, device = self.cfg, self.device
        compiled = cfg.compile if cfg.compile is not None else device.type == 'cuda'
        self.make_optimizer = lambda: Optimizer(self.model, cfg, cfg.cuda_graph, compiled, self.dtype)
        self.optimizer = self.make_optimizer()
        self.forward = torch.compile(self.model, fullgraph=True) if compiled else self.model
        self.eval_forward = self.forward
        self.teacher = distill.open_teacher(cfg, device) if cfg.distill_from else None
        if self.teacher:
            self.teach = torch.compile(self.teacher, fullgraph=True) if compiled else self.teacher
        if self.world > 1:
            ids = [device.index] if device.type == 'cuda' else None
            self.forward = DDP(self.forward, device_ids=ids, gradient_as_bucket_view=True)
        self.micro_step = hardware.Replay(self.forward_backward) if cfg.cuda_graph else self.forward_backward

    def forward_backward(self, x, y):
        """Add the gradients of one micro-batch; returns its loss."""
        with self.autocast:
            soft = None
            if self.teacher:
                with torch.no_grad():
                    soft = self.teach(x, last_only=False)[0], self.cfg.distill_weight
            _, loss = self.forward(x, y, soft=soft)
        self.scaler.scale(loss / self.accumulation).backward()
        return loss.detach()

    def step(self):
        """One optimizer step. Nothing here waits for the GPU."""
        cfg = self.cfg
        self.optimizer.set_lr(lr_at(cfg, self.iter))
        for micro in range(self.accumulation):
            x, y = self.data['train'].batch(self.position + (micro * self.world + self.rank) * cfg.batch_size)
            if self.world > 1:  # average gradients over processes at the last micro-batch only
                self.forward.require_backward_grad_sync = micro == self.accumulation - 1
            self.loss_sum += self.micro_step(x, y)
        self.loss_count += self.accumulation
        if cfg.guide_iters:  # the matrices that the optimizer forms are those of the next iteration
            factors.guide(self.model, 0.5 * (1 + math.cos(math.pi * min(1, (self.iter + 1) / cfg.guide_iters))))
        self.scaler.unscale_(self.optimizer)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad()
        self.position += cfg.gradient_accumulation_steps * cfg.batch_size
        self.iter += 1
        if cfg.guide_iters and self.iter >= cfg.guide_iters:
            self.let_go()
        if rotate.due(cfg, self.iter):
            rotate.turn(self)

    def let_go(self):
        """The guides have faded out: go on without them, with the moments of what is left."""
        moments, norm = self.optimizer.state_dict(), self.optimizer.grad_norm
        factors.let_go(self.model)
        self.cfg = dataclasses.replace(self.cfg, guide_iters=0)
        self.wrap()
        self.optimizer.grad_norm = norm
        self.optimizer.load_state_dict({name: moments[name] for name in self.optimizer.names})

    def take_train_loss(self) -> float:
        """Mean loss of the steps since the last call, over all micro-batches and processes. Waits for the GPU."""
        value = hardware.total(torch.stack([self.loss_sum, torch.tensor(float(self.loss_count), device=self.device)]))
        self.loss_sum, self.loss_count = torch.zeros((), device=self.device), 0
        return (value[0] / value[1]).item()

    @torch.no_grad()
    def evaluate(self, split: str) -> float:
        """Mean loss in nats per token on fixed windows; of the training split as many as val has. Of val the two halves
        stay in self.halves: one to choose learning rates by, one for figures that no choice has seen."""
        if split == 'val':
            parts = [self.sum_losses(split, self.cfg.eval_iters * self.cfg.batch_size, half) for half in (0, 1)]
            self.halves = [loss / n if n else None for loss, n in parts]
            return sum(loss for loss, _ in parts) / sum(n for _, n in parts)
        windows = self.cfg.eval_iters * self.cfg.batch_size
        n = max(1, (len(self.data['val'].tokens) - 1) // self.cfg.block_size)
        loss, n = self.sum_losses(split, min(windows, n) if windows else n)
        return loss / n

    def sum_losses(self, split: str, windows: int, half=None) -> tuple[float, float]:
        """(sum of the losses, tokens) over these windows, of all processes."""
        sums = torch.zeros(2, device=self.device, dtype=torch.float32 if self.device.type == 'mps' else torch.float64)
        self.model.eval()
        for x, y, n in self.data[split].eval_batches(windows, self.rank, self.world, half):
            with self.autocast:
                _, loss = self.eval_forward(x, y)
            sums += torch.stack([loss * n, torch.tensor(float(n), device=self.device)])
        self.model.train()
        return tuple(hardware.total(sums).tolist())

    def save(self, improved: bool):
        """ckpt.pt, and best.pt if val loss improved."""
        if not self.cfg.save_checkpoint:
            return
        cuda = self.device.type == 'cuda'
        mine = [torch.get_rng_state(), torch.cuda.get_rng_state() if cuda else None]
        states = [mine] * self.world
        if self.world > 1:
            dist.all_gather_object(states, mine)
        if self.rank:
            return
        ckpt = checkpoint.pack(
            self.model,
            dataclasses.asdict(self.cfg),
            self.iter,
            self.best_val_loss,
            optimizer=self.optimizer.state_dict(),
            position=self.position,
            seconds=self.seconds,
            best_iter=self.best_iter,
            scaler=self.scaler.state_dict(),
            rng=dict(cpu=[s[0] for s in states], cuda=[s[1] for s in states]),
            transfer=self.transfer,
        )
        checkpoint.save(self.out_dir / 'ckpt.pt', ckpt)
        if improved:
            files.copy(self.out_dir / 'ckpt.pt', self.out_dir / 'best.pt')
        elif not self.best_iter:  # nothing was better than the start so far: what lies there is another run's
            (self.out_dir / 'best.pt').unlink(missing_ok=True)

    def restore(self, ckpt: dict):
        """Go on as if there had been no interruption: bit-exact on a CPU, with the same number of processes."""
        if 'optimizer' not in ckpt or 'position' not in ckpt:
            raise UserError(
                f'{self.out_dir / "ckpt.pt"} has weights but no optimizer state to resume from; to start from its'
                f' weights: --init_from={self.cfg.out_dir}/ckpt.pt and another --out_dir'
            )
        self.optimizer.load_state_dict(ckpt['optimizer'])
        if self.scaler.is_enabled() and ckpt['scaler']:
            self.scaler.load_state_dict(ckpt['scaler'])
        self.iter, self.position, self.best_val_loss = ckpt['iter_num'], ckpt['position'], ckpt['best_val_loss']
        self.seconds = ckpt.get('seconds', 0.0)
        self.best_iter = ckpt.get('best_iter', self.iter)  # older ones do not say
        if self.rank < len(ckpt['rng']['cpu']):
            torch.set_rng_state(ckpt['rng']['cpu'][self.rank])
            if self.device.type == 'cuda' and ckpt['rng']['cuda'][self.rank] is not None:
                torch.cuda.set_rng_state(ckpt['rng']['cuda'][self.rank])


def train(cfg):
    if cfg.init_from == 'transfer' and cfg.transfer_from.endswith('.py'):
        small = load(TrainConfig, [cfg.transfer_from])
        cfg = dataclasses.replace(cfg, transfer_from=start.train_source(cfg, small, train))
    device = hardware.choose_device(cfg.device)
    with hardware.processes(device, cfg.backend):
        t = Trainer(cfg, device)
        cfg = t.cfg  # vocabulary and, on resuming, architecture are now known
        tokens_per_iter = cfg.gradient_accumulation_steps * cfg.batch_size * cfg.block_size
        flops_per_token = t.model.flops_per_token() + distill.teacher_flops(cfg)
        flops = tokens_per_iter * flops_per_token + t.world * t.model.flops_per_update()
        peak = hardware.peak_flops(device, t.dtype)
        facts = dict(
            device=hardware.device_name(device),
            processes=t.world,
            dtype=str(t.dtype).removeprefix('torch.'),
            attention=hardware.attention_backend(t.model, device, t.dtype),
            seed_model=cfg.seed_model,
            seed_data=cfg.seed_data,
            data_edition=t.meta.get('edition'),
            params=t.model.num_params(),
            params_collapsed=t.model.num_params_collapsed(),
            tokens_per_iter=tokens_per_iter,
            flops_per_token=flops_per_token,
            flops_per_update=t.model.flops_per_update(),
            peak_flops=peak,
            transfer=t.transfer,
        )
        log = Log(cfg, t.out_dir, t.meta, facts, start=t.iter, quiet=t.rank > 0)
        if cfg.note:
            log.say(cfg.note)
        log.say('config: ' + ', '.join(f'{k}={v}' for k, v in overrides(cfg).items() if k != 'note'))
        if idle := cfg.idle():
            keys = ', '.join(f'{k} = {v}' for k, v in idle.items())
            log.say(f'NOTE: without effect here: {keys} (linear = {cfg.linear}, mlp = {cfg.mlp})')
        log.say(
            f'{facts["params"] / 1e6:.2f}M parameters'
            + (f' ({facts["params_collapsed"] / 1e6:.2f}M collapsed)' if cfg.linear != 'dense' else '')
            + f', {tokens_per_iter:,} tokens and {flops / 1e12:.4g} TFLOP per iteration on {facts["device"]}'
            + f' x {t.world}, {facts["dtype"]}, attention {facts["attention"]}'
        )
        for line in factors.table(t.model) + rotate.describe(cfg, t.model):
            log.say(line)
        try:
            stopped = loop(t, log, flops / t.world, peak, tokens_per_iter)
        finally:
            log.close(
                peak_memory=hardware.peak_memory(device, graphs=cfg.cuda_graph),
                final_iter=t.iter,
                best_val_loss=t.best_val_loss if t.best_val_loss < math.inf else None,
                **dict(out_of_patience=True) if t.out_of_patience else {},
            )
    if stopped:
        sys.exit(130)


def loop(t, log, flops: float, peak: float | None, tokens_per_iter: int) -> bool:
    """Train to max_iters, or out of patience; True if a signal stopped it before (its checkpoint is saved)."""
    cfg, interrupted = t.cfg, []
    for s in (signal.SIGINT, signal.SIGTERM):  # finish the step, save, leave; a second signal kills
        signal.signal(s, lambda *_, s=s: (interrupted.append(s), signal.signal(s, signal.SIG_DFL)))
    resumed_at = since = t.iter
    t0 = mark = time.time()  # t0 and since: start of the interval that the next line of the log times
    while True:
        done = t.iter >= cfg.max_iters
        stop = bool(interrupted)
        if t.world > 1 and (done or t.iter % cfg.log_interval == 0):  # all processes leave at the same iteration
            stop = bool(hardware.total(torch.tensor(float(stop), device=t.device)).item())
        elif t.world > 1:
            stop = False

        # evaluate, and write checkpoints
        if t.iter % cfg.eval_interval == 0 or done or cfg.eval_only:
            e0 = time.time()
            t.seconds += e0 - mark
            losses = {split: t.evaluate(split) for split in ('train', 'val')}
            log.metrics(
                kind='eval',
                iter=t.iter,
                train_loss=losses['train'],
                val_loss=losses['val'],
                **dict(zip(('val_a', 'val_b'), t.halves)),
                tokens=t.iter * tokens_per_iter,
                seconds=t.seconds,
            )
            log.say(f'step {t.iter}: train loss {losses["train"]:.4f}, val loss {losses["val"]:.4f}')
            check_finite(losses['val'], t)
            improved = losses['val'] < t.best_val_loss
            if improved:
                t.best_val_loss, t.best_iter = losses['val'], t.iter
            if not done and 0 < cfg.patience <= t.iter - t.best_iter:
                done = t.out_of_patience = True
                log.say(f'no lower val loss than that of iteration {t.best_iter}: the end (patience = {cfg.patience})')
            if not cfg.eval_only and t.iter > resumed_at and (improved or done or cfg.always_save_checkpoint):
                t.save(improved)
            mark = time.time()
            t0 += mark - e0
        if done or stop or cfg.eval_only:
            if stop and not done:
                t.seconds += time.time() - mark
                t.save(improved=False)
                saved = f'saved {t.out_dir / "ckpt.pt"} at iteration {t.iter}; go on with --init_from=resume'
                log.say(f'interrupted: {saved if cfg.save_checkpoint else "nothing saved (save_checkpoint = False)"}')
            return stop and not done

        t.step()

        if (t.iter - 1) % cfg.log_interval == 0:
            loss = t.take_train_loss()
            ms = (time.time() - t0) * 1000 / (t.iter - since)
            first = since == resumed_at  # holds compilation and warm-up: no speed to report
            log.train(
                t.iter,
                iter=t.iter - 1,
                loss=loss,
                lr=lr_at(cfg, t.iter - 1),
                grad_norm=t.optimizer.grad_norm.item(),
                ms=None if first else ms,
                tokens_per_s=None if first else tokens_per_iter / ms * 1000,
                mfu=flops / ms * 1000 / peak if peak and not first else None,
            )
            check_finite(loss, t)
            if first:
                gc.collect()
                gc.freeze()  # what exists now lives to the end: no half-second pauses to look through it
            t0, since = time.time(), t.iter


def check_finite(loss: float, t):
    if not math.isfinite(loss):
        kept = t.out_dir / 'ckpt.pt'
        kept = f'the last good checkpoint is {kept}' if kept.exists() else 'no checkpoint was written yet'
        raise Diverged(f'the loss is {loss} at iteration {t.iter}: lower learning_rate or grad_clip; {kept}')


def main():
    train(load(TrainConfig, sys.argv[1:]))


if __name__ == '__main__':
    run(main)
