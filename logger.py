"""
The record of a run in its out_dir, one format for every script that trains:

    config.json    every key, resolved
    manifest.json  what ran where: command, git commit, seeds, versions, device, attention kernel, peak memory
    metrics.jsonl  one line per event: {"kind": "train", "iter", "loss", "lr", "grad_norm", "ms", "tokens_per_s", "mfu"}
                   and {"kind": "eval", "iter", "train_loss", "val_loss", "val_a", "val_b" (its halves), "tokens", "seconds"}
    meta.json      the vocabulary (with tokenizer.json, if it was trained), to sample a checkpoint without its data set

The terminal gets a progress bar, anything else (a pipe, a file) plain lines. wandb gets the same values when asked.
"""

import dataclasses
import json
import os
import shlex
import subprocess
import sys
import time
from pathlib import Path

import torch
from tqdm import tqdm

import hardware
from configurator import ROOT, UserError, overrides
from files import write, write_json
from tokens.loader import data_dir


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


def relative(value):
    """A text, or texts in dicts and lists, with paths of this repository as they are from its folder: a record must not
    depend on the machine that made it."""
    if isinstance(value, dict):
        return {k: relative(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [relative(v) for v in value]
    return value.replace(f'{ROOT}/', '') if isinstance(value, str) else value


def read_metrics(out_dir: Path) -> list[dict]:
    """The lines of metrics.jsonl; a half-written last line (a crash) is left out."""
    path, lines = out_dir / 'metrics.jsonl', []
    if path.exists():
        for text in path.read_text().splitlines():
            try:
                lines.append(json.loads(text))
            except ValueError:
                continue
    return lines


def facts(t) -> dict:
    """What the manifest says of a run of a Trainer."""
    beside = t.optimizer.factors
    return dict(
        device=hardware.device_name(t.device),
        processes=t.world,
        dtype=str(t.dtype).removeprefix('torch.'),
        attention=hardware.attention_backend(t.model, t.device, t.dtype),
        seed_model=t.cfg.seed_model,
        seed_data=t.cfg.seed_data,
        data_edition=t.meta.get('edition'),
        params=t.model.num_params(beside),
        params_collapsed=t.model.num_params_collapsed(beside),
        tokens_per_iter=t.cfg.tokens_per_iter,
        flops_per_token=t.flops_per_token,
        flops_per_update=beside.flops_per_update(),
        peak_flops=hardware.peak_flops(t.device, t.dtype),
        transfer=t.history,
    )


class Log:
    """Opened by the first process only; the others get a Log that does nothing."""

    def __init__(self, cfg, out_dir: Path, meta: dict, facts: dict, start: int = 0, quiet: bool = False):
        self.quiet, self.out_dir, self.wandb = quiet, out_dir, None
        if quiet:
            return
        try:
            out_dir.mkdir(parents=True, exist_ok=True)
        except OSError as e:
            raise UserError(f"out_dir = '{out_dir}': {e.strerror}; choose another --out_dir") from None
        write_json(out_dir / 'config.json', relative(dataclasses.asdict(cfg)))
        new = not (start and (out_dir / 'meta.json').exists())  # a resumed run has the vocabulary that it had
        if meta and new:
            write(out_dir / 'meta.json', json.dumps(meta).encode())
        if meta.get('tokenizer') == 'bpe' and new:
            write(out_dir / 'tokenizer.json', (data_dir(cfg.dataset) / 'tokenizer.json').read_bytes())
        earlier = []
        if start and (out_dir / 'manifest.json').exists():
            earlier = json.loads((out_dir / 'manifest.json').read_text())
            earlier = [*earlier.pop('resumed', []), earlier]
        self.manifest = dict(
            command=relative(shlex.join(['python', *sys.argv])),
            commit=commit(),
            dirty='NANOMORPH_COMMIT' not in os.environ and bool(git('status', '--porcelain')),
            started=time.strftime('%Y-%m-%dT%H:%M:%SZ', time.gmtime()),
            python=sys.version.split()[0],
            torch=torch.__version__,
            cuda=torch.version.cuda,
            cudnn=torch.backends.cudnn.version() if torch.cuda.is_available() else None,
            start_iter=start,
            **relative(facts),
            resumed=earlier,
        )
        write_json(out_dir / 'manifest.json', self.manifest)
        # what an interrupted run logged beyond its last checkpoint will be run, and logged, again
        keep = [m for m in read_metrics(out_dir) if m['iter'] < start]
        write(out_dir / 'metrics.jsonl', ''.join(json.dumps(m) + '\n' for m in keep if start).encode())
        self.file = open(out_dir / 'metrics.jsonl', 'a', buffering=1)
        self.bar = tqdm(
            total=cfg.max_iters, initial=start, disable=not sys.stdout.isatty(), file=sys.stdout, leave=False
        )
        if cfg.wandb_log:
            self.wandb = start_wandb(cfg, out_dir)

    def say(self, text: str):
        if not self.quiet:
            tqdm.write(text) if not self.bar.disable else print(text, flush=True)

    def head(self, cfg, facts: dict, lines: list[str]):
        """What a run is, before it begins: its note, its config, its size and cost, and what is said of its layers."""
        if cfg.note:
            self.say(cfg.note)
        self.say('config: ' + ', '.join(f'{k}={v}' for k, v in overrides(cfg).items() if k != 'note'))
        if idle := cfg.idle():
            keys = ', '.join(f'{k} = {v}' for k, v in idle.items())
            self.say(f'NOTE: without effect here: {keys} (linear = {cfg.linear}, mlp = {cfg.mlp})')
        tokens = facts['tokens_per_iter']
        flops = tokens * facts['flops_per_token'] + facts['processes'] * facts['flops_per_update']
        self.say(
            f'{facts["params"] / 1e6:.2f}M parameters'
            + (f' ({facts["params_collapsed"] / 1e6:.2f}M collapsed)' if cfg.linear != 'dense' else '')
            + f', {tokens:,} tokens and {flops / 1e12:.4g} TFLOP per iteration on {facts["device"]}'
            + f' x {facts["processes"]}, {facts["dtype"]}, attention {facts["attention"]}'
        )
        for line in lines:
            self.say(line)

    def metrics(self, **values):
        """One line of metrics.jsonl; floats keep 8 digits, what a float32 holds."""
        if self.quiet:
            return
        compact = {k: float(f'{v:.8g}') if isinstance(v, float) else v for k, v in values.items()}
        self.file.write(json.dumps(compact) + '\n')
        if self.wandb:
            kind = values['kind']
            self.wandb.log(
                {f'{kind}/{k}': v for k, v in compact.items() if k not in ('kind', 'iter')}, step=values['iter']
            )

    def train(self, done: int, **values):
        self.metrics(kind='train', **values)
        if self.quiet:
            return
        v = values
        mfu = f', mfu {v["mfu"] * 100:.1f}%' if v.get('mfu') else ''
        if self.bar.disable:
            rate = f', time {v["ms"]:.2f}ms, {v["tokens_per_s"]:,.0f} tok/s{mfu}' if v.get('ms') else ''
            print(f'iter {v["iter"]}: loss {v["loss"]:.4f}{rate}', flush=True)
        else:
            self.bar.n = done
            self.bar.set_postfix_str(f'loss {v["loss"]:.4f}{mfu}')

    def close(self, **facts):
        if self.quiet:
            return
        self.bar.close()
        self.file.close()
        self.manifest |= facts | dict(finished=time.strftime('%Y-%m-%dT%H:%M:%SZ', time.gmtime()))
        write_json(self.out_dir / 'manifest.json', self.manifest)
        if self.wandb:
            self.wandb.finish()


def start_wandb(cfg, out_dir: Path):
    """WANDB_MODE=offline works as wandb documents it."""
    try:
        import wandb
    except ImportError:
        raise UserError('wandb_log = True: wandb is not installed; pip install wandb, or --wandb_log=false') from None
    return wandb.init(
        project=cfg.wandb_project, name=cfg.wandb_run_name, config=dataclasses.asdict(cfg), dir=str(out_dir)
    )
