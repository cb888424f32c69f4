"""
Which runs a comparison consists of: its arms resolved, what they cost, whether they match, and which runs are missing.
compare.py runs them.
"""

import dataclasses
import importlib
import json
import shlex
import sys
from dataclasses import dataclass

from configurator import ROOT, UserError, load, overrides
from lab import tables
from lab.records import SWEEP, cell_name, run_name

SCRIPTS = {  # what an arm may be trained with, and the schema of its keys
    'train.py': 'TrainConfig',
    'toys/mnist.py': 'MnistConfig',
    'toys/letter_counting.py': 'LetterConfig',
}
NOT_SETTINGS = ('out_dir', 'init_from', 'note', 'backend', 'wandb_log', 'wandb_project', 'wandb_run_name', 'seeds')
# arms that differ in these see other data, or are judged by another measure
SHARED = ('dataset', 'data_order', 'batch_size', 'block_size', 'gradient_accumulation_steps', 'eval_iters')

JUDGED = ('eval_interval', 'patience')  # or by one of more evaluations, where the best one counts


@dataclass
class Plan:
    """One arm at one size, resolved."""

    arm: str
    size: str
    argv: list  # its config and flags
    cfg: object  # what they resolve to
    module: object  # of its script

    @property
    def name(self):
        return cell_name(self.arm, self.size)


@dataclass(frozen=True)
class Run:
    plan: int  # index
    lr: float
    seed: int
    name: str


def make_plans(cfg) -> list[Plan]:
    sys.path.insert(0, str(ROOT))
    module = importlib.import_module(cfg.script.removesuffix('.py').replace('/', '.'))
    schema = getattr(module, SCRIPTS[cfg.script])
    found = []
    for size, size_flags in (cfg.sizes or {'': ''}).items():
        for arm, text in cfg.arms.items():
            try:
                argv = [*shlex.split(cfg.common), *shlex.split(size_flags), *shlex.split(text)]
                found.append(Plan(arm, size, argv, load(schema, argv), module))
            except UserError as e:
                raise UserError('\n'.join(f'{cell_name(arm, size)}: {line}' for line in str(e).split('\n'))) from None
            except (ValueError, AttributeError, TypeError):  # an open quote, no text
                raise UserError(
                    f'{cell_name(arm, size)}: {text!r}: must be a text of flags, its quotes closed'
                ) from None
    return found


def costs(plan: Plan) -> dict:
    """{params, flops, tokens} of a whole run, from the shapes alone."""
    if hasattr(plan.module, 'costs'):
        return plan.module.costs(plan.cfg)
    from lab import match
    from tokens import loader

    loader.prepare(plan.cfg.dataset)  # once, before many runs would
    cfg = load(match.MatchConfig, plan.argv)
    if not cfg.vocab_size:
        cfg = dataclasses.replace(cfg, vocab_size=loader.padded_vocabulary(loader.read_meta(cfg.dataset)))
    tokens = cfg.max_iters * cfg.gradient_accumulation_steps * cfg.batch_size * cfg.block_size
    per_token, params = (match.cost(dataclasses.replace(cfg, match=axis), None) for axis in ('flops', 'params'))
    return dict(params=params, flops=tokens * per_token, tokens=tokens)


def check_match(cfg, plans: list[Plan], ms: dict):
    """Refuse arms that differ by more than 1% on the axis that shall be equal, or see other data, unless named."""
    problems = []
    for size in dict.fromkeys(p.size for p in plans):
        base, *others = [p for p in plans if p.size == size]
        amount = {}
        for p in (base, *others):
            amount[p.arm] = ms[p.name] * p.cfg.max_iters if cfg.match == 'time' else costs(p)[cfg.match]
        if cfg.at == 'last' and any(getattr(p.cfg, 'patience', 0) for p in (base, *others)):
            problems.append("at = 'last': of runs that end out of patience the best evaluation counts; at = 'best'")
        for p in others:
            off = amount[p.arm] / amount[base.arm] - 1
            keys = (*SHARED, *JUDGED) if cfg.at == 'best' else SHARED
            differ = [k for k in keys if getattr(p.cfg, k, None) != getattr(base.cfg, k, None)]
            print(f'{p.name}: {cfg.match} {off:+.2%} against {base.name}', flush=True)
            if p.arm in cfg.mismatch:
                continue
            named = f"name it in the config: mismatch = {{'{p.arm}': 'why this is fair'}}"
            if abs(off) > 0.01:
                fair = (
                    ''
                    if cfg.match == 'params'
                    else f'--max_iters={round(p.cfg.max_iters / (1 + off))} would match; or '
                )
                problems.append(f'{p.name}: {cfg.match} is {off:+.1%} off {base.name}; {fair}{named}')
            if differ:
                problems.append(f'{p.name}: has another {", ".join(differ)} than {base.name}; {named}')
    if problems:
        raise UserError('\n'.join(problems))


def rates(cfg, plan: Plan) -> list[float]:
    given = cfg.learning_rates.get(plan.arm, ()) if isinstance(cfg.learning_rates, dict) else cfg.learning_rates
    try:
        found = sorted({float(lr) for lr in given})
    except (TypeError, ValueError):
        found = [0.0]
    if found and found[0] <= 0:
        raise UserError(f'learning_rates: {given!r} of {plan.arm}: must be numbers above 0 in a tuple')
    return found or [plan.cfg.learning_rate]


def beyond(grid: list[float], best: float) -> float | None:
    """The next rate to try if the best of a sorted grid lies at its edge."""
    if len(grid) < 2 or best not in (grid[0], grid[-1]):
        return None
    ratio = (grid[-1] / grid[0]) ** (1 / (len(grid) - 1))
    return float(f'{best * ratio if best == grid[-1] else best / ratio:.3g}')


def wanted(cfg, plans: list[Plan], records: dict) -> list[Run]:
    """The runs still missing, given those that are over: the sweep, the rates beyond its edge, the seeds that decide."""
    missing = []

    def runs(i, lr, seeds):
        p = plans[i]
        every = [Run(i, lr, s, run_name(p.arm, p.size, lr, s)) for s in seeds]
        absent = [r for r in every if r.name not in records]
        missing.extend(absent)
        return not absent

    for i, p in enumerate(plans):
        given = rates(cfg, p)
        lr = given[0]
        if len(given) > 1:
            done = [r for r in records.values() if (r['arm'], r['size']) == (p.arm, p.size) and r['seed'] > SWEEP]
            grid = sorted({*given, *(r['lr'] for r in done)})
            sweep = range(SWEEP + 1, SWEEP + 1 + cfg.sweep_seeds)
            if not all([runs(i, rate, sweep) for rate in grid]):
                continue
            lr, edge, _ = tables.choose(done, cfg.metric, cfg.at)
            if edge and len(grid) < len(given) + cfg.extend:
                runs(i, beyond(grid, lr), sweep)
                continue
        runs(i, lr, range(1, cfg.seeds + 1))
    return missing


def settings(cfg) -> dict:
    """What makes a run the run it is: its keys that are no defaults."""
    return json.loads(json.dumps({k: v for k, v in overrides(cfg).items() if k not in NOT_SETTINGS}))


def flags(plan: Plan, lr: float, seed: int) -> list[str]:
    names = {f.name for f in dataclasses.fields(plan.cfg)}
    found = []
    if lr != plan.cfg.learning_rate:
        found.append(f'--learning_rate={lr!r}')
        if 'min_lr' in names:  # the schedule keeps its shape
            found.append(f'--min_lr={lr * plan.cfg.min_lr / plan.cfg.learning_rate!r}')
    if 'seed_model' in names:
        found += [f'--seed_model={seed}', f'--seed_data={seed}']
    return found


def difference(a: dict, b: dict) -> str:
    return ', '.join(
        f'{k} = {a.get(k, "default")} there, {b.get(k, "default")} here' for k in sorted(a | b) if a.get(k) != b.get(k)
    )
