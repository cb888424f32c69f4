"""
The record of a run in its out_dir, one format for every script that trains:

    config.json    every key, resolved
    manifest.json  what ran where: command, git commit, seeds, versions, device, attention kernel, peak memory
    metrics.jsonl  one line per event: {"kind": "train", "iter", "loss", "lr", "grad_norm", "ms", "tokens_per_s", "mfu"}
                   and {"kind": "eval", "iter", "train_loss", "val_loss", "val_a", "val_b" (its halves), "tokens", "flops",
                   "seconds"}, these three summed over all steps so far, those before a resume included
    meta.json      the vocabulary (with tokenizer.json, if it was trained), to sample a checkpoint without its data set

A new run in a folder that holds one moves it to earlier-1/ (-2/, ...). The terminal gets a progress bar, anything else
(a pipe, a file) plain lines. wandb gets the same values when asked.
"""

import dataclasses
import itertools
import json
import math
import os
import shlex
import shutil
import subprocess
import sys
import time
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import torch
from tqdm import tqdm

import checkpoint
import hardware
from configurator import ROOT, UserError, brief, key, overrides, printable
from files import copy, launched, read_json, read_lines, remove_stale, write, write_json, write_lines
from tokens.loader import data_dir

RECORD = (  # of a run in its out_dir
    'ckpt.pt', 'best.pt', 'ckpt.json', 'config.json', 'manifest.json', 'metrics.jsonl', 'meta.json', 'tokenizer.json', 'eval.json',
)  # fmt: skip

# the shapes (files.misfit) of what is read back; a loss is NaN where a run diverged
LINE = (
    {'kind': {'train'}, 'iter': int, 'loss': float, 'ms?': (float, None)},
    {'kind': {'eval'}, 'iter': int, 'val_loss': float, str: (float, str)},
)
CONFIG = {'max_iters': int, 'learning_rate?': float}
MANIFEST = {'device?': str, 'started?': str, 'finished?': str, 'params?': int, 'params_collapsed?': int, 'final_iter?': int,
            'out_of_patience?': bool, 'interrupted?': bool, 'transfer?': (dict, None), 'resumed?': [dict], 'wandb?': str, 'launch?': str}  # fmt: skip

STARTING, FINISHING = 30, 120  # seconds that wandb may take; what it could not send stays in out_dir/wandb


@dataclass
class Keys:
    """What is said of a run beside its losses."""

    note: str = key('', 'printed at the start; config files say here which preset they chose', group='notes and wandb')
    wandb_log: bool = key(
        False, f'log to wandb as well; its server is waited for {STARTING} s at the start, {FINISHING} s at the end'
    )
    wandb_project: str = key('owt', 'wandb project')
    wandb_run_name: str = key('gpt2', 'wandb run name')


def git(*args) -> str:
    try:
        return subprocess.run(
            ['git', '-C', str(ROOT), *args], capture_output=True, text=True, timeout=10
        ).stdout.strip()
    except (OSError, subprocess.TimeoutExpired):
        return ''


def commit() -> str:
    """The commit that runs; NANOMORPH_COMMIT says it where the code was copied without its repository, or over another."""
    return os.environ.get('NANOMORPH_COMMIT') or git('rev-parse', '--verify', '-q', 'HEAD') or 'unknown'


def dirty() -> bool:
    """Whether other code runs than that of commit()."""
    return 'NANOMORPH_COMMIT' not in os.environ and bool(git('status', '--porcelain'))


def relative(value):
    """A text, or texts in dicts and lists, with the paths of this repository made relative: a record must not depend on the
    machine that made it."""
    if isinstance(value, dict):
        return {k: relative(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [relative(v) for v in value]
    return value.replace(f'{ROOT}/', '') if isinstance(value, str) else value


def read_metrics(out_dir: Path) -> list[dict]:
    """The lines of metrics.jsonl; a half-written last line (a crash) is left out, see files.read_lines."""
    return read_lines(out_dir / 'metrics.jsonl', LINE)


def make_room(out_dir: Path) -> str:
    """Move the record of an earlier run to out_dir/earlier-N, a folder like any run's; what to say of it. A run that
    compare.py starts again in its own folder, because it broke, is the same one: there only checkpoints go."""
    more = sorted([p for kind in ('ckpt-*.pt', 'best-*.pt', 'shards-*') for p in out_dir.glob(kind)])
    found = [p for p in [*(out_dir / name for name in RECORD), *more] if p.exists()]
    try:
        if launched(out_dir):
            for path in found:
                if path.is_dir():
                    shutil.rmtree(path)
                elif path.suffix == '.pt':
                    path.unlink()
            return ''
        if not found:
            return ''
        aside = next(p for n in itertools.count(1) if not (p := out_dir / f'earlier-{n}').exists())
        aside.mkdir()
        for path in found:  # checkpoints first: whatever happens, none is left for this run to go on from
            os.replace(path, aside / path.name)
    except OSError as e:
        raise UserError(f"out_dir = '{out_dir}': {e.strerror}; choose another --out_dir") from None
    return f'{relative(str(out_dir))} held another run, which is now in {relative(str(aside))}'


def facts(t) -> dict:
    """What the manifest says at the start of a Trainer's run. The costs are those of the first step here; ending() has the
    FLOPs of all steps."""
    beside = t.optimizer.factors
    return dict(
        device=hardware.device_name(t.device),
        processes=t.world,
        **dict(launch=name) if (name := hardware.launch()) else {},
        dtype=str(t.dtype).removeprefix('torch.'),
        attention=hardware.attention_backend(t.model, t.device, t.dtype),
        seed_model=t.cfg.seed_model,
        seed_data=t.cfg.seed_data,
        data_edition=t.meta.get('edition'),
        data=t.fingerprint,
        params=t.model.num_params(beside),
        params_collapsed=t.model.num_params_collapsed(beside),
        tokens_per_iter=t.cfg.tokens_per_iter,
        flops_per_token=t.flops_per_token,
        flops_per_update=beside.flops_per_update(),
        peak_flops=hardware.peak_flops(t.device, t.dtype),
        transfer=t.history,
    )


def ending(t) -> dict:
    """What the manifest says at the end of a Trainer's run."""
    return dict(
        peak_memory=hardware.peak_memory(t.device, graphs=t.graphs),
        final_iter=t.iter,
        flops=t.flops,
        best_val_loss=t.best_val_loss if t.best_val_loss < math.inf else None,
        **dict(out_of_patience=True) if t.out_of_patience else {},
        **dict(interrupted=True) if t.interrupted else {},
    )


def take_folder(t) -> str:
    """Prepare the out_dir of a Trainer for a run that begins or goes on. Returns what to say of it."""
    remove_stale(t.out_dir)
    if t.cfg.init_from != 'resume':
        return make_room(t.out_dir)
    best, note = t.out_dir / 'best.pt', ''
    back = any(m['kind'] == 'eval' and m['iter'] > t.iter for m in read_metrics(t.out_dir))
    if back and best.exists() and t.cfg.save_checkpoint and (it := checkpoint.load(best)['iter_num']) != t.best_iter:
        os.replace(best, t.out_dir / f'best-{it}.pt')  # somebody has put an earlier ckpt.pt there
        note = f'NOTE: best.pt is of iteration {it}, which this run has not seen: it is best-{it}.pt now'
    if t.best_is_now and t.cfg.save_checkpoint and t.saved_as == 'ckpt.pt':
        copy(t.out_dir / 'ckpt.pt', t.out_dir / 'best.pt')  # a kill between the two writes left an older one
    over = f': the end, max_iters = {t.cfg.max_iters}; a larger one goes on' if t.iter >= t.cfg.max_iters else ''
    lines = [f'resuming {relative(str(t.out_dir))} from iteration {t.iter}{over}', *filter(None, [note])]
    if t.data_before:
        now = {split: tokens for split, (tokens, _) in t.fingerprint.items()}
        same = ', as many' if now == t.data_before else f' ({now}, it had {printable(brief(t.data_before))})'
        lines.append(
            f'NOTE: {t.cfg.dataset} has other tokens than before{same}: its window {t.position:,}, where this run is, is'
            ' another one now, and what was seen may come again'
        )
    if t.other_teacher:
        lines.append(
            f'NOTE: {relative(t.cfg.distill_from)} has other weights than before: the loss follows another teacher from here on'
        )
    if t.best_before:
        it, loss = t.best_before
        text = f'NOTE: evaluations see other text than before: the lowest val loss, {loss:.4f} until now, counts anew'
        if (t.out_dir / 'best.pt').exists() and t.cfg.save_checkpoint:
            os.replace(t.out_dir / 'best.pt', t.out_dir / f'best-{it}.pt')
            text += f'; best.pt of before is best-{it}.pt'
        lines.append(text)
    return '\n'.join(lines)


def size(n: int) -> str:
    return f'{n / 1e6:.2f}M' if n >= 1e6 else f'{n:,}'


def kept(t, stopped: bool, again='go on with --init_from=resume') -> str:
    """Which checkpoints there are at the end."""
    head = 'interrupted: ' if stopped else ''
    if t.cfg.eval_only or not t.cfg.save_checkpoint or t.saved is None:
        why = ' (save_checkpoint = False)' if not t.cfg.save_checkpoint else ''
        return f'{head}nothing saved{why}' if not t.cfg.eval_only else ''
    text = f'{head}saved {relative(str(t.out_dir / t.saved_as))} at iteration {t.saved}'
    if (t.out_dir / 'best.pt').exists():
        text += f', best.pt of iteration {t.best_iter} (val loss {t.best_val_loss:.4f})'
    return text + (f'; {again}' if stopped else '')


def windows(t, steps: int) -> str:
    """The training data of the last steps, to reproduce what went wrong there."""
    c, n = t.cfg, t.cfg.gradient_accumulation_steps * t.cfg.batch_size
    return (
        f'windows {t.position - steps * n:,} to {t.position - 1:,} of the training data (data_order = {c.data_order},'
        f' seed_data = {c.seed_data})'
    )


def without_effect(cfg) -> str:
    """A line about keys that were set and mean nothing in this config; '' if there are none."""
    if not (idle := cfg.idle()):
        return ''
    keys, schedule = ', '.join(f'{k} = {v}' for k, v in idle.items()), cfg.schedule if cfg.decay_lr else 'none'
    return (
        f'NOTE: without effect here: {keys} (linear = {cfg.linear}, mlp = {cfg.mlp}, optimizer = {cfg.optimizer},'
        f' schedule = {schedule})'
    )


class Log:
    """What a run writes and prints. The first process alone does so: the Log of any other is quiet. dry: print, write nothing."""

    def __init__(self, cfg, out_dir: Path, meta: dict, facts: dict, start=0, quiet=False, dry=False):
        self.quiet, self.out_dir, self.cfg, self.device = quiet, out_dir, cfg, facts.get('device')
        self.file = self.wandb = None
        if quiet:
            return
        self.loss_name = loss_name(cfg)
        self.ms, self.told, self.ticked, self.eval_seconds = [], False, time.time(), 0.0
        self.bar = tqdm(
            total=cfg.max_iters, initial=start, disable=not sys.stdout.isatty(), file=sys.stdout, leave=False
        )
        if dry:
            return
        try:
            out_dir.mkdir(parents=True, exist_ok=True)
        except OSError as e:
            raise UserError(f"out_dir = '{out_dir}': {e.strerror}; choose another --out_dir") from None
        keep, earlier = self.so_far(start)
        if cfg.wandb_log:  # before anything is written: a missing package ends the run
            self.start_wandb(next((m['wandb'] for m in reversed(earlier) if m.get('wandb')), None))
        write_json(out_dir / 'config.json', relative(dataclasses.asdict(cfg)))
        new = not (start and (out_dir / 'meta.json').exists())  # a resumed run has the vocabulary that it had
        if meta and new:
            write(out_dir / 'meta.json', json.dumps(meta).encode())
        if meta.get('tokenizer') == 'bpe' and new:
            write(out_dir / 'tokenizer.json', (data_dir(cfg.dataset) / 'tokenizer.json').read_bytes())
        self.manifest = dict(
            command=relative(shlex.join(['python', *sys.argv])),
            commit=commit(),
            dirty=dirty(),
            started=time.strftime('%Y-%m-%dT%H:%M:%SZ', time.gmtime()),
            python=sys.version.split()[0],
            torch=torch.__version__,
            cuda=torch.version.cuda,
            cudnn=torch.backends.cudnn.version() if torch.cuda.is_available() else None,
            start_iter=start,
            **relative(facts),
            **dict(wandb=self.wandb.id) if self.wandb else {},
            resumed=earlier,
        )
        write_json(out_dir / 'manifest.json', self.manifest)
        write_lines(out_dir / 'metrics.jsonl', keep)
        self.file = open(out_dir / 'metrics.jsonl', 'a', buffering=1)

    def so_far(self, start: int) -> tuple[list, list]:
        """(lines of the log, manifests of the parts) of the run that goes on at iteration start. Left out are the lines beyond
        its last checkpoint, and an evaluation at start that is due there: these iterations run, and are logged, again."""
        if not start:
            return [], []
        due = start % self.cfg.eval_interval == 0 or start >= self.cfg.max_iters
        keep, path = [], self.out_dir / 'manifest.json'
        for m in read_metrics(self.out_dir):
            if m['iter'] < start or m['iter'] == start and m['kind'] == 'eval' and not due:
                keep.append(m)
        if not path.exists():
            return keep, []
        try:
            was = read_json(path, MANIFEST)
            return keep, [*was.pop('resumed', []), was]
        except UserError:
            os.replace(path, damaged := path.with_name('manifest.json.damaged'))
            self.say(f'NOTE: {path} is damaged, it is now {damaged.name}; the manifest begins anew')
            return keep, []

    def say(self, text: str):
        if text and not self.quiet:
            tqdm.write(text) if not self.bar.disable else print(text, flush=True)

    def head(self, cfg, facts: dict, lines: list[str]):
        """What a run is, before it begins: its note, its config, its size and cost, and what is said of its layers."""
        if self.quiet:
            return
        if cfg.note:
            self.say(cfg.note)
        self.say('config: ' + ', '.join(f'{k}={v}' for k, v in overrides(cfg).items() if k != 'note'))
        self.say(without_effect(cfg))
        tokens = facts['tokens_per_iter']
        flops = tokens * facts['flops_per_token'] + facts['processes'] * facts['flops_per_update']
        params, collapsed = facts['params'], facts['params_collapsed']
        self.say(
            f'{size(params)} parameters'
            + (f' ({size(collapsed)} collapsed)' if collapsed != params else '')
            + f', {tokens:,} tokens and {flops / 1e12:.4g} TFLOP per iteration on {facts["device"]}'
            + f' x {facts["processes"]}, {facts["dtype"]}, attention {facts["attention"]}'
        )
        for line in lines:
            self.say(line)

    def metrics(self, **values):
        """One line of metrics.jsonl; floats keep 8 digits, what a float32 holds."""
        if not self.file:
            return
        compact = {k: float(f'{v:.8g}') if isinstance(v, float) else v for k, v in values.items()}
        try:
            self.file.write(json.dumps(compact) + '\n')
        except OSError as e:
            raise UserError(
                f'cannot write {self.file.name} ({e.strerror}); free the disk, then go on with --init_from=resume'
            ) from None
        if self.wandb:
            kind = values['kind']
            named = {f'{kind}/{k}': v for k, v in compact.items() if k not in ('kind', 'iter')}
            self.to_wandb(lambda: self.wandb.log(named, step=values['iter']))

    def train(self, **v):
        """The line of a training step in metrics.jsonl, and on the terminal."""
        self.metrics(kind='train', **v)
        if self.quiet:
            return
        done = v['iter'] + 1
        rate = f', {v["tokens_per_s"]:,.0f} tok/s' if v.get('ms') else ''
        rate += f', mfu {v["mfu"] * 100:.1f}%' if v.get('mfu') else ''
        if self.bar.disable:
            ms = f', time {v["ms"]:.2f}ms' if v.get('ms') else ''
            print(f'iter {v["iter"]}: {self.loss_name} {v["loss"]:.4f}{ms}{rate}', flush=True)
        else:
            self.bar.n = done
            self.bar.set_postfix_str(f'{self.loss_name} {v["loss"]:.4f}{rate}')
        if v.get('ms') and not self.told:
            self.ms.append(v['ms'])
            if len(self.ms) * self.cfg.log_interval >= 5 or sum(self.ms) * self.cfg.log_interval > 10_000:
                self.told = True
                self.say_duration(done, sum(self.ms) / len(self.ms) / 1000)

    def say_duration(self, done: int, seconds: float):
        """How long the rest will take, from the seconds of one iteration; nothing below a minute."""
        cfg = self.cfg
        evals = (cfg.max_iters - 1) // cfg.eval_interval - (done - 1) // cfg.eval_interval + 1
        rest = (cfg.max_iters - done) * seconds + evals * self.eval_seconds
        if rest < 60:
            return
        text = f'about {duration(rest)} to iteration {cfg.max_iters:,}: {seconds:.3g} s each, and {evals:,} evaluations'
        text += f' of {self.eval_seconds:.0f} s'
        if rest >= 3600:
            text = (
                f'NOTE: {text}. This is long for {self.device}: a smaller model (--n_layer, --n_embd), --batch_size or'
            )
            text += ' --max_iters takes less. Ctrl-C saves and stops, --init_from=resume goes on'
        self.say(text)

    def evaluating(self, split: str, batch: int, of: int):
        """Progress of an evaluation: on a terminal in the bar, elsewhere a line every ten seconds."""
        if self.quiet or time.time() - self.ticked < (10 if self.bar.disable else 0.2):
            return
        self.ticked = time.time()
        text = f'evaluating {split}: batch {batch} of {of}'
        print(text, flush=True) if self.bar.disable else self.bar.set_postfix_str(text)

    @contextmanager
    def closing(self, facts):
        """Close with what facts() says, however the block ends; a failure to write does not hide why it did."""
        try:
            yield
        except BaseException:
            with suppress(Exception):
                self.close(**facts())
            raise
        self.close(**facts())

    def close(self, **facts):
        """The end of the record. Raises UserError where it cannot be written."""
        if self.quiet:
            return
        self.bar.close()
        if self.wandb:
            self.to_wandb(self.wandb.finish)
        if not self.file:
            return
        with suppress(OSError):  # every line was written or complained about
            self.file.close()
        self.manifest |= facts | dict(finished=time.strftime('%Y-%m-%dT%H:%M:%SZ', time.gmtime()))
        write_json(self.out_dir / 'manifest.json', self.manifest)

    # wandb: whatever goes wrong there, training goes on without it

    def start_wandb(self, run_id: str | None):
        """run_id: of the part of this run that was interrupted, to go on with. WANDB_MODE=offline works as wandb
        documents it: `wandb sync` joins the parts, which have one id."""
        try:
            import wandb
        except ImportError:
            raise UserError(
                'wandb_log = True: wandb is not installed; pip install wandb, or --wandb_log=false'
            ) from None
        cfg = self.cfg
        how = dict(id=run_id, resume='allow') if run_id else {}
        how |= dict(config=dataclasses.asdict(cfg), dir=str(self.out_dir))
        how |= dict(settings=dict(init_timeout=STARTING, finish_timeout=FINISHING))
        init = lambda: wandb.init(project=cfg.wandb_project, name=cfg.wandb_run_name, **how)
        self.wandb = self.to_wandb(init)

    def to_wandb(self, call):
        try:
            return call()
        except Exception as e:  # no key, no network, a mode that it does not know, ...
            self.wandb = None
            why = ' '.join((str(e) or type(e).__name__).split())[:200]
            self.say(f'NOTE: wandb failed ({printable(why)}); training goes on without it')


def loss_name(cfg) -> str:
    """What the training loss is called: evaluations are always cross-entropy, it can hold more."""
    added = {
        'divergence from the teacher': getattr(cfg, 'distill_from', ''),
        'gate penalty': getattr(cfg, 'mlp_gate', False),
        'router loss': 'moe' in (getattr(cfg, 'mlp', ''), *getattr(cfg, 'linear', '').split('_')),
    }
    names = ' and '.join(name for name, there in added.items() if there)
    return f'loss with {names}' if names else 'loss'


def duration(seconds: float) -> str:
    """90 -> 2 min, 5400 -> 1 h 30 min."""
    minutes = round(seconds / 60)
    return f'{minutes // 60:,} h {minutes % 60} min' if minutes >= 60 else f'{minutes} min'
