"""
Flags, checkpoints, token files and the records of runs as nobody should write them: each is accepted, or refused in one
line, never with a traceback, in 5 seconds of computing and little memory.

    make fuzz                                     10,000 cases of each of the four; prints a line for each
    FUZZ_CASES=500 python tests/fuzz.py tokens    fewer, of one
    python tests/fuzz.py tokens 1234              this case again, with its traceback

A case of a file is made from its number alone. The cases of the configurator come from hypothesis, which shows a failing
one in its shortest form. make test does a few of each (test_configurator.py, test_reader.py, test_fuzz.py).
"""

import collections
import contextlib
import dataclasses
import faulthandler
import io
import json
import math
import os
import pickle
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
import zipfile
from dataclasses import dataclass, field
from pathlib import Path

if __name__ == '__main__':
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import torch
from conftest import tiny_gpt, tokens, train_config
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

import bench
import checkpoint
import compare
import evaluate
import hardware
import logger
import plot
import sample
from configurator import UserError, load
from lab import questions, records, report
from model import NANOGPT_KEYS
from optimizers.optim import Optimizer
from surgery import reader, start
from surgery.export_nanogpt import nanogpts_state
from tokens import recipes, tokenfile, tokenizer
from tokens.download import write_dataset
from tokens.loader import Loader
from train import TrainConfig
from transfer import COMMANDS

SECONDS = 5  # of computing that a case may take
CLOCKS = (
    (signal.SIGPROF, signal.ITIMER_PROF, SECONDS),
    (signal.SIGALRM, signal.ITIMER_REAL, 6 * SECONDS),
)  # computing; waiting
MIB = 512  # by which a process may grow over all of its cases
MEMORY = (
    '/dev/shm' if os.access('/dev/shm', os.W_OK) else None
)  # files in memory, where there are such: no waiting for a disk


def cases(short: int) -> int:
    """How many cases of a promise a test does: a few, or what FUZZ_CASES says."""
    return int(os.environ.get('FUZZ_CASES', short))


class Hang(BaseException):
    """No Exception: the code under test must not take it for a damaged file."""


@dataclass
class Count:
    """What became of the cases."""

    accepted: int = 0
    refused: int = 0
    slowest: float = 0.0  # seconds of computing
    seconds: float = 0.0  # of all cases
    mib: float = 0.0  # by which the process grew
    wrong: list = field(default_factory=list)  # [what a case did against its promise]


def peak() -> float:
    """MiB that this process has held at most."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10


def attempt(count: Count, name, case):
    """Run a case and count it. Raises AssertionError if it does what no case may do."""
    before, t0 = peak(), time.process_time()
    for sign, clock, seconds in CLOCKS:
        signal.signal(sign, hang)
        signal.setitimer(clock, seconds)
    try:
        case()
        count.accepted += 1
    except UserError as e:
        text = str(e)
        assert text and all(len(line) < 1000 for line in text.split('\n')), f'{name}: it says {text[:300]!r}'
        count.refused += 1
    except BaseException as e:
        if isinstance(e, KeyboardInterrupt | AssertionError):
            raise
        raise AssertionError(f'{name}: {type(e).__name__}: {str(e)[:300]}') from e
    finally:
        for sign, clock, _ in CLOCKS:
            signal.setitimer(clock, 0)
            signal.signal(sign, signal.SIG_DFL)
        took, grown = time.process_time() - t0, peak() - before
        count.slowest, count.seconds, count.mib = max(count.slowest, took), count.seconds + took, count.mib + grown
    assert took < SECONDS, f'{name}: it took {took:.1f} s'
    assert grown < MIB, f'{name}: it took {grown:.0f} MiB'


def hang(*_):
    raise Hang(f'in {traceback.extract_stack()[-2]}')


# -----------------------------------------------------------------------------
# flags and config files


NUMBERS = st.one_of(
    st.sampled_from([0, 1, -1, 2, 3, 7, 12, 768, 10_007, 65_521, 2**20, 10**6, 2**31, 2**53 + 1, 10**9, 10**30]),
    st.sampled_from(['1e6', '2e7', '1e400', 'nan', 'inf', '-inf', '1_0', '0x10', '9' * 5000, '', ',', '1,2,3', 'none']),
    st.integers(-(2**70), 2**70),
    st.floats(),
)
TEXTS = st.one_of(
    st.text(max_size=20),
    st.sampled_from(
        ['\0', '~nobodyatall/x', 'x' * 5000, '/dev/zero', '../..', '\ud800', '\x1b[2J', 'h.*', '*', '[', '+']
    ),
)
VALUES = st.one_of(
    NUMBERS, TEXTS, st.booleans(), st.none(), st.lists(NUMBERS, max_size=8), st.dictionaries(TEXTS, NUMBERS, max_size=3),
)  # fmt: skip
WIDTHS = st.sampled_from([24, 64, 768, 10_007, 65_536, 131_072, 250_000, 10**9])
ARGUMENTS = st.one_of(  # that are no --key=value
    TEXTS.filter(lambda t: t not in ('-h', '--help')),
    st.sampled_from(['--', '-', '---', '--=', '--=1', '-n', '--n_layer', '--compile', '--no-compile', '.', '/', 'config/d12.py',
                     'config/compare/demo.py', 'README.md', '.venv/bin/python', '/dev/null', '/proc/self/mem']),
)  # fmt: skip
SCHEMAS = [TrainConfig, compare.CompareConfig, evaluate.EvalConfig, sample.SampleConfig, bench.BenchConfig,
           plot.PlotConfig, *dict.fromkeys(keys for keys, _ in COMMANDS.values())]  # fmt: skip


def plausible(field):
    """Values of a key: its choices where it has some, else anything."""
    choices = field.metadata.get('choices')
    return st.one_of(st.sampled_from(choices), VALUES) if choices else VALUES


def some_keys(schema, most=6):
    """{key: value}, keys of the schema and others. Three of its layers' keys at once are likelier than chance has it."""
    fields = {f.name: f for f in dataclasses.fields(schema)}
    one = st.sampled_from(sorted(fields)).flatmap(lambda name: st.tuples(st.just(name), plausible(fields[name])))
    likely = dict(linear=plausible(fields['linear']), n_embd=WIDTHS, n_head=st.just(1)) if 'linear' in fields else {}
    layer = st.tuples(*(st.tuples(st.just(k), v) for k, v in likely.items()))
    layer = st.one_of(layer, layer.map(lambda t: ()))
    odd = st.tuples(st.text(max_size=12), VALUES)
    return st.tuples(layer, st.lists(st.one_of(one, one, one, odd), max_size=most)).map(lambda t: dict([*t[0], *t[1]]))


def configurations(n: int, schema, where: str, folder: Path, count: Count):
    """n cases: keys with any values, as flags or in a file, and other arguments among the flags."""
    file = folder / 'c.py'

    @settings(
        max_examples=n, deadline=None, database=None, phases=[Phase.generate], suppress_health_check=list(HealthCheck)
    )
    @given(some_keys(schema), st.lists(ARGUMENTS, max_size=1))
    def case(keys, others):
        if where == 'flags':
            argv = [f'--{k}={v}' for k, v in keys.items()] + others
        else:
            text = ''.join(f'globals()[{k!r}] = eval({repr(v)!r}, _names)\n' for k, v in keys.items())
            file.write_text("_names = dict(inf=float('inf'), nan=float('nan'))\n" + text, errors='surrogatepass')
            argv = [str(file)]
        attempt(count, f'{schema.__name__} {argv}', lambda: load(schema, argv))

    case()


# -----------------------------------------------------------------------------
# values and bytes that nobody expects


def laughs(n=64):
    """A list of n objects that reads as 2^n."""
    a = ['ha']
    for _ in range(n):
        a = [a, a]
    return a


def endless():
    """A list that holds itself."""
    a = []
    a.append(a)
    return a


def nested(n=200):
    a = {}
    for _ in range(n):
        a = {'a': [a]}
    return a


PLAIN = [None, True, False, 0, 1, -1, 2, 7, 1000, 10**6, 10**9, 2**31, 2**53 + 1, 2**63, 2**64, 2**70, 10**400, 0.0, -0.0,
         0.5, -1e-9, 1e308, 5e-324, math.nan, math.inf, -math.inf, '', 'x', '0', 'nan', 'none', 'dense', 'gpt2', '\0', '\x1b[2J' * 50,
         '\u202e', 'é' * 500, 'x' * 10**5, '../../etc/passwd', '/dev/zero', [], {}, [[]], [1, 2], {'a': 1}, [None] * 1000]  # fmt: skip
MORE = [b'x', (), (1.0, 2.0), 1j, {1: 2}, {1, 2}, (((),),), torch.Size([2, 3]), torch.float16, collections.OrderedDict(a=1),
        collections.Counter('aab'), bytearray(b'xx'), laughs(), endless(), nested(), tuple([0.5] * 1000),
        {None: None}, {(1, 2): 3}, {2**70: 0}, {math.nan: 0}, {True: 1}]  # fmt: skip


def odd_value(rng: random.Random, json_only=False):
    """Any value that JSON, or a checkpoint, can hold."""
    if json_only or rng.random() < 0.5:
        return rng.choice(PLAIN)
    return rng.choice(MORE) if rng.random() < 0.5 else odd_tensor(rng, torch.ones(3, 4))


DTYPES = [torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.uint8, torch.int8, torch.bool,
          torch.complex64, torch.float8_e4m3fn, torch.float8_e5m2, torch.uint16, torch.uint64]  # fmt: skip


def odd_tensor(rng: random.Random, t):
    """A tensor that is almost t: of another shape, kind, layout or value."""
    odd = t.layout != torch.strided or t.is_quantized or t.is_meta or t.is_nested
    flat = torch.ones(4) if odd else t.reshape(-1)
    some = [
        lambda: t.to(rng.choice(DTYPES)),
        lambda: t.to(rng.choice(DTYPES)),
        lambda: flat[: rng.randrange(len(flat) + 1)].clone(),
        lambda: flat.clone(),
        lambda: t[None].clone(),
        lambda: torch.cat([t, t]),
        lambda: t.t().contiguous(),
        lambda: t.t(),
        lambda: t.flip(0),
        lambda: torch.full_like(t, rng.choice([math.nan, math.inf, 1e38, 1e-45, -1, 0])),
        lambda: torch.zeros(()),
        lambda: torch.zeros(0, *t.shape[1:]),
        lambda: torch.zeros(1).expand(t.shape),
        lambda: torch.zeros(1).expand(10**6, 10**6),
        lambda: torch.zeros(1).expand(2**31, 2**31),
        lambda: flat.as_strided(t.shape, [0] * t.dim()),
        lambda: flat.as_strided(t.shape, [1] * t.dim()) if len(flat) > sum(t.shape) else flat,
        lambda: torch.empty(t.shape, device='meta'),
        lambda: t.to_sparse(),
        lambda: t.reshape(len(t), -1).to_sparse_csr(),
        lambda: torch.sparse_coo_tensor(torch.zeros(2, 1, dtype=torch.long), torch.ones(1), (10**9, 10**9)),
        lambda: torch.quantize_per_tensor(t.float(), 0.1, 0, torch.qint8),
        lambda: torch.complex(t.float(), t.float()).conj(),
        lambda: torch._neg_view(t.float()),
        lambda: torch.nn.Parameter(t.float()),
        lambda: t.reshape(*[1] * 20, *t.shape),
        lambda: torch.nested.nested_tensor([torch.ones(2), torch.ones(3)]),
        lambda: t.numpy().tolist() if t.numel() < 10**4 else t,
    ]
    with contextlib.suppress(RuntimeError, IndexError, TypeError, NotImplementedError):
        return rng.choice(some)()
    return torch.ones(1)


def forged(rng: random.Random, value, json_only=False):
    """A copy of a tree of dicts, lists and values with one thing changed somewhere."""
    odd = lambda: odd_value(rng, json_only)
    if isinstance(value, dict) and value and rng.random() < 0.95:
        new, k, kind = dict(value), rng.choice(list(value)), rng.random()
        if kind < 0.06:
            del new[k]
        elif kind < 0.10:
            new[str(rng.choice(PLAIN))[:200] if json_only else rng.choice([1, None, '', 'x', b'x', 2.5, 'a\n\x1b[2J', (1,), math.nan])] = odd()  # fmt: skip
        elif kind < 0.13:
            new[k], new[other] = new[(other := rng.choice(list(value)))], new[k]
        elif kind < 0.15:
            new[f'{k}{rng.choice(["", " ", ".x", "_"])}'[:300]] = new.pop(k)
        else:
            new[k] = forged(rng, value[k], json_only)
        return new
    if isinstance(value, list | tuple) and value and rng.random() < 0.8:
        i = rng.randrange(len(value))
        new = [*value[:i], *([forged(rng, value[i], json_only)] if rng.random() < 0.8 else []), *value[i + 1 :]]
        return type(value)(new) if type(value) in (list, tuple) else new
    if isinstance(value, torch.Tensor) and rng.random() < 0.8:
        return odd_tensor(rng, value)
    if isinstance(value, int | float) and not isinstance(value, bool) and rng.random() < 0.5 and abs(value) < 10**18:
        some = [
            value + 1,
            value - 1,
            -value,
            2 * value,
            1000 * value,
            value / 3,
            str(value),
            [value],
            value + 1e-9,
            10**12,
        ]
        return rng.choice(some if json_only else [*some, torch.tensor(value), torch.tensor([value, value]), (value,)])
    if isinstance(value, str) and value and rng.random() < 0.4:
        i = rng.randrange(len(value))
        return rng.choice([value[:i], value[:i] + rng.choice('\0\n x0é\ud800') + value[i:], value * 2, value.upper()])
    return odd()


def damaged(rng: random.Random, data: bytes) -> bytes:
    """data with bits flipped, bytes changed, put in, left out or repeated; half of the time near an end, where headers are."""
    if not data:
        return rng.randbytes(9)
    data = bytearray(data)
    for _ in range(rng.choice([1, 1, 1, 2, 8])):
        n = len(data)
        if not n:
            break
        ends = [rng.randrange(n), rng.randrange(n), rng.randrange(min(n, 300)), n - 1 - rng.randrange(min(n, 4000))]
        at, size, kind = rng.choice(ends), rng.choice([1, 2, 4, 8, 9, 100]), rng.randrange(9)
        if kind < 3:
            data[at] ^= 1 << rng.randrange(8)
        elif kind == 3:
            del data[at:]
        elif kind == 4:
            data[at:at] = rng.randbytes(size)
        elif kind == 5:
            data[at : at + size] = rng.choice([b'\0', b'\xff', b'\x7f', b'\x80', b'9']) * min(size, n - at)
        elif kind == 6:
            del data[at : at + size]
        elif kind == 7:
            data[at:at] = data[at : at + size]
        else:
            data[at : at + size] = rng.randbytes(min(size, n - at))
    return bytes(data)


def json_bytes(rng: random.Random, value) -> bytes:
    """A JSON text, at times in an odd spelling."""
    with contextlib.suppress(ValueError, RecursionError):
        text = json.dumps(value, ensure_ascii=rng.random() < 0.5)
        return rng.choice(['', '', '', '', '\ufeff', ' \n'] + [' ']).encode() + text.encode('utf-8', 'surrogatepass')
    return b'[' * 10**5


# -----------------------------------------------------------------------------
# checkpoints and folders


def stepped(model, steps=2):
    """The model's optimizer, after steps of training on made-up tokens."""
    opt = Optimizer(model, train_config(model))
    for i in range(steps):
        opt.set_lr(1e-2)
        model(tokens(seed=i), tokens(seed=i + 1))[1].backward()
        opt.step()
        opt.zero_grad()
    return opt


def ours(tokenizer=None, **keys) -> dict:
    """A checkpoint to resume from."""
    model = tiny_gpt(**keys)
    opt = stepped(model)
    rng = dict(cpu=[torch.get_rng_state()], cuda=[None])
    config = dict(dataset='shakespeare_char', batch_size=4, gradient_accumulation_steps=1, block_size=16, n_layer=2)
    past = dict(since=0, seconds=1.0, flops=None)
    known = dict(tokenizer=tokenizer) if tokenizer else {}
    return checkpoint.pack(model, config, 7, 1.5, factors=opt.factors, optimizer=opt.state_dict(), position=28, seconds=2.5, best_iter=5,
                           scaler={}, rng=rng, transfer=past, **known)  # fmt: skip


def nanogpts(prefix='', masks=False, **changes) -> dict:
    """A checkpoint as nanoGPT saves it, after two steps of its own kind of optimizer."""
    model = tiny_gpt(bias=True)
    opt = stepped(model)
    sd = model.state_dict()
    if masks:
        sd |= {f'transformer.h.{i}.attn.bias': torch.tril(torch.ones(16, 16)).view(1, 1, 16, 16) for i in (0, 1)}
    config = dict(dataset='shakespeare_char', batch_size=4, gradient_accumulation_steps=2, block_size=16)
    return dict(
        model={prefix + k: v for k, v in sd.items()},
        optimizer=nanogpts_state(opt.state_dict(), model, config),
        model_args={k: getattr(model.config, k) for k in NANOGPT_KEYS},
        iter_num=5,
        best_val_loss=torch.tensor(1.25),
        config=config,
    ) | changes  # fmt: skip


CHARS = dict(tokenizer='char', vocab_size=65, itos=[chr(32 + i) for i in range(65)])


def whole(kind: str) -> dict:
    """A checkpoint of a kind, small."""
    if kind == 'nanogpt':
        return nanogpts('_orig_mod.', masks=True)
    if kind == 'run':  # the whole config of a run, as train.py saves it
        ckpt = ours(CHARS, n_layer=1)
        config = load(
            TrainConfig,
            [
                '--dataset=shakespeare_char',
                '--device=cpu',
                '--n_layer=1',
                '--n_head=2',
                '--n_embd=32',
                '--block_size=16',
            ],
        )
        return ckpt | dict(config=dataclasses.asdict(config), tokens=448, loss_sum=1.5, loss_count=1)
    if kind == 'rotating':
        ckpt = ours(linear='expanded', expansion=40, n_layer=1)
        keys = dict(linear='expanded', expansion=40, expansion_depth=2, expansion_schedule='rotate', expansion_every=3)
        return ckpt | dict(config=ckpt['config'] | keys)
    if kind == 'options':
        return ours(CHARS, mlp='swiglu', n_kv_head=1, qk_norm=True, position='rope', tie_head=False, norm='rmsnorm',
                    mlp_expansion_factor=(3.0, 2.0), multiple_of=8)  # fmt: skip
    if kind == 'moe':
        return ours(mlp='moe', experts=4, n_layer=1)
    if kind == 'bpe':
        with tempfile.TemporaryDirectory() as folder:
            recipes.train_bpe(Path(folder) / 'tokenizer.json', ['to be or not to be'] * 3, 262)
            text = (Path(folder) / 'tokenizer.json').read_text()
        return ours(tokenizer.of_json('bpe', text, len(json.loads(text)['model']['vocab'])), vocab_size=300, n_layer=1)
    return ours(CHARS if kind == 'dense' else None, linear=kind, n_layer=1)


KINDS = ('run', 'dense', 'expanded', 'btt', 'tensor_train', 'btt_moe', 'moe', 'nanogpt', 'rotating', 'options', 'bpe')


class Wants:
    """Pickled as a call of a function, which must never be made."""

    def __init__(self, *call):
        self.call = call

    def __reduce__(self):
        return self.call


def fields(*parts) -> bytes:
    """A pickle that is written by hand: protocol 2, and a stop."""
    return b'\x80\x02' + b''.join(parts) + b'.'


TRAP = Path(tempfile.gettempdir()) / f'nanomorph-fuzz-{os.getpid()}'  # appears if code of a file is run


def hostile_pickles() -> list[bytes]:
    trap = f'touch {TRAP}'
    calls = [Wants(os.system, (trap,)), Wants(eval, (f'__import__("os").system({trap!r})',)), Wants(exec, ('x = 1',)),
             Wants(torch.load, ('/dev/zero',)), Wants(torch.hub.load, ('a/b', 'c')), Wants(bytearray, (3 * 10**9,)),
             Wants(list, (range(3),)), Wants(collections.OrderedDict, ([('a', 1)],)), Wants(torch.Size, ((10**12,) * 64,)),
             Wants(torch._utils._rebuild_tensor_v2, (torch.ones(2).untyped_storage(), 0, (10**12,), (1,), False, {})),
             Wants(torch._utils._rebuild_tensor_v2, (torch.ones(2).untyped_storage(), -8, (2,), (1,), False, {})),
             Wants(torch._utils._rebuild_meta_tensor_no_storage, (torch.float32, (10**9, 10**9), (1, 1), False))]  # fmt: skip
    found = [pickle.dumps(dict(model=c, model_args={}), protocol=2) for c in calls]
    found += [pickle.dumps(dict(model={'a': c}, model_args={'n_layer': c}), protocol=2) for c in calls]
    found += [
        fields(b'](K\x01e'),  # a stack that is not what the opcode wants
        fields(b'\x8a\xff' + b'\x7f' * 255),  # a number of 2,040 bits
        fields(b'\x8b\xff\xff\xff\x7f'),  # one of 2^31 bytes that are not there
        fields(b'X\xff\xff\xff\xffa'),
        fields(b'\x8e\xff\xff\xff\xff\xff\xff\xff\x7fa'),
        fields(b'}' + b'q\xff' * 3 + b'r\xff\xff\xff\x7f'),
        fields(b'(' * 20_000),
        fields(b']' * 20_000 + b'a' * (20_000 - 1)),
        fields(b'N' + b'\x85' * 10**4),  # a tuple in a tuple in ...
        fields(b'N' + b'\x85' * 10**4, b'}', b'N', b'N', b's'),
        fields(b')q\x00', *[b'h%ch%c\x86q%c' % (i, i, i + 1) for i in range(60)]),  # 2^60 by reference
        fields(b'}q\x7f', b')q\x00', *[b'0h%ch%c\x86q%c' % (i, i, i + 1) for i in range(60)], b'K\x01', b's'),
        fields(b'}(X\x05\x00\x00\x00model}X\x0a\x00\x00\x00model_args}u'),
        fields(b'cos\nsystem\n(X\x04\x00\x00\x00true\x85R'),
        fields(b'ctorch\nload\n)R'),
        fields(b'c' + b'a' * 20_000 + b'\n' + b'b' * 20_000 + b'\n'),
        fields(b'Q'),
        fields(b'X\x01\x00\x00\x00aQ'),
        fields(b'((X\x07\x00\x00\x00storageNNNNtQ'),
        b'',
        b'.',
        b'\x80\xff.',
        b'\x80\x05\x95\xff\xff\xff\xff\xff\xff\xff\xff.',
    ]
    return found


def rezipped(data: bytes, change) -> bytes:
    """The zip file written again, every checksum right, each of its parts as change(name, bytes) makes it."""
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as z, zipfile.ZipFile(out, 'w') as new:
        for i in z.infolist():
            for name, part in change(i.filename, z.read(i)):
                new.writestr(name, part)
    return out.getvalue()


def bad_zip(rng: random.Random, data: bytes) -> bytes:
    """A zip file whose checksums are right and whose parts are not."""
    kind, hostile = rng.randrange(8), rng.choice(hostile_pickles())
    with zipfile.ZipFile(io.BytesIO(data)) as z:
        names = [i.filename for i in z.infolist()]
    chosen = rng.choice(names)

    def change(name, part):
        if kind < 3 and name.endswith('data.pkl'):
            return [(name, damaged(rng, part))]
        if kind == 3 and name.endswith('data.pkl'):
            return [(name, hostile)]
        if name == chosen:
            return {4: [], 5: [(name, damaged(rng, part))], 6: [(name, part), (rng.choice(['../x', '/x', 'a/b', 'archive/data/x', 'x' * 300]), part)],
                    7: [(rng.choice(names + ['x/y', name + 'x', 'other/data.pkl']), part)]}.get(kind, [(name, part)])  # fmt: skip
        return [(name, part)]

    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter('ignore')  # a name twice is what is wanted
        return rezipped(data, change)


def foreign(rng: random.Random, ckpt: dict) -> bytes:
    """A file of another kind under the name of a checkpoint."""
    out = io.BytesIO()
    kind = rng.randrange(7)
    if kind == 0:
        torch.save(ckpt, out, _use_new_zipfile_serialization=False)
    elif kind == 1:
        torch.save(ckpt['model'], out)
    elif kind == 2:
        torch.save(odd_value(rng), out)
    elif kind == 3:
        return rng.choice(hostile_pickles())
    elif kind == 4:
        np.savez(out, **{k: v.numpy() for k, v in list(ckpt['model'].items())[:3] if v.dtype == torch.float32})
    elif kind == 5:
        with zipfile.ZipFile(out, 'w', zipfile.ZIP_DEFLATED) as z:
            z.writestr('archive/data.pkl', bytes(rng.choice([10, 10**7])))
    else:
        return rng.choice(
            [b'', b'PK', b'PK\x03\x04', b'PK\x05\x06' + bytes(18), rng.randbytes(5000), b'{}', b'\0' * 10**6]
        )
    return out.getvalue()


class Checkpoints:
    """The checkpoint reader: files of ours and nanoGPT's, Hugging Face folders."""

    def __init__(self, folder: Path):
        self.folder, self.path = folder, folder / 'ckpt.pt'
        self.whole, self.bytes = {}, {}

    def warm(self):
        """Import what is imported late: no case has to wait for it."""
        hugging_face(self.folder / 'hf-good')
        self.use(self.folder / 'hf-good', False)
        self.path.write_bytes(self.made('run')[1])
        self.use(self.path, True)

    def made(self, kind):
        if kind not in self.whole:
            self.whole[kind], out = whole(kind), io.BytesIO()
            torch.save(self.whole[kind], out)
            self.bytes[kind] = out.getvalue()
        return self.whole[kind], self.bytes[kind]

    def case(self, number: int):
        rng = random.Random(f'checkpoints {number}')
        if number % 16 == 0:
            return self.folders(rng)
        ckpt, data = self.made(rng.choice(KINDS))
        kind = rng.random()
        if kind < 0.7:
            for _ in range(rng.choice([1, 1, 1, 2, 4])):
                ckpt = forged(rng, ckpt) if isinstance(ckpt, dict) else ckpt
            out = io.BytesIO()
            try:
                torch.save(ckpt, out)
            except Exception:  # a value that cannot be saved cannot be in a file
                torch.save(None, out)
            data = out.getvalue()
        elif kind < 0.82:
            data = damaged(rng, data)
        elif kind < 0.95:
            data = bad_zip(rng, data)
        else:
            data = foreign(rng, ckpt)
        self.path.write_bytes(data)
        resumes = rng.random() < 0.5
        return lambda: self.use(self.path, resumes)

    def use(self, path, resumes: bool):
        """What the commands do with a checkpoint: build it, take its tokenizer, compute a little; resume."""
        try:
            ckpt = reader.load(path)
        finally:
            assert not TRAP.exists(), 'it ran code'
        model = checkpoint.build(ckpt, path)
        assert all(p.dtype == torch.float32 and p.is_contiguous() for p in model.parameters())
        model(torch.zeros(1, 2, dtype=torch.long))
        with contextlib.suppress(UserError):  # GPT-2's needs files, others their data set
            tok = tokenizer.load(path, ckpt)
            tok.decode(list(range(tok.vocabulary)))
            tok.encode('to be')
        if resumes:
            cfg = load(
                TrainConfig,
                ['--dataset=shakespeare_char', '--device=cpu', f'--out_dir={self.folder}', '--init_from=resume'],
            )
            path, ckpt = start.read(cfg)
            cfg = start.settle(cfg, ckpt, path, 65)
            model = start.build(cfg, ckpt, None, quiet=True)[0]
            opt = Optimizer(model, cfg)
            opt.load_state_dict(ckpt['optimizer'])
            if ckpt['scaler']:
                torch.amp.GradScaler('cpu', enabled=True).load_state_dict(ckpt['scaler'])
            hardware.set_random_state(ckpt['rng'], 0, torch.device('cpu'))
            x = torch.zeros(1, 2, dtype=torch.long)
            model(x, x)[1].backward()
            opt.step()

    def folders(self, rng):
        """A Hugging Face folder with one file forged or damaged."""
        folder, good = self.folder / 'hf', self.folder / 'hf-good'
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(good, folder)
        if rng.random() < 0.3:
            (folder / 'model.safetensors').unlink()
        else:
            (folder / 'pytorch_model.bin').unlink()
        path = rng.choice(sorted(folder.iterdir()))
        data = path.read_bytes()
        if rng.random() < 0.4:
            data = damaged(rng, data)
        elif path.suffix == '.json':
            data = json_bytes(rng, forged(rng, json.loads(data), json_only=True))
        elif path.suffix == '.safetensors':
            n = int.from_bytes(data[:8], 'little')
            header = json_bytes(rng, forged(rng, json.loads(data[8 : 8 + n]), json_only=True))
            size = len(header) if rng.random() < 0.9 else rng.choice([0, 1, 2**31, 2**63, 2**64 - 1])
            data = size.to_bytes(8, 'little') + header + data[8 + n :]
        else:
            data = bad_zip(rng, data)
        path.write_bytes(data)
        return lambda: self.use(folder, False)


def hugging_face(folder: Path):
    """A small GPT-2 with its tokenizer, weights in both kinds of file."""
    import transformers
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    transformers.utils.logging.disable_progress_bar()
    keys = dict(vocab_size=96, n_positions=16, n_embd=16, n_layer=1, n_head=2, bos_token_id=None, eos_token_id=None)
    hf = transformers.GPT2LMHeadModel(transformers.GPT2Config(**keys)).eval()
    hf.save_pretrained(folder)
    torch.save(hf.state_dict(), folder / 'pytorch_model.bin')
    tok = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate('abcdefghijklmnopqrstuvwxyzĠ')}, merges=[]))
    tok.pre_tokenizer, tok.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    transformers.PreTrainedTokenizerFast(tokenizer_object=tok).save_pretrained(folder)


# -----------------------------------------------------------------------------
# token files


def dataset(folder: Path, kind: str):
    """A small data set: raw (nanoGPT's files), wide (ids of 32 bits), shards, bpe."""
    folder.mkdir()
    if kind == 'raw':
        write_dataset(folder, [1, 2, 3] * 100, [1, 2] * 50, vocab_size=4, tokenizer='char', itos=list('abcd'))
        return
    meta = dict(vocab_size=4, tokenizer='char')
    if kind == 'wide':
        meta = dict(vocab_size=70_000, tokenizer='gpt2')
    if kind == 'bpe':
        recipes.train_bpe(folder / 'tokenizer.json', ['to be or not to be'] * 3, 262)
        meta = dict(
            vocab_size=len(json.loads((folder / 'tokenizer.json').read_text())['model']['vocab']), tokenizer='bpe'
        )
    for split, n in (('train', 300), ('val', 100)):
        parts = np.split(np.arange(n, dtype=np.uint32) % 4, [70])
        tokenfile.write_documents(
            folder, split, lambda n, parts=parts: parts[n:], np.concatenate, shard_tokens=60, **meta
        )
    if kind != 'wide':
        meta |= dict(itos=list('abcd')) if kind == 'shards' else {}
    tokenfile.finish(folder, dict(train=300, val=100), **meta)


SETS = ('raw', 'wide', 'shards', 'bpe')


def read(folder: Path) -> list[int]:
    """All ids of the training data, read in every way there is."""
    record = tokenizer.of_data(str(folder))
    loader = Loader(str(folder), 'train', 8, 2, 70_000)
    ids = loader.tokens.windows(np.array([0]), len(loader.tokens))[0].tolist()
    loader.batch(0), loader.batch(10**6)
    list(Loader(str(folder), 'val', 8, 2, 70_000, order='random').eval_batches(4))
    if record and record['tokenizer'] != 'gpt2':
        tok = tokenizer.build(record, folder)
        tok.decode(list(range(tok.vocabulary)))
        with contextlib.suppress(UserError):
            tok.encode('to be')
    return ids


class Tokens:
    """Token files, meta.json, tokenizer.json, and the record of a tokenizer in a checkpoint."""

    def __init__(self, folder: Path):
        self.folder, self.files, self.ids = folder, {}, {}

    def warm(self):
        tokenizer.transformers().AutoTokenizer  # noqa: B018 (this imports it)
        for kind in SETS:
            self.made(kind)

    def made(self, kind):
        """A fresh copy of a data set."""
        folder = self.folder / kind
        if kind not in self.files:
            with contextlib.redirect_stdout(io.StringIO()):
                dataset(folder, kind)
            self.files[kind], self.ids[kind] = {p.name: p.read_bytes() for p in folder.iterdir()}, read(folder)
        for p in folder.iterdir():
            if p.name not in self.files[kind] or p.is_dir() or p.is_symlink():
                shutil.rmtree(p) if p.is_dir() and not p.is_symlink() else p.unlink()
        for name, data in self.files[kind].items():
            path = folder / name
            if not path.is_file() or path.stat().st_size != len(data) or path.read_bytes() != data:
                path.unlink(missing_ok=True)
                path.write_bytes(data)
        return folder

    def case(self, number: int):
        rng = random.Random(f'tokens {number}')
        if number % 8 == 0:
            return self.record(rng)
        kind = rng.choice(SETS)
        folder = self.made(kind)
        path = folder / rng.choice(sorted(self.files[kind]))
        self.change(rng, folder, path, path.read_bytes())
        whole, looked = self.ids[kind], rng.choice([2**28, 2**28, 100])

        def case():
            tokenfile.LOOKED_THROUGH, before = looked, tokenfile.LOOKED_THROUGH  # as if the set were large
            try:
                with contextlib.redirect_stdout(io.StringIO()):
                    assert read(folder) == whole, 'it read other tokens'
            finally:
                tokenfile.LOOKED_THROUGH = before

        return case

    def change(self, rng, folder, path, data):
        """One file forged, damaged, exchanged, or replaced by something that is no file of tokens."""
        kind = rng.random()
        if kind < 0.35:
            path.write_bytes(damaged(rng, data))
        elif kind < 0.8 and path.suffix == '.json':
            path.write_bytes(json_bytes(rng, forged(rng, json.loads(data), json_only=True)))
        elif kind < 0.8 and data.startswith(tokenfile.MAGIC):
            header = json.loads(data[len(tokenfile.MAGIC) : tokenfile.HEADER])
            for _ in range(rng.choice([1, 1, 2])):
                header = forged(rng, header, json_only=True) if isinstance(header, dict) else header
            line = (tokenfile.MAGIC + json_bytes(rng, header))[: tokenfile.HEADER - 1].ljust(tokenfile.HEADER - 1)
            path.write_bytes(line + b'\n' + data[tokenfile.HEADER :])
        elif kind < 0.8:  # ids of another width, or order
            ids = np.frombuffer(data, '<u2')
            path.write_bytes(ids.astype(rng.choice(['<u4', '>u2', '<u8', '<f4', 'u1'])).tobytes())
        elif kind < 0.9:
            other = rng.choice(sorted(p for p in folder.iterdir()))
            one, two = path.read_bytes(), other.read_bytes()
            path.write_bytes(two)
            other.write_bytes(one)
        else:
            path.unlink()
            rng.choice([
                lambda: None,
                lambda: path.mkdir(),
                lambda: path.symlink_to(path),
                lambda: path.symlink_to('/dev/zero'),
                lambda: path.symlink_to('/nowhere'),
                lambda: os.mkfifo(path),
                lambda: path.write_bytes(b''),
                lambda: os.truncate(os.open(path, os.O_CREAT | os.O_WRONLY), 10**11),
                lambda: path.write_bytes(data * 2),
                lambda: path.with_name(path.name.replace('000000', '000009')).write_bytes(data),
            ])()  # fmt: skip

    def record(self, rng):
        """The record of a tokenizer as a checkpoint carries it, or two of them."""
        whole = [
            CHARS,
            dict(tokenizer='gpt2', vocab_size=50257),
            dict(tokenizer='huggingface', vocab_size=3, sha256='0' * 64, json='{}'),
        ]
        self.made('bpe')
        text = self.files['bpe']['tokenizer.json']
        n = len(json.loads(text)['model']['vocab'])
        whole.append(tokenizer.of_json('bpe', text.decode(), n))
        good = rng.choice(whole)
        if 'json' in good and rng.random() < 0.7:  # the hash of a forged text is right
            text = (
                json_bytes(rng, forged(rng, json.loads(text), json_only=True))
                if rng.random() < 0.6
                else damaged(rng, text)
            )
            record = tokenizer.of_json(rng.choice(['bpe', 'huggingface']), text.decode(errors='replace'), n)
        else:
            record = forged(rng, good)
        if isinstance(record, dict) and 'sha256' in record and rng.random() < 0.2:  # found by its hash, or not
            record = {k: v for k, v in record.items() if k != 'json'}
            (self.folder / 'tokenizer.json').write_bytes(text if rng.random() < 0.5 else damaged(rng, text))

        def case():
            checked = tokenizer.check(record, 'x.pt')
            tokenizer.describe(checked)
            tokenizer.compare(checked, rng.choice(whole))
            tok = tokenizer.build(checked, 'x.pt', [self.folder])
            tok.decode(tok.encode('to be') + list(range(tok.vocabulary)))

        return case


# -----------------------------------------------------------------------------
# records


def a_run(folder: Path):
    """The record of a small run, as train.py leaves it."""
    folder.mkdir()
    facts = dict(device='cpu', processes=1, params=10, params_collapsed=10, tokens_per_iter=8, flops_per_token=60,
                 flops_per_update=0, transfer=None, final_iter=2, finished='2026-01-01T00:00:00Z', resumed=[])  # fmt: skip
    lines = [dict(kind='eval', iter=i, train_loss=4.0, val_loss=4.0 - i, tokens=8 * i, seconds=0.1) for i in (0, 2)]
    lines[1:1] = [dict(kind='train', iter=i, loss=3.5, lr=0.1, grad_norm=1.0, ms=None, mfu=None) for i in (0, 1)]
    (folder / 'manifest.json').write_text(json.dumps(facts))
    (folder / 'config.json').write_text(json.dumps(dict(max_iters=2, learning_rate=0.1, n_layer=2)))
    (folder / 'metrics.jsonl').write_text(''.join(json.dumps(m) + '\n' for m in lines))


def a_comparison(folder: Path, **keys):
    """Two arms with two seeds each, one of which starts from a step; timed, and evaluated on a task."""
    folder.mkdir()
    c = dict(arms=dict(a='x.py', b='x.py --init_from={s}'), steps=dict(s='y.py'), claim='{arm} below {baseline}', metric='val_loss',
             at='last', worth=0.01, match='tokens', mismatch={}, note='', command='python', target=None, sizes={}, horizons=[])  # fmt: skip
    costs = dict(params=10, params_collapsed=10, processes=1, tokens_per_iter=8, flops_per_token=60, flops_per_update=0, device='cpu', commit='0')  # fmt: skip
    rows = []
    for arm in ('a', 'b', 'steps/s', 'tasks/a'):
        for seed in (1, 2):
            r = dict(run=f'{arm}/lr0.1/s{seed}', arm=arm, size='', lr=0.1, seed=seed, state='finished', settings={})
            more = dict(facts=costs, ms=1.5, eval=dict(iter=[0, 2], val_loss=[4.0, 3.0 + seed / 9], seconds=[0.0, 1.0]))
            more |= dict(train=dict(iter=[0, 1], loss=[4.0, 3.5]))
            if arm == 'tasks/a':
                more = dict(facts={}, tasks=dict(val=dict(figures=dict(nats_per_token=3.0))))
            rows.append(r | more)
    (folder / 'comparison.json').write_text(json.dumps(c | keys))
    (folder / 'metrics.jsonl').write_text(''.join(json.dumps(r) + '\n' for r in rows))
    times = [dict(arm='x.py', cells=['a', 'steps/s'], ms=2.0), dict(arm='b', cells=['b'], ms=3.0)]
    (folder / 'bench.jsonl').write_text(''.join(json.dumps(r) + '\n' for r in times))


class Records:
    """What a run and a comparison leave, read back by plot.py, compare.py and a run that goes on."""

    def __init__(self, folder: Path):
        self.folder = folder

    def warm(self):
        a_run(self.folder / 'run'), a_comparison(self.folder / 'c')
        a_comparison(self.folder / 'p', looks=True, seeds=12, targets=[3.5], learning_rates=[0.1], center='mean')
        self.files = {p: p.read_bytes() for p in self.folder.glob('*/*')}
        self.use()

    def case(self, number: int):
        rng = random.Random(f'records {number}')
        for path, data in self.files.items():
            path.unlink(missing_ok=True)
            path.write_bytes(data)
        path = rng.choice(sorted(self.files))
        data = self.files[path]
        if rng.random() < 0.2:
            path.write_bytes(damaged(rng, data))
        elif path.suffix == '.json':
            path.write_bytes(json_bytes(rng, forged(rng, json.loads(data), json_only=True)))
        else:
            lines = [json.loads(line) for line in data.splitlines()]
            i = rng.randrange(len(lines))
            lines[i] = forged(rng, lines[i], json_only=True)
            path.write_bytes(b''.join(json_bytes(rng, m) + b'\n' for m in lines))
        return self.use

    def use(self):
        """Every reader; the first that refuses does not keep the others from reading."""
        run, c, planned = (self.folder / n for n in ('run', 'c', 'p'))
        log = object.__new__(logger.Log)  # a run that goes on; its other parts want a model
        log.out_dir, log.cfg, log.quiet = run, TrainConfig(max_iters=4, eval_interval=2), True
        readers = [
            lambda: plot.listing(self.folder),
            lambda: plot.table(records.read_runs(run)),
            lambda: plot.table(records.read_runs(c)),
            lambda: records.record(run, dict(run='a', arm='a', size='', lr=0.1, seed=1), {}),
            lambda: log.so_far(2),
            lambda: report.shown(c),
            lambda: report.shown(planned),
            lambda: report.written_of(self.folder, questions.read_all(self.folder)),
        ]
        refused = None
        for read in readers:
            try:
                read()
            except UserError as e:
                refused = e
        (run / 'manifest.json.damaged').unlink(missing_ok=True)
        if refused:
            raise refused


# -----------------------------------------------------------------------------
# many cases


FILES = dict(checkpoints=Checkpoints, tokens=Tokens, records=Records)


def many(name: str, numbers, folder: Path, most_wrong=0) -> Count:
    """Cases of files by their numbers. AssertionError at the first that is wrong, or after so many."""
    made, count = FILES[name](folder), Count()
    made.warm()
    for number in numbers:
        note(number)
        case = made.case(number)
        try:
            attempt(count, f'{name} {number}', case)
        except (AssertionError, Hang) as e:  # a hang may be noticed a moment after its end
            count.wrong.append(str(e) if str(e).startswith(name) else f'{name} {number}: {e}')
            if len(count.wrong) > most_wrong:
                raise AssertionError('\n'.join(count.wrong)) from e
    return count


def note(number):
    """Where the process is, for the one that waits for it."""
    if CURRENT is not None:
        os.pwrite(CURRENT, f'{number}\n'.ljust(20).encode(), 0)


CURRENT = None


def worker(name: str, n: int, part: int, parts: int, folder: Path) -> Count:
    """A share of the cases of a promise, in a process of its own."""
    if name != 'configurator':
        return many(name, range(part, n, parts), folder, most_wrong=50)
    count, jobs = Count(), [(s, w) for s in SCHEMAS for w in ('flags', 'file')]
    for i, (schema, where) in enumerate(jobs):
        if i % parts == part:
            note(f'{schema.__name__} {where}')
            try:
                configurations(-(-n // len(jobs)), schema, where, folder, count)
            except (AssertionError, Hang) as e:
                count.wrong.append(str(e)[:2000])
    return count


def spread(name: str, n: int, parts: int) -> list[Count]:
    """The cases of a promise over processes; one that ends by itself is wrong as well."""
    pids, found = [], []
    with tempfile.TemporaryDirectory(dir=MEMORY) as top:
        for part in range(parts):
            folder = Path(top) / str(part)
            folder.mkdir()
            pid = os.fork()
            if not pid:
                status = 1
                try:
                    global CURRENT
                    CURRENT = os.open(folder / 'current', os.O_CREAT | os.O_RDWR)
                    log = os.open(folder / 'log', os.O_CREAT | os.O_RDWR)
                    os.dup2(log, 1), os.dup2(log, 2)
                    (folder / 'work').mkdir()
                    with open('/proc/self/statm') as f:
                        used = int(f.read().split()[5]) * resource.getpagesize()
                    resource.setrlimit(resource.RLIMIT_DATA, (used + 2**33, used + 2**33))
                    count = worker(name, n, part, parts, folder / 'work')
                    (folder / 'count').write_text(json.dumps(dataclasses.asdict(count)))
                    status = 0
                except BaseException:
                    traceback.print_exc()
                finally:
                    sys.stdout.flush()
                    sys.stderr.flush()
                    os._exit(status)
            pids.append((pid, folder))
        for pid, folder in pids:
            status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
            if status:
                log = (folder / 'log').read_text(errors='replace')[-2000:]
                at = (folder / 'current').read_text().strip()
                found.append(Count(wrong=[f'{name} {at}: the process ended with {status}; {log}']))
            else:
                found.append(Count(**json.loads((folder / 'count').read_text())))
    return found


def main():
    torch.set_num_threads(1)
    faulthandler.enable()
    names = [a for a in sys.argv[1:] if not a.isdigit()] or ['configurator', *FILES]
    one = [int(a) for a in sys.argv[1:] if a.isdigit()]
    if one:
        with tempfile.TemporaryDirectory(dir=MEMORY) as folder:
            made = FILES[names[0]](Path(folder))
            made.warm()
            print(attempt(count := Count(), names[0], made.case(one[0])) or count)
        return
    n, failed = cases(10_000), 0
    for name in names:
        t0 = time.time()
        counts = spread(name, n, min(2, os.cpu_count() or 1))
        wrong = [w for c in counts for w in c.wrong]
        accepted, refused = (sum(getattr(c, k) for c in counts) for k in ('accepted', 'refused'))
        slowest, mib = (max(getattr(c, k) for c in counts) for k in ('slowest', 'mib'))
        computed = sum(c.seconds for c in counts)
        end = f'{len(wrong)} WRONG' if wrong else 'no traceback, no hang'
        print(
            f'{name:12} {accepted + refused + len(wrong):6,} cases: {accepted:,} accepted, {refused:,} refused, {end};'
            f' the slowest {slowest:.2f} s, memory +{mib:.0f} MiB'
            f' ({computed:.0f} s of computing, {time.time() - t0:.0f} s)',
            flush=True,
        )
        failed += len(wrong)
        for w in wrong:
            print('  ' + w.replace('\n', '\n    '), flush=True)
    sys.exit(min(failed, 1))


if __name__ == '__main__':
    main()
