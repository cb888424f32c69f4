"""
The arms and preparing steps of a comparison: what they are, what they cost, and whether they match. missing.py says which of
their runs are to be made.

{NAME} in the text of an arm or a step is the checkpoint of the step or arm NAME, which is listed before it. A step is a
training like an arm's, or a command of transfer.py. A step that several arms share runs once for every random seed.
"""

import dataclasses
import functools
import importlib
import json
import math
import shlex
from dataclasses import dataclass

from configurator import UserError, load, overrides, spelled
from lab import match, protocol, verdicts
from lab.records import ancestors, cell_name, references
from surgery.grow import growth
from tokens import loader

SCRIPTS = {  # what an arm may be trained with, and the schema of its keys
    'train.py': 'TrainConfig',
    'toys/mnist.py': 'MnistConfig',
    'toys/letter_counting.py': 'LetterConfig',
}
NOT_SETTINGS = ('out_dir', 'out', 'note', 'backend', 'wandb_log', 'wandb_project', 'wandb_run_name', 'seeds')
# arms that differ in these see other data, or are judged by another measure; in JUDGED, where the best evaluation counts
SHARED = ('dataset', 'data_order', 'batch_size', 'block_size', 'gradient_accumulation_steps', 'eval_iters')
JUDGED = ('eval_interval', 'patience')
PER_STEP = ('gradient_accumulation_steps', 'batch_size', 'block_size')  # whose product is the tokens of a step
LENGTH = ('max_iters', 'lr_decay_iters', 'warmup_iters', 'wsd_decay_iters')
LEG = 1_000_000  # added to seed_data for each training before a run: it must see other batches than those did


@dataclass
class Plan:
    """One arm, step or evaluation at one size (or horizon), resolved."""

    arm: str  # steps/NAME, tasks/NAME for those that are no arm
    size: str
    argv: list  # its config and flags, {NAME} still in them
    cfg: object  # what they resolve to
    module: object  # of its script
    script: str

    @property
    def name(self):
        return cell_name(self.arm, self.size)

    @property
    def is_arm(self):
        return '/' not in self.arm

    @property
    def refers_to(self) -> list[str]:
        return references(' '.join(self.argv))

    @property
    def trains(self):
        return hasattr(self.cfg, 'learning_rate')

    @property
    def known(self):
        """Whether the cost follows from the flags alone. It does not if shapes or a teacher come from a checkpoint."""
        return self.trains and not any(a.startswith(('--init_from={', '--distill_from={')) for a in self.argv)


@dataclass(frozen=True)
class Run:
    """One process of a plan: a training with a rate and a random seed, a command of transfer.py, or an evaluation."""

    plan: int  # index in the list of plans
    lr: float
    seed: int
    name: str


def make_plans(cfg) -> list[Plan]:
    """Arms, then steps, then evaluations of the arms. Raises UserError for texts that no run could be made of."""
    arms, steps, before = [], [], []
    sizes = cfg.sizes or {'': ''}
    for name, text in cfg.steps.items():
        steps += [make(cfg, f'steps/{name}', size, text, more, before) for size, more in sizes.items()]
        before.append(name)
    for name, text in cfg.arms.items():
        mine = [make(cfg, name, size, text, more, before) for size, more in sizes.items()]
        arms += mine if cfg.sizes else at_horizons(cfg, mine[0])
        before.append(name)
    arms.sort(key=lambda p: list(cfg.sizes).index(p.size) if cfg.sizes else 0)
    sources = {name for p in (*arms, *steps) for name in p.refers_to}
    for p in (*arms, *steps):
        if p.arm.removeprefix('steps/') in sources and not getattr(p.cfg, 'save_checkpoint', True):
            raise UserError(f'{p.name}: save_checkpoint = False, and others start from its checkpoint; leave it out')
    first = next(iter(cfg.arms))
    there = [p.size for p in arms if p.arm == first]
    if odd := [p.name for p in arms if p.size not in there]:
        raise UserError(f'horizons: {odd[0]} has nothing to be compared with; give {first} that one, too')
    return [*arms, *steps, *[evaluation(cfg, p) for p in arms if cfg.tasks]]


def make(cfg, arm: str, size: str, text: str, more: str = '', before: list | None = None) -> Plan:
    """The plan of a text as in the config. more: the flags of its size. before: the names that it may refer to; None: any.
    Raises UserError."""
    try:
        script, *command = shlex.split(text) if text.startswith(('transfer.py ', 'evaluate.py ')) else [cfg.script]
        module = importlib.import_module(script.removesuffix('.py').replace('/', '.'))
        if script == 'transfer.py':
            schema = module.COMMANDS.get(command[0], (None,))[0]
            if not schema:
                raise UserError(f"'{text}': must be a command of transfer.py: {', '.join(module.COMMANDS)}")
            argv = [command[0], *alike(command[1:], schema)]
            resolved = load(schema, [*argv[1:], '--out=ckpt.pt'])
        elif script == 'evaluate.py':
            argv = alike(command, module.EvalConfig)
            resolved = load(module.EvalConfig, argv)
        else:
            schema = getattr(module, SCRIPTS[script])
            argv = alike([*shlex.split(cfg.common), *shlex.split(more), *shlex.split(text)], schema)
            resolved = load(schema, argv)
    except UserError as e:
        raise UserError('\n'.join(f'{cell_name(arm, size)}: {line}' for line in str(e).split('\n'))) from None
    except (ValueError, AttributeError, TypeError):  # an open quote, no text
        raise UserError(f'{cell_name(arm, size)}: {text!r}: must be a text of flags, its quotes closed') from None
    p = Plan(arm, size, argv, resolved, module, script)
    if before is not None and (odd := [name for name in p.refers_to if name not in before]):
        raise UserError(f'{p.name}: {{{odd[0]}}}: must name a step or an arm listed before it; {before or "none"}')
    return p


def alike(argv: list[str], schema) -> list[str]:
    """Flags in one spelling, --key=value, so that this file can look for them."""
    return spelled(argv, {f.name: f for f in dataclasses.fields(schema)})


def evaluation(cfg, p: Plan) -> Plan:
    """The plan of evaluate.py for the runs of an arm; windows that do not overlap."""
    names, _, more = cfg.tasks.partition(' ')
    text = f'evaluate.py --checkpoint={{{p.arm}}} --tasks={names} --stride={getattr(p.cfg, "block_size", 0)} {more}'
    if not getattr(p.cfg, 'save_checkpoint', True):
        raise UserError(f'{p.name}: save_checkpoint = False, and tasks needs its checkpoint; leave one of them out')
    return make(cfg, f'tasks/{p.arm}', p.size, text)


def at_horizons(cfg, p: Plan) -> list[Plan]:
    """The arm at all its horizons, the longest first: shares of its max_iters, the schedule as long as the run."""
    shares = cfg.horizons.get(p.arm, ()) if isinstance(cfg.horizons, dict) else cfg.horizons
    found = []
    for share in sorted(shares or (1,), reverse=True):
        whole = dict(max_iters=iters(p), lr_decay_iters=getattr(p.cfg, 'lr_decay_iters', None))
        if getattr(p.cfg, 'schedule', '') == 'wsd':
            whole |= dict(wsd_decay_iters=p.cfg.wsd_decay_iters or None)  # 0: constant to the end
        keys = {k: max(1, round(share * n)) for k, n in whole.items() if n is not None and share != 1}
        argv = [*p.argv, *(f'--{k}={n}' for k, n in keys.items())]
        size = f'x{share:g}' if share != 1 else ''
        found.append(dataclasses.replace(p, size=size, argv=argv, cfg=load(type(p.cfg), argv)))
    return found


def iters(p: Plan) -> int:
    """The iterations of a training. max_iters = 0 stands for all epochs where a script has such."""
    return p.cfg.max_iters or (p.module.steps(p.cfg) if hasattr(p.module, 'steps') else 0)


def origins(plans: list[Plan], p: Plan) -> list[Plan]:
    """The plans that p starts from, theirs included, each once."""
    return ancestors(p, lambda q: [named(plans, name, q.size) for name in q.refers_to])


def named(plans: list[Plan], name: str, size: str) -> Plan:
    """The arm or step of this name, at this size if it has it."""
    same = [q for q in plans if q.arm in (name, f'steps/{name}')]
    return next((q for q in same if q.size == size), same[0])


def costs(plan: Plan) -> dict:
    """{params, flops, tokens} of a whole run, from the shapes alone. What shapes cannot tell is left out: params and flops, where a
    checkpoint decides them; flops, where the run grows a checkpoint that no step made, or is a transfer.py command that trains."""
    if hasattr(plan.module, 'costs'):
        return plan.module.costs(plan.cfg)
    if not plan.trains:
        learns = getattr(plan.cfg, 'distill_iters', 0) or 'ligo' in getattr(plan.cfg, 'method', '').split('+')
        return dict(params=0, tokens=0) | ({} if learns else dict(flops=0))
    loader.prepare(plan.cfg.dataset)  # once, before many runs would
    tokens = math.prod(getattr(plan.cfg, k) for k in ('max_iters', *PER_STEP))
    if not plan.known:
        return dict(tokens=tokens)
    params, learned, stages = of_shapes(plan)
    if plan.cfg.transfer_from and not plan.cfg.transfer_from.startswith('{'):
        return dict(params=params, tokens=tokens)
    return dict(params=params, flops=learned + match.flops_of(stages, plan.cfg.max_iters), tokens=tokens)


def of_shapes(plan: Plan) -> tuple:
    """(parameters, FLOPs before the first iteration, match.stages of the iterations) of a training, whatever its length."""
    return of_argv(tuple(a for a in plan.argv if not a.startswith(tuple(f'--{k}=' for k in LENGTH))))


@functools.cache
def of_argv(argv: tuple) -> tuple:
    # without a schedule, of which the lengths are gone: the rest of it need not fit
    cfg = match.sized(load(match.MatchConfig, [*argv, '--decay_lr=false']))
    grows = cfg.init_from == 'transfer' and growth.how_of(cfg).width == 'ligo'
    learned = growth.learning_flops(cfg, cfg.batch_size) if grows else 0
    return match.cost(dataclasses.replace(cfg, match='params'), None), learned, match.stages(cfg)


def at_equal_flops(cfg, plans: list[Plan]) -> list[Plan]:
    """With match = 'flops': the plans, in which an arm without --max_iters in its text trains until it has used as many FLOPs
    as the baseline, those of what it starts from included. Decay and warmup get the baseline's share of the iterations (the
    warmup's in whole percent), rounded down. A length that the arm's own text gives stays."""
    if cfg.match != 'flops' or cfg.horizons:
        return plans
    found = []
    for p in plans:
        base = next((q for q in plans if q.is_arm and q.size == p.size), plans[0])
        own = alike(shlex.split(cfg.arms[p.arm]), p.cfg) if p.is_arm else []
        fixed = not p.is_arm or p.arm == base.arm or any(a.startswith('--max_iters=') for a in own)
        over = math.nan if fixed else amount(cfg, plans, p, {}) - amount(cfg, plans, base, {})
        if math.isnan(over):
            found.append(p)
            continue
        fit = iters_within(p, costs(p)['flops'] - over) or 1  # 0 may stand for all epochs
        share = lambda k, base=base: getattr(base.cfg, k, 0) / iters(base)
        lengths = dict(max_iters=fit, lr_decay_iters=int(fit * share('lr_decay_iters')))
        lengths |= dict(warmup_iters=int(fit * round(share('warmup_iters'), 2)))
        if getattr(p.cfg, 'schedule', '') == 'wsd':
            lengths |= dict(wsd_decay_iters=int(fit * share('wsd_decay_iters')))
        mine = {a.partition('=')[0] for a in own}
        argv = [*p.argv, *(f'--{k}={n}' for k, n in lengths.items() if hasattr(p.cfg, k) and f'--{k}' not in mine)]
        found.append(dataclasses.replace(p, argv=argv, cfg=load(type(p.cfg), argv)))
    return found


def iters_within(p: Plan, flops: int) -> int:
    """The most iterations of a training that spend no more."""
    if hasattr(p.module, 'costs'):
        return int(flops * iters(p) / costs(p)['flops'] + 1e-9)
    _, learned, stages = of_shapes(p)
    return match.iters_within(stages, flops - learned)


def amount(cfg, plans: list[Plan], p: Plan, ms: dict) -> float:
    """How much a run of p uses of what cfg.match names; FLOPs include those of what it starts from. nan: only known after
    its steps."""
    if cfg.match == 'time':
        return ms[p.name] * p.cfg.max_iters
    legs = [p, *origins(plans, p)] if cfg.match == 'flops' else [p]
    return sum(costs(q).get(cfg.match, math.nan) for q in legs)


def check_match(cfg, plans: list[Plan], ms: dict):
    """Print by how much arms differ in `match`. Raises UserError for those that differ by more than 1%, or that see other data,
    unless `mismatch` names them. ms: {cell: milliseconds per step}, for match = 'time'."""
    problems = []
    arms = [p for p in plans if p.is_arm]
    for size in dict.fromkeys(p.size for p in arms):
        base, *others = [p for p in arms if p.size == size]
        if cfg.at == 'last' and any(getattr(p.cfg, 'patience', 0) for p in (base, *others)):
            problems.append("at = 'last': of runs that end out of patience the best evaluation counts; at = 'best'")
        for p in others:
            off = amount(cfg, plans, p, ms) / amount(cfg, plans, base, ms) - 1
            keys = (*SHARED, *JUDGED) if cfg.at == 'best' else SHARED
            differ = [k for k in keys if getattr(p.cfg, k, None) != getattr(base.cfg, k, None)]
            print(f'{p.name}: {cfg.match} {off:+.2%} against {base.name}', flush=True)
            if p.arm in cfg.mismatch:
                continue
            by_name = f"name it in the config: mismatch = {{'{p.arm}': 'why this is fair'}}"
            if math.isnan(off):
                problems.append(f"{p.name}: {cfg.match} is known only after its steps; match = 'tokens', or {by_name}")
            elif abs(off) > 0.01:
                mend = f'--max_iters={round(iters(p) / (1 + off))} would match; or ' * (cfg.match != 'params')
                problems.append(f'{p.name}: {cfg.match} is {off:+.1%} off {base.name}; {mend}{by_name}')
            if differ:
                problems.append(f'{p.name}: has another {", ".join(differ)} than {base.name}; {by_name}')
    if problems:
        raise UserError('\n'.join(problems))


def notes(cfg, plans: list[Plan]) -> list[str]:
    """A line where a sweep does what a user may not expect: min_lr changes with the rate that is tried, matrix_lr does not."""
    found, fixed = {}, {}
    for p in plans:
        if not p.trains or rates_to_sweep(cfg, p) == [p.cfg.learning_rate]:
            continue
        share = getattr(p.cfg, 'min_lr', 0) / p.cfg.learning_rate if p.cfg.learning_rate else 0
        if share > protocol.ANNEALED and getattr(p.cfg, 'decay_lr', False):
            found.setdefault(f'{share:.0%}', []).append(p.name)
        if lr := getattr(p.cfg, 'matrix_lr', 0):
            fixed.setdefault(f'{lr:g}', []).append(p.name)
    return [
        f'NOTE: {", ".join(names)}: min_lr is {share} of learning_rate in the config, so it is {share} of every rate that is'
        ' tried: the rate hardly comes down; about 10% is usual'
        for share, names in found.items()
    ] + [
        f'NOTE: {", ".join(names)}: matrix_lr = {lr} whatever rate is tried, so only the rate of what AdamW moves is swept; to'
        ' sweep that of the matrices as well set matrix_lr = 0, and their share in hidden_lr'
        for lr, names in fixed.items()
    ]


def rates_to_sweep(cfg, plan: Plan) -> list[float] | str:
    """The rates to sweep, one if there is nothing to choose, or the arm whose best rate it takes."""
    if not plan.trains:
        return [0.0]
    name = plan.arm.removeprefix('steps/')
    all_arms = plan.is_arm and not isinstance(cfg.learning_rates, dict)
    given = cfg.learning_rates if all_arms else verdicts.entry_of(vars(cfg), name, plan.size)
    if isinstance(given, str):
        return given
    try:
        found = sorted({float(lr) for lr in given})
    except (TypeError, ValueError):
        found = [0.0]
    if not all(0 < lr < math.inf for lr in found):
        raise UserError(
            f'learning_rates: {given!r} of {name}: must be numbers above 0 in a tuple, or the name of an arm'
        )
    return found or [plan.cfg.learning_rate]


def settings(cfg) -> dict:
    """What tells a run from others: its keys that are not at their defaults, but for NOT_SETTINGS."""
    return json.loads(json.dumps({k: v for k, v in overrides(cfg).items() if k not in NOT_SETTINGS}))


def flags(plans: list[Plan], plan: Plan, lr: float, seed: int) -> list[str]:
    """The flags that give a run of an arm or a step this rate and this random seed."""
    names = {f.name for f in dataclasses.fields(plan.cfg)}
    found = []
    if plan.trains and lr != plan.cfg.learning_rate:
        found.append(f'--learning_rate={lr!r}')
        if 'min_lr' in names:  # the schedule keeps its shape
            found.append(f'--min_lr={lr * plan.cfg.min_lr / plan.cfg.learning_rate!r}')
    if 'seed_model' in names:
        goes_on = getattr(plan.cfg, 'init_from', 'transfer') != 'transfer'  # growing goes on in the data by itself
        legs = sum(q.trains for q in origins(plans, plan)) if goes_on else 0
        found += [f'--seed_model={seed}', f'--seed_data={seed + LEG * legs}']
    elif 'seed' in names:
        found.append(f'--seed={seed}')
    return found


def difference(a: dict, b: dict) -> str:
    """How the settings a of a run that is there differ from those, b, of one that is to be made."""
    return ', '.join(
        f'{k} = {a.get(k, "default")} there, {b.get(k, "default")} here' for k in sorted(a | b) if a.get(k) != b.get(k)
    )
