"""
What a checkpoint says of itself, checked before anything is built from it.

A file can be damaged, forged, or edited by hand. A model of n_layer = 1e9 never ends to build, and n_embd = 1e7 asks
for a petabyte. So every value is checked for its type and range, and every size against the tensors that are really
there. The model is then built on torch's meta device, which holds shapes and no numbers, and compared name by name.
"""

import dataclasses
import math

import torch

from checkpoint import dense
from configurator import UserError, brief, coerce, kinds, type_name, violations
from model import GPT, GPTConfig
from optimizers import OPTIMIZERS

FIELDS = {f.name: f for f in dataclasses.fields(GPTConfig)}
COUNT = 2**48  # iterations, windows, tokens, seconds; more than anyone trains, and exact in a float
FLOPS = 2**120  # whole numbers, as a run adds them up; more than anyone spends
ROPE = 2**20  # longest context whose table of angles is built; no tensor in the file speaks for it
WIDEST = 1000  # hidden units over n_embd

FLOATS = torch.float64, torch.float32, torch.bfloat16, torch.float16  # in shorter ones torch computes little
WHOLE = torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool

# values that are no key of GPTConfig: type, and the largest that makes sense; none is negative
NUMBERS = dict(iter_num=(int, COUNT), best_iter=(int, COUNT), lowest_a=(float, math.inf), lowest_a_iter=(int, COUNT),
               position=(int, COUNT), seconds=(float, COUNT), tokens=(int, COUNT), flops=(int, FLOPS),
               loss_sum=(float, COUNT), loss_count=(int, COUNT))  # fmt: skip
CONFIG = dict(dataset=str, batch_size=int, gradient_accumulation_steps=int, seed_data=int, expansion_schedule=str,
              expansion_every=int)  # fmt: skip


def shown(value, most: int = 60) -> str:
    """A value of a file for the terminal: short, without control characters."""
    text = brief(value, 10 * most)
    text = text if text.isprintable() else ascii(text if isinstance(value, str) else text.replace('\n', ' '))
    return text if len(text) <= most else text[: most - 3] + '...'


def fail(path, what: str):
    raise UserError(f'{path}: {shown(what, 400)}; the file is damaged or was edited, restore it from a copy')


def plain(value):
    """The number in a tensor of one element, as nanoGPT saves its best_val_loss; anything else as it is."""
    return value.item() if dense(value) and value.numel() == 1 else value


def number(path, name: str, value, kind=float, most=math.inf):
    """A value that must be a number from 0 to most."""
    v = plain(value)
    whole = isinstance(v, int) or isinstance(v, float) and (kind is float or v.is_integer())
    if isinstance(v, bool) or not whole:
        fail(path, f'{name} = {shown(v)}: must be of type {kind.__name__}')
    if not 0 <= v <= most or isinstance(v, int) and v > FLOPS:
        fail(path, f'{name} = {shown(v)}: must be between 0 and {most:g}')
    return kind(v)


def setting(path, name: str, value, where: str):
    """The value of a key of GPTConfig as its field wants it."""
    f, v = FIELDS[name], plain(value)
    try:
        if isinstance(v, torch.Tensor) or isinstance(v, str) and str not in kinds(f.type):
            raise ValueError
        v = coerce(v, f.type)
    except (ValueError, TypeError, OverflowError, RuntimeError):
        fail(path, f'{where} has {name} = {shown(value)}: must be of type {type_name(f.type)}')
    if wrong := violations(f, v):
        if name == 'linear' and isinstance(v, str) and v.isidentifier():  # of a layer that its author has, perhaps
            raise UserError(
                f'{path}: {where} has linear = {shown(v)}, and no such layer is here; put its file into linear/own/'
            )
        fail(path, f'{where} has {name} = {shown(value)}: {wrong}')
    if not all(math.isfinite(n) for n in (v if isinstance(v, tuple) else [v]) if isinstance(n, float)):
        fail(path, f'{where} has {name} = {shown(value)}: must be finite')
    return v


def check_model(ckpt: dict, path) -> GPT:
    """Check model_args, model, iter_num, best_val_loss and config, and put values of the right type in their place.
    Returns the model on the meta device, for its names and shapes. Raises UserError naming what does not fit."""
    args, tensors = ckpt['model_args'], ckpt['model']
    if odd := [shown(k) for k in args if k not in FIELDS]:
        raise UserError(f'{path}: model_args has keys that this version does not know: {", ".join(sorted(odd)[:5])}')
    ckpt['model_args'] = {k: setting(path, k, v, 'model_args') for k, v in args.items()}
    config = GPTConfig(**ckpt['model_args'])
    check_sizes(config, tensors, path)
    try:
        if found := config.problems():
            fail(path, f'model_args: {found[0]}')
        # starts that compute something of the numbers make no sense on meta; names and shapes are the same without
        shapes = dataclasses.replace(
            config, expansion_init='gaussian', expansion_lr='none', linear_path='factored', fuse_mlp=False
        )
        with torch.device('meta'):
            model = GPT(shapes)
    except UserError:
        raise
    except Exception as e:  # sizes beyond what torch can count, and the like
        fail(path, f'model_args describe no model ({(str(e) or type(e).__name__).splitlines()[0]})')
    check_tensors(model.state_dict(), tensors, path)
    head, wte = tensors['lm_head.weight'] if config.tie_head else None, tensors['transformer.wte.weight']
    if config.tie_head and head.data_ptr() != wte.data_ptr() and not torch.equal(head, wte):
        fail(path, 'lm_head.weight is not transformer.wte.weight, and model_args ties the two')
    check_plain(ckpt, path)
    return model


def check_sizes(config, tensors: dict, path):
    """The sizes that decide how much is built, against the tensors of the file."""
    blocks = {k.split('.')[2] for k in tensors if k.startswith('transformer.h.')}
    if len(blocks) != config.n_layer:
        fail(
            path, f'model_args has n_layer = {shown(config.n_layer)}, and the weights of {len(blocks)} blocks are there'
        )
    wanted = {'transformer.wte.weight': ('vocab_size', 'n_embd'), 'transformer.wpe.weight': ('block_size', 'n_embd')}
    if config.position != 'learned':
        del wanted['transformer.wpe.weight']
        if config.block_size > ROPE:
            fail(path, f'model_args has block_size = {shown(config.block_size)}: must be at most {ROPE:,}')
    for name, keys in wanted.items():
        shape = tuple(getattr(config, k) for k in keys)
        if name not in tensors:
            fail(path, f'the weights do not fit the model: missing {name}')
        if tuple(tensors[name].shape) != shape:
            says = ', '.join(f'{k} = {shown(v)}' for k, v in zip(keys, shape))
            fail(path, f'model_args has {says}, and {name} is {tuple(tensors[name].shape)}')
    for k in ('tt_cores', 'expansion_depth'):  # each is a list of tensors
        if getattr(config, k) > max(len(tensors), FIELDS[k].default):
            fail(path, f'model_args has {k} = {shown(getattr(config, k))}, and {len(tensors)} tensors are there')
    width = config.mlp_expansion_factor
    each = width if isinstance(width, tuple) else (width,) * config.n_layer
    fit = len(each) == config.n_layer and all(0 < f <= WIDEST for f in each)
    if not fit or any(config.hidden(i) > WIDEST * config.n_embd for i in range(config.n_layer)):
        fail(path, f'model_args has mlp_expansion_factor = {shown(width)}, multiple_of = {shown(config.multiple_of)}:'
                   f' must be one factor, or {config.n_layer}, up to {WIDEST}')  # fmt: skip


def check_tensors(wanted: dict, tensors: dict, path):
    """Names, shapes and kinds of number; the first three that are wrong are named."""
    wrong = [f'missing {k}' for k in wanted if k not in tensors]
    wrong += [f'left over {shown(k)}' for k in tensors if k not in wanted]
    for k, w in wanted.items():
        if k in tensors and tensors[k].shape != w.shape:
            wrong.append(f'{k} is {tuple(tensors[k].shape)}, not {tuple(w.shape)}')
        elif k in tensors and not (tensors[k].dtype in FLOATS if w.is_floating_point() else tensors[k].dtype in WHOLE):
            wrong.append(f'{k} is of type {str(tensors[k].dtype).removeprefix("torch.")}')
    if wrong:
        more = f' and {len(wrong) - 3} more' if len(wrong) > 3 else ''
        split = [k for k in wanted if k in tensors and '.factors.' in k and tensors[k].shape != wanted[k].shape]
        if split and len(split) == len(wrong):  # of the same layers: see CHANGELOG.md on splits
            out = '`python transfer.py collapse` makes it dense, and here `factorize` splits that'
            if any(f'{k.partition(".factors.")[0]}.router' in wanted for k in split):
                out = 'it can still be read; a mixture has no dense form, so train it again here'
            raise UserError(
                f'{path}: its layers are split otherwise than here ({wrong[0]}{f"; {len(wrong) - 1} more" * (len(wrong) > 1)}),'
                f' by another version of this code (commit: manifest.json beside it); there {out}'
            )
        raise UserError(f'{path}: the weights do not fit the model: ' + '; '.join(wrong[:3]) + more)


def check_plain(ckpt: dict, path):
    """iter_num, best_val_loss, config: what every reader of a checkpoint takes for granted."""
    ckpt['best_val_loss'] = number(path, 'best_val_loss', ckpt['best_val_loss'])
    for name, (kind, most) in NUMBERS.items():
        if name in ckpt:
            ckpt[name] = number(path, name, ckpt[name], kind, most)
    config = ckpt['config']
    if not isinstance(config, dict) or not all(isinstance(k, str) for k in config):
        fail(path, f'config is {shown(config)}: must be a dict of keys')
    for k, v in config.items():
        if k == 'vocab_size' and isinstance(v, int) and v == 0:
            continue  # the data set's
        if k in FIELDS:
            config[k] = setting(path, k, v, 'config')
        elif CONFIG.get(k) is int:
            config[k] = number(path, f'config has {k}', v, int, 2**64)
        elif CONFIG.get(k) is str and not isinstance(v, str):
            fail(path, f'config has {k} = {shown(v)}: must be of type str')
        elif any(isinstance(x, torch.Tensor) for x in (v, *(v if isinstance(v, list | tuple) else ()))):
            fail(path, f'config has {k} = {shown(v)}: must hold no tensor')  # it would be compared with a plain value
    schedule, model = config.get('expansion_schedule', 'all'), GPTConfig(**ckpt['model_args'])
    if schedule not in ('all', 'rotate', 'reset') or schedule != 'all' and 'linear' not in config:
        fail(path, f'config has expansion_schedule = {shown(schedule)}, linear = {shown(config.get("linear"))}')
    if schedule == 'rotate' and config['linear'] == 'expanded':  # resuming expands layers of these sizes
        for k in ('linear', 'expansion', 'expansion_depth'):
            if config.get(k) != getattr(model, k):
                fail(path, f'config has {k} = {shown(config.get(k))}, its model {getattr(model, k)}')
    check_past(ckpt.get('transfer'), path)


def check_past(past, path):
    """`transfer`: where a grown model comes from."""
    if past is None:
        return
    if not isinstance(past, dict):
        fail(path, f'transfer is {shown(past)}: must be a dict')
    for k in ('since', 'seconds', 'flops'):
        if k not in past:
            fail(path, f'transfer has no {k}')
        if not (k == 'flops' and past[k] is None):
            past[k] = number(path, f'transfer.{k}', past[k], *((int, FLOPS) if k == 'flops' else ()))


def check_resume(ckpt: dict, model, path):
    """What a run goes on from, where the checkpoint has it: optimizer, scaler, rng."""
    if 'optimizer' in ckpt:
        formed = {  # with step_rule = product a W has moments, and its factors have none
            f'{name}.weight': torch.empty(m.d_out, m.d_in, device='meta')
            for name, m in model.named_modules()
            if hasattr(m, 'factors')
        }
        check_moments(ckpt['optimizer'], model.state_dict() | formed, path)
    scaler = ckpt.get('scaler', {})
    if not isinstance(scaler, dict) or scaler and set(scaler) != set(torch.amp.GradScaler('cpu').state_dict()):
        fail(path, f'scaler is {shown(scaler)}: must be the state of a GradScaler, or {{}}')
    for k, v in scaler.items():
        scaler[k] = number(path, f'scaler.{k}', v, int if k in ('growth_interval', '_growth_tracker') else float, COUNT)
    if 'rng' in ckpt:
        check_rng(ckpt['rng'], path)


def check_moments(state, wanted: dict, path):
    """{parameter name: {step, exp_avg, exp_avg_sq}}, the moments of their parameter's shape; or the state of one of
    optimizers/: averages of the parameter's shape, and tensors with a number for each row or column of its matrices. Which of
    them there must be, the optimizer of a run says when it loads them."""
    averages = {'exp_avg', 'exp_avg_sq'} | {k for kind in OPTIMIZERS.values() if kind for k in kind.averages}
    if not isinstance(state, dict):
        fail(path, f'optimizer is {shown(state)}: must be a dict')
    for name, entry in state.items():
        if name not in wanted:
            fail(path, f'optimizer has a state for {shown(name)}, which the model has not')
        keys = set(entry) if isinstance(entry, dict) else set()
        adams = bool(keys & {'step', 'exp_avg', 'exp_avg_sq'})
        if not (keys == {'step', 'exp_avg', 'exp_avg_sq'} if adams else keys & averages):
            has = ', '.join(map(shown, entry)) if isinstance(entry, dict) else shown(entry)
            fail(path, f'optimizer has for {name}: {has}; must be step, exp_avg, exp_avg_sq, or what optimizers/ names')
        if adams:
            entry['step'] = torch.tensor(number(path, f"optimizer's step of {name}", entry['step'], float, COUNT))
        for k in sorted(keys - {'step'}, key=str):
            v, p = entry[k], wanted[name]
            if (
                not dense(v)
                or not v.is_floating_point()
                or k in averages
                and v.shape != p.shape
                or v.numel() > p.numel()
            ):
                what = f'{tuple(v.shape)} of {v.dtype}' if dense(v) else shown(v)
                fail(path, f'optimizer has {shown(k)} of {name} = {what}: must be {tuple(p.shape)}')
            entry[k] = v.contiguous()


def check_rng(rng, path):
    if not isinstance(rng, dict) or not all(isinstance(rng.get(k), list | tuple) for k in ('cpu', 'cuda')):
        fail(path, 'rng must be {cpu: [states], cuda: [states or none]}')
    if len(rng['cuda']) != len(rng['cpu']):
        fail(path, f'rng has {len(rng["cpu"])} states of the CPU and {len(rng["cuda"])} of CUDA')
    sizes = dict(cpu=torch.get_rng_state().numel(), cuda=16)
    for k in sizes:
        for i, v in enumerate(rng[k]):
            if k == 'cuda' and v is None:
                continue
            if not dense(v) or v.dtype != torch.uint8 or v.shape != (sizes[k],) or k == 'cpu' and not is_state(v):
                fail(path, f'rng.{k}[{i}] is no state of a random generator ({sizes[k]} bytes)')


def is_state(v) -> bool:
    """Whether a random generator of the CPU takes it."""
    try:
        torch.Generator().set_state(v)
    except RuntimeError:
        return False
    return True
