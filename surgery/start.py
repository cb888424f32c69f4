"""
What a run starts from (init_from): scratch, a checkpoint, a small model that is grown, and perhaps trained first.
"""

import dataclasses
import os
from dataclasses import dataclass

import torch
import torch.distributed as dist

import checkpoint
import hardware
import linear
import logger
from configurator import UserError, brief, input_path, key, load, overrides, printable, root_path
from files import read_json
from linear.factors import load_state
from model import COMPUTING, GPT
from surgery import reader, rotate, shares
from surgery.grow import growth
from tokens import loader, tokenizer


@dataclass
class Keys:
    """What a run starts from."""

    init_from: str = key(
        'scratch',
        "scratch, resume (out_dir's ckpt.pt), transfer (grow a small model), a checkpoint, a Hugging Face GPT-2 folder,"
        ' gpt2 ... gpt2-xl',
        group='run and output',
    )
    transfer_from: str = key(
        '',
        'transfer: checkpoint of the small model, or the config that trains it first',
        group='init_from = transfer: growing a small model',
    )
    transfer_method: str = key(
        '', 'transfer: how it grows, such as clone or clone+stack; transfer.py grow --help lists them'
    )
    transfer_noise: float = key(0.0, 'transfer: paired noise over the size of the weights, to tell copies apart', low=0)
    transfer_moments: str = key(
        'auto',
        "transfer: the optimizer's averages (Adam's moments, Muon's momentum) grow with the weights (move) or start anew (fresh); auto: move where that is known",
        choices=('auto', 'move', 'fresh'),
    )
    other_vocabulary: bool = key(
        False, 'init_from a checkpoint, transfer: allow data whose token ids mean something else to that model'
    )


def problems(cfg) -> list[str]:
    """What is wrong with init_from and the keys that go with it, one line each."""
    if cfg.init_from == 'transfer':
        missing = [k for k in ('transfer_from', 'transfer_method') if not getattr(cfg, k)]
        return [f"{k}: must be given, for init_from = 'transfer'" for k in missing]
    found = []
    if cfg.init_from != 'resume' and (given := [k for k in overrides(cfg) if k.startswith('transfer_')]):
        found.append(f"init_from = '{cfg.init_from}': {', '.join(given)}: only for init_from = 'transfer'")
    if cfg.other_vocabulary and cfg.init_from in ('scratch', 'resume'):
        found.append(f"other_vocabulary = True: goes with another model's weights, not with '{cfg.init_from}'")
    return found


def restarted(cfg, device):
    """cfg, with init_from = resume where torchrun has restarted its processes (--max-restarts) or Slurm the job: nobody is
    there to say so. Only a run of this very launch goes on; an older one in out_dir is left alone."""
    counts = [float(os.environ.get(f'{who}_RESTART_COUNT', 0)) for who in ('TORCHELASTIC', 'SLURM')]
    restarts = hardware.total(torch.tensor(sum(counts), device=device))  # a node whose processes all lived counts none
    if not restarts.item() or not hardware.launch():
        return cfg
    folder = root_path(cfg.out_dir)
    try:
        mine = read_json(folder / 'manifest.json', logger.MANIFEST).get('launch') == hardware.launch()
    except UserError:
        return cfg
    goes_on = mine and ((folder / 'ckpt.pt').exists() or shares.found(folder))
    return dataclasses.replace(cfg, init_from='resume') if goes_on else cfg


def read(cfg) -> tuple:
    """(path, checkpoint) that init_from names; ('', None) for scratch."""
    if cfg.init_from == 'scratch':
        return '', None
    if cfg.init_from != 'resume':
        path = cfg.transfer_from if cfg.init_from == 'transfer' else cfg.init_from
        return path, reader.load(path)
    path, ckpt = latest(root_path(cfg.out_dir))
    if not {'optimizer', 'position', 'scaler', 'rng'} <= set(ckpt):
        why = f' ({ckpt["unresumable"]})' if 'unresumable' in ckpt else ''
        raise UserError(
            f'{path} has weights but no optimizer state to resume from{why}; to start from its weights:'
            f' --init_from={cfg.out_dir}/ckpt.pt and another --out_dir'
        )
    return path, ckpt


def latest(out_dir) -> tuple:
    """(path, checkpoint) that a run goes on from: ckpt.pt, or a later one in shares."""
    plain, folders = out_dir / 'ckpt.pt', shares.found(out_dir)
    ckpt = reader.load(plain) if plain.exists() or not folders else None
    if folders and (ckpt is None or ckpt['iter_num'] < shares.number(folders[-1])):
        return folders[-1], shares.load(folders[-1])
    return plain, ckpt


def settle(cfg, ckpt: dict | None, path, vocabulary: int, quiet=False):
    """cfg with what the checkpoint and the data set decide. UserError if the keys do not fit them. vocabulary: of the
    model, where neither cfg nor the checkpoint names one."""
    if ckpt and cfg.init_from != 'transfer':
        cfg = take_model_keys(cfg, ckpt, path, quiet)
    if not cfg.vocab_size:
        cfg = dataclasses.replace(cfg, vocab_size=vocabulary)
    if cfg.init_from == 'transfer':
        cfg = growth.prepare(cfg, ckpt)
    if found := cfg.problems(sized=True):
        raise UserError('\n'.join(found))
    if cfg.init_from == 'resume':
        lines = changes(cfg, ckpt)
        if lines and not quiet:
            print('\n'.join(lines), flush=True)
    return cfg


def other_data(ckpt: dict, cfg, fingerprint: dict) -> tuple[dict | None, bool]:
    """Whether a resumed run reads other data than before: ({split: tokens} of the data set before, or None if it is the same
    now; whether evaluations see other text). fingerprint: {split: [tokens, checksum]} of the data set now. A checkpoint of
    another program may not say; an old one has no checksums."""
    was, config = ckpt.get('data'), ckpt['config']
    was = was if config.get('dataset') == cfg.dataset and isinstance(was, dict) else {}
    was = {split: v if isinstance(v, list) and v else [v] for split, v in was.items()}
    other = {split for split, v in was.items() if v != fingerprint.get(split, [])[: len(v)]}

    def seen(config: dict) -> tuple:  # data set, and windows of this one
        of = lambda k: v if isinstance(v := config.get(k), type(getattr(cfg, k))) else getattr(cfg, k)
        most = (fingerprint['val'][0] - 1) // cfg.block_size
        return of('dataset'), min(of('eval_iters') * of('batch_size') or most, most)

    before = {split: v[0] for split, v in was.items()} if other else None
    return before, 'val' in other or seen(config) != seen(vars(cfg))


def changes(cfg, ckpt: dict) -> list[str]:
    """What a resumed run does otherwise than before, one line each. UserError where the place in the data or the
    optimizer's state would mean nothing."""
    drop = ('init_', 'transfer_', 'other_vocabulary', 'out_dir', 'eval_only', 'note', 'wandb_', 'vocab_size')
    was, now = ckpt['config'], dataclasses.asdict(cfg)
    changed = [k for k in now if k in was and not k.startswith(drop) and was[k] != now[k] and was[k] != listed(now[k])]
    anew = f'start a new run from its weights: --init_from={cfg.out_dir}/ckpt.pt and another --out_dir'
    if odd := [k for k in ('seed_data', 'data_order') if k in changed]:
        raise UserError(
            f'init_from = resume: {", ".join(f"{k} = {now[k]}" for k in odd)}: the run was at window {ckpt["position"]:,} of'
            f' another order of its data ({", ".join(f"{k} = {printable(brief(was[k]))}" for k in odd)}); give it that, or {anew}'
        )
    if 'optimizer' in changed:
        raise UserError(
            f'init_from = resume: optimizer = {now["optimizer"]}: the state is of optimizer = {printable(brief(was["optimizer"]))};'
            f' resume with that, or {anew}'
        )
    found, position = [], ckpt['position']
    if changed:
        text = ', '.join(f'{k} = {now[k]} (was {brief(was[k])})' for k in changed)
        found.append(f'changed since the checkpoint: {printable(text)}')
    if 'dataset' in changed:
        found.append(f'NOTE: the place in the data stays, window {position:,}: of {cfg.dataset} it has seen none')
    if (before := checkpoint.tokens_per_iter(was)) and before != (tokens := cfg.tokens_per_iter):
        found.append(f'NOTE: an iteration has {tokens:,} tokens now, it had {before:,}; the schedule counts iterations')
    processes, world = len(ckpt['rng']['cpu']), hardware.rank_world()[1]
    if cfg.dropout and processes and processes != world:
        found.append(f'NOTE: the run had {processes} processes, it has {world} now: dropout draws other numbers')
    if 'format' not in ckpt:
        found.append(
            f'a run of nanoGPT goes on at its iteration {ckpt["iter_num"]}, best val loss {ckpt["best_val_loss"]:.4f};'
            f' its order of the data is not known: this one starts at window {position:,} of its own order,'
            ' which is as many tokens as were consumed'
        )
    return found


def listed(value):
    """A value of several numbers as a file may have it."""
    return list(value) if isinstance(value, tuple) else value


def data_vocabulary(cfg, ckpt: dict | None, path, rank: int, world: int) -> dict:
    """Prepare the data set, in one process, and give its vocabulary (tokenizer.py). Raises UserError if its ids mean
    something else in the checkpoint to start from: before hours of preparation, where the recipe declares its tokens."""
    resume = cfg.init_from == 'resume'
    model = tokenizer.of_checkpoint(input_path(str(path)), ckpt) if ckpt else {}
    mend = 'prepare the data set as it was' if resume else 'take data in its tokens'
    was = ckpt['config'].get('dataset') if ckpt else None
    if loader.is_plain(was) and was != cfg.dataset:
        mend = f'use --dataset={was}, its own'
    other = 'start a new run' if resume else 'add --other_vocabulary=true where ids may get other meanings'
    remedy = f'{mend}, or {other}'
    what = f'init_from = {path}' if cfg.init_from != 'transfer' else f'transfer_from = {path}'
    own = loader.recipe_tokenizer(cfg.dataset)
    kinds = {model.get('tokenizer'), own} - {'', None, 'huggingface'}
    if ckpt and len(kinds) > 1 and not cfg.other_vocabulary:
        raise UserError(
            f'{what}: its vocabulary is {tokenizer.describe(model)}, the data set {cfg.dataset} has {own} tokens; {remedy}'
        )
    if not rank:
        loader.prepare(cfg.dataset)
    if world > 1:
        dist.barrier()
    data, note = tokenizer.of_data(cfg.dataset), ''
    if not loader.read_meta(cfg.dataset) and not rank:
        print(
            f"NOTE: {loader.data_dir(cfg.dataset)} has no meta.json: its ids are taken for those of GPT-2's vocabulary"
        )
    if ckpt and not cfg.other_vocabulary:
        note = tokenizer.require_same(model, data, what, remedy, strict=resume)
    elif ckpt and tokenizer.compare(model, data) == 'other':
        note = (
            f'NOTE: {what}: its vocabulary was {tokenizer.describe(model)}; the ids get the meanings of {cfg.dataset}'
        )
    if note and not rank:
        print(note, flush=True)
    return data


def build(cfg, ckpt: dict | None, data, quiet=False) -> tuple:
    """(model that a run starts with, on the CPU; state of the optimizer that has grown with it, or None; windows of the
    training data that were seen before; the history of its growth, or None). data: the run's training data, for what is
    learned on it."""
    torch.manual_seed(cfg.seed_model)
    resume = cfg.init_from == 'resume'
    model = GPT(rotate.model_config(cfg, ckpt['iter_num'] if resume else 0))
    if cfg.init_from == 'transfer':
        moments, history = growth.start(model, cfg, ckpt, data, quiet)
        same = all(
            ckpt['config'].get(k) == getattr(cfg, k) for k in ('dataset', 'data_order', 'block_size', 'seed_data')
        )
        return model, moments, ckpt.get('position', 0) if same else 0, history  # go on with data it has not seen
    if ckpt:
        load_state(model, ckpt['model'])
    return model, None, 0, ckpt.get('transfer') if resume else None


def take_model_keys(cfg, ckpt: dict, path, quiet: bool):
    """cfg with the architecture of a checkpoint, as nanoGPT does; dropout stays, block_size may shrink. Resuming, or
    going on from factors, takes the parameterization as well; starting from a plain model lets cfg choose another."""
    args = checkpoint.read_args(ckpt, path)
    drop = ['dropout', *COMPUTING]
    if cfg.init_from != 'resume':
        shape = [k for k in linear.all_keys() if k != 'linear_path']
        if args['linear'] == 'dense':
            drop += shape
        elif cfg.expansion_schedule != 'all':
            raise UserError(
                f'init_from = {path}: its layers are {args["linear"]}, expansion_schedule = {cfg.expansion_schedule}'
                f' starts from plain ones; {linear.plain_first(args["linear"])}'
            )
        elif other := [k for k in overrides(cfg) if k in shape and getattr(cfg, k) != args[k]]:
            raise UserError(
                f'init_from = {path}: its layers are {args["linear"]}; leave out {", ".join(other)} to go on with them;'
                f' for other layers: {linear.plain_first(args["linear"])}'
            )
        if cfg.block_size < args['block_size'] and args['position'] == 'learned':
            wpe = 'transformer.wpe.weight'
            ckpt['model'][wpe] = ckpt['model'][wpe][: cfg.block_size]
        args['block_size'] = min(cfg.block_size, args['block_size'])
    else:
        args |= rotate.resumed(ckpt)
        grown = {k: ckpt['config'].get(k) for k in vars(cfg) if k.startswith('transfer_')}  # long ago, and only once
        args |= {k: v for k, v in grown.items() if isinstance(v, type(getattr(cfg, k)))}
    args = {k: v for k, v in args.items() if k not in drop}
    changed = {k: v for k, v in args.items() if getattr(cfg, k) != v and (k, getattr(cfg, k)) != ('vocab_size', 0)}
    if changed and not quiet:
        shown = lambda value: 'empty' if value in ('', ()) else value
        text = ', '.join(f'{k} = {shown(v)} (not {shown(getattr(cfg, k))})' for k, v in changed.items())
        print(f'taken from the checkpoint: {printable(text)}', flush=True)
    return dataclasses.replace(cfg, **args)


# beginnings of the names of keys that do not change what is learned up to an iteration
UNLEARNED = (
    'out_', 'max_iters', 'init_from', 'vocab_size', 'eval_', 'log_', 'wandb_', 'save_', 'always_', 'patience', 'note', 'keep_last',
    'on_nan', 'device', 'backend', 'parallel', 'sharded_checkpoints', 'activation_checkpointing', 'dtype', 'compile', 'cuda_graph',
    'deterministic', *COMPUTING,
)  # fmt: skip


def source(cfg, small):
    """Where transfer_from is a config, `small`: (cfg that grows the checkpoint of small, the config that trains small first,
    or None if that has been done)."""
    machine = dict(device=cfg.device, backend=cfg.backend, compile=cfg.compile, deterministic=cfg.deterministic)
    small = dataclasses.replace(small, **machine)
    path = root_path(small.out_dir) / 'ckpt.pt'
    if path.parent == root_path(cfg.out_dir):
        raise UserError(f"out_dir = '{cfg.out_dir}': {cfg.transfer_from} trains the small model there; choose another")
    if small.eval_only or not small.save_checkpoint:
        k = 'eval_only = True' if small.eval_only else 'save_checkpoint = False'
        raise UserError(f'{cfg.transfer_from}: {k} leaves no checkpoint to grow; leave it out there')
    done = reader.load(path) if path.exists() else dict(config={}, iter_num=0)
    now = small
    if small.transfer_from.endswith('.py'):  # it was grown itself, and notes the checkpoint that it came from
        now, _ = source(small, load(type(small), [small.transfer_from]))
    changed = {k: v for k, v in done['config'].items() if not k.startswith(UNLEARNED) and v != getattr(now, k, v)}
    if (began := done.get('began') or small.init_from) != small.init_from:  # an older checkpoint does not say
        changed['init_from'] = began
    if changed or done['iter_num'] > small.max_iters:
        was = ', '.join(f'{k} = {brief(v)}' for k, v in changed.items()) or f'{done["iter_num"]} iterations'
        raise UserError(f'{path} is not of {cfg.transfer_from}: it was trained with {was}; move it, or use it as it is')
    cfg = dataclasses.replace(cfg, transfer_from=f'{small.out_dir}/ckpt.pt')
    if done['iter_num'] == small.max_iters:
        return cfg, None
    return cfg, dataclasses.replace(small, init_from='resume') if path.exists() else small
