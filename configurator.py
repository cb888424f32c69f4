"""
Poor man's configurator, with a seat belt.

    python train.py config/expansive_shakespeare.py --max_iters=500

As in nanoGPT a config file is plain Python assignments and flags override it. Unlike there, a dataclass is the
schema: a key that is not in it, a wrong type or a value out of range stops the run, all mistakes reported at once.
A field is declared with `key(default, help, ...)`; its annotation is its type. `--help` prints the keys in groups: see `groups`.

A config file may compute what it likes; names that start with an underscore, modules, functions and classes are not
keys. `include('other.py')` runs another config first (its path is relative to the including file).
"""

import dataclasses
import difflib
import errno
import math
import os
import re
import reprlib
import signal
import stat
import sys
import time
import traceback
import types
import typing
from pathlib import Path

ROOT = Path(__file__).resolve().parent
LONGEST = 2**20  # bytes of a config file that are read
LARGEST = 2**53  # of a whole number without a limit of its own: what a float holds exactly
LONGEST_JSON = 2**26  # bytes of a meta.json, a tokenizer.json, a config.json
MANY = 10_000  # numbers in a tuple
TURN = 5  # seconds that a node's other processes leave to the first one for its message


class UserError(Exception):
    """A mistake the user can mend: one message (what, where, how to mend), no traceback, exit code 2."""

    exit_code = 2


class Diverged(UserError):
    """The loss is NaN or infinite: exit code 3."""

    exit_code = 3


def key(default, help: str, *, choices=(), low=None, high=None, above=None, group=''):
    """A config key: its default, one line of meaning, and what is allowed (low <= value <= high, value > above).
    group: heading in --help of this key and of those that follow it in its class."""
    return dataclasses.field(
        default=default, metadata=dict(help=help, choices=choices, low=low, high=high, above=above, group=group)
    )


def checked(path) -> Path:
    """The path, ~ resolved. Raises UserError if no file can have that name."""
    try:
        found = Path(path).expanduser()
        names = os.fsencode(found).split(b'/')
        str(found).encode()  # torch cannot read back what it writes under another name
    except RuntimeError:
        raise UserError(f"path '{brief(path)}': there is no such user; write the folder itself for ~") from None
    except UnicodeError:
        raise UserError(f"path '{brief(path)}': is not UTF-8; rename it, or set PYTHONUTF8=1 if it is") from None
    if b'\0' in b'/'.join(names):
        raise UserError(f"path '{brief(path)}': holds a NUL character")
    if max(map(len, names)) > 255 or sum(map(len, names)) + len(names) > 4000:
        raise UserError(f"path '{brief(path)}': is too long; a name has at most 255 bytes, a path 4,000")
    return found


def root_path(path: str) -> Path:
    """Where a relative path of a config or flag lies: under the repository, whatever the working directory."""
    return ROOT / checked(path)


def input_path(path: str) -> Path:
    """Resolve an input path: the repository first, then the working directory."""
    inside, here = root_path(path), checked(path)
    return here if here.exists() and not inside.exists() else inside


def printable(text: str) -> str:
    """Text of unknown origin for a terminal: control characters but line ends and tabs are spelled out."""
    odd = lambda ch: (
        ch not in '\n\t'
        and (ch < ' ' or '\x7f' <= ch <= '\x9f' or '\u202a' <= ch <= '\u202e' or '\ud800' <= ch <= '\udfff')
    )
    return ''.join(ch.encode('unicode_escape').decode() if odd(ch) else ch for ch in str(text))


SHORT = reprlib.Repr()
SHORT.maxlevel, SHORT.maxstring, SHORT.maxother, SHORT.maxlong = 4, 200, 200, 200
SHORT.maxlist = SHORT.maxtuple = SHORT.maxdict = SHORT.maxset = 20


def brief(value, most: int = 100) -> str:
    """A value in a message: a text as it is, anything else as Python writes it, in at most `most` characters. It is cut while it
    is written: a small file can hold nested lists that Python would write as 2^60 values."""
    try:
        text = value if isinstance(value, str) else SHORT.repr(value)
    except Exception:  # an int of 10,000 digits has no text
        text = f'a huge {type(value).__name__}'
    return text if len(text) <= most else text[: most - 3] + '...'


# -----------------------------------------------------------------------------
# from text and Python values to the type of a field


def kinds(annotation) -> tuple:
    """The alternatives of an annotation: (float,) for float, (bool, NoneType) for bool | None."""
    return typing.get_args(annotation) if isinstance(annotation, types.UnionType) else (annotation,)


def type_name(annotation) -> str:
    names = {types.NoneType: 'none', tuple: 'several numbers a,b,...', dict: 'a dict (in a config file only)'}
    return ' or '.join(names.get(k, k.__name__) for k in kinds(annotation))


def coerce(value, annotation):
    """value as the annotation wants it. Text (from a flag) is read; an int passes for a float, 1e3 for an int.
    Raises ValueError when it does not fit."""
    for kind in kinds(annotation):
        if kind is types.NoneType:
            if value is None or (isinstance(value, str) and value.lower() == 'none'):
                return None
        elif kind is str:
            if isinstance(value, str):
                return value
        elif kind is tuple and not isinstance(value, dict):  # of numbers: [4, 3.5] in a file, 4,3.5 in a flag
            if isinstance(value, str):
                value = [v for v in value.strip('()[]').split(',') if v.strip()]
            if not isinstance(value, list | tuple):
                value = [value]
            return tuple(coerce(v, float) for v in value)
        elif kind is dict:
            if isinstance(value, dict):
                return value
        elif kind is bool:
            if isinstance(value, bool):
                return value
            if isinstance(value, str) and value.lower() in ('true', 'false', '1', '0', 'yes', 'no'):
                return value.lower() in ('true', '1', 'yes')
        elif kind in (int, float) and not isinstance(value, bool):  # True is no number
            try:
                number = float(value) if not isinstance(value, str) or kind is float else read_int(value)
            except (TypeError, ValueError):
                continue
            if kind is float:
                return float(number)
            if number == int(number):
                return int(number)
    raise ValueError


def read_int(text: str):
    """int('12') and int('1e3'), exact beyond 2^53."""
    try:
        return int(text)
    except ValueError:
        return float(text)


def nearest(name: str, names, cutoff=0.6) -> str:
    """What may have been meant by a misspelt name, for the end of a message; '' if no name is near."""
    near = difflib.get_close_matches(name, names, 1, cutoff)
    return f"; did you mean '{near[0]}'?" if near else ''


def violations(field, value) -> str:
    """What is allowed, in words, if value is out of range; '' if it is fine."""
    m = field.metadata
    if value is None or not m:
        return ''
    if isinstance(value, str) and '\0' in value:
        return 'must not hold a NUL character'
    if isinstance(value, float) and not math.isfinite(value):
        return 'must be a finite number'
    if isinstance(value, int) and m['high'] is None and abs(value) > LARGEST:
        return f'must be at most {LARGEST}'
    if isinstance(value, tuple | list):  # each of its numbers
        if len(value) > MANY:
            return f'must have at most {MANY:,} numbers, not {len(value):,}'
        if not value and m['above'] is not None:
            return 'must have at least one number'
        return next(filter(None, (violations(field, v) for v in value)), '')
    if m['choices'] and value not in m['choices']:
        names = [str(c) for c in m['choices']]
        return f'must be one of {", ".join(names)}{nearest(str(value), names)}'
    if m['low'] is not None and not value >= m['low']:
        return f'must be at least {m["low"]}'
    if m['above'] is not None and not value > m['above']:
        return f'must be above {m["above"]}'
    if m['high'] is not None and not value <= m['high']:
        return f'must be at most {m["high"]}'
    return ''


# -----------------------------------------------------------------------------
# where values come from


def read_config(path: Path, above: tuple = ()) -> dict:
    """The assignments a config file makes. Raises UserError naming file and line when it does not run. above: the files
    that include it."""
    values = {}
    if path in above:
        raise UserError(f'config file {path} includes itself, by way of {", ".join(p.name for p in above)}')

    def include(other):
        values.update(read_config(path.parent / checked(other), (*above, path)))

    try:
        source = read_text(path, LONGEST)
    except (OSError, UnicodeDecodeError) as e:
        why = getattr(e, 'strerror', 'not text')
        raise UserError(f'cannot read config file {brief(str(path), 300)} ({why}){config_hint(path)}') from None
    values |= {'include': include, '__file__': str(path)}
    try:
        exec(compile(source, str(path), 'exec'), values)
    except UserError:
        raise
    except Exception as e:
        here = [f.lineno for f in traceback.extract_tb(e.__traceback__) if f.filename == str(path)]
        line = getattr(e, 'lineno', None) or (here[-1] if here else '?')
        raise UserError(f'config file {path}, line {line}: {type(e).__name__}: {brief(str(e), 300)}') from None
    skip = (types.ModuleType, types.FunctionType, types.BuiltinFunctionType, type)
    return {k: v for k, v in values.items() if not str(k).startswith('_') and not isinstance(v, skip)}


def config_hint(path: Path) -> str:
    """What may have been meant by a path that is no config file."""
    if path.is_dir():
        return '; a folder is given by a key, such as --out_dir=FOLDER'
    if path.suffix == '.pt':
        return '; a checkpoint is given by a key, such as --checkpoint=FILE'
    there = {p.stem: p.relative_to(ROOT) for p in sorted((ROOT / 'config').rglob('*.py'), reverse=True)}
    near = difflib.get_close_matches(path.stem, there, 1, cutoff=0.55)
    return f"; did you mean '{there[near[0]]}'?" if near else '; ls config/ shows what there is'


def open_file(path: Path):
    """The file, to read its bytes. Raises OSError if it is none: a pipe that nobody writes to hangs, /dev/zero never ends."""
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    if stat.S_ISREG(os.fstat(fd).st_mode):
        return open(fd, 'rb')
    os.close(fd)
    raise OSError(errno.EINVAL, 'not a file')


def read_text(path: Path, most: int) -> str:
    """The text of a file, without a byte-order mark. Raises OSError if it is no file, or has more than so many bytes, and
    UnicodeDecodeError if it is no text."""
    with open_file(path) as f:
        text = f.read(most + 1)
    if len(text) > most:
        raise OSError(errno.EFBIG, f'longer than {most:,} bytes')
    return text.decode('utf-8-sig')


def spelled(argv: list[str], fields: dict) -> list[str]:
    """argv with each flag as --key=value, whichever way it is written: --key value, --key for a boolean, - for _ in a name."""
    found, rest = [], list(argv)
    while rest:
        arg = rest.pop(0)
        if not arg.startswith('--') or arg == '--':
            found.append(arg)
            continue
        name, eq, text = arg[2:].partition('=')
        name = name.replace('-', '_')
        if not eq:
            boolean = name in fields and bool in kinds(fields[name].type)
            if rest and not rest[0].startswith('--') and not (boolean and rest[0].endswith('.py')):
                text = rest.pop(0)
            elif boolean:
                text = 'true'
            elif name in fields:  # of another one load() says that it is unknown
                raise UserError(f'--{name} has no value; write --{name}=VALUE')
        found.append(f'--{name}={text}')
    return found


def read_flags(argv: list[str], fields: dict) -> tuple[list[Path], dict]:
    """argv split into config files and {key: text}; see spelled."""
    files, flags = [], {}
    for arg in spelled(argv, fields):
        if arg == '--':
            raise UserError(
                "'--' stands between the configs of bench.py and of transfer.py match; here is one config only"
            )
        if arg.startswith('--'):
            name, _, text = arg[2:].partition('=')
            flags[name] = text
        elif arg.startswith('-'):
            raise UserError(f"'{brief(arg)}': a flag is written --key=value; --help lists the keys")
        else:
            files.append(input_path(arg))
    return files, flags


def gather(common, owners: dict, group, begin=lambda key, readers: '') -> type:
    """A flat dataclass of the keys of `common` and of the Keys of all owners, {name: class or None}, a key that several inherit once.
    group(key, names of the owners that read it) -> its heading in --help; begin(the same) -> what its help begins with."""
    found, readers = {f.name: f for f in dataclasses.fields(common)}, {}
    for name, owner in owners.items():
        if owner and '__dataclass_fields__' not in vars(owner.Keys):
            raise UserError(f'the Keys of {name} are no dataclass: write @dataclass above the class')
        for f in dataclasses.fields(owner.Keys) if owner else ():
            if found.setdefault(f.name, f) is not f:
                raise UserError(
                    f"key '{f.name}' is declared twice, for {readers.get(f.name, ['all'])[0]} and for {name}: rename it, or let"
                    ' both Keys inherit the class that declares it'
                )
            readers.setdefault(f.name, []).append(name)
    keys = []
    for f in found.values():
        about = f.name, readers.get(f.name, [])
        meta = f.metadata | dict(help=begin(*about) + f.metadata['help'], group=group(*about))
        keys.append((f.name, f.type, dataclasses.field(default=f.default, metadata=meta)))
    return dataclasses.make_dataclass('Keys', keys)


def no_namesakes(schema, *gathered):
    """UserError where a key out of gather() has the name of another key of the schema that inherits it, which would hide it."""
    fields = {f.name: f for f in dataclasses.fields(schema)}
    for f in (f for keys in gathered for f in dataclasses.fields(keys)):
        if fields[f.name] is not f:
            raise UserError(f"key '{f.name}' of a layer or an optimizer is also one of {schema.__name__}: rename it")


def load(schema, argv: list[str]):
    """The schema filled from the config files and flags in argv.
    Raises UserError listing every unknown key, wrong type and value out of range; --help prints the keys and exits."""
    if '--help' in argv or '-h' in argv:
        print_help(schema)
        sys.exit(0)
    fields = {f.name: f for f in dataclasses.fields(schema)}
    files, flags = read_flags(argv, fields)
    given, problems = {}, []  # given: {key: (value, where it was set)}
    for path in files:
        found = read_config(path)
        odd = [brief(str(k), 40) for k in found if k not in fields]
        if len(odd) > max(3, len(found) / 3):  # one line, not one for each of its keys
            problems.append(
                f'{path}: {", ".join(odd[:3])} and {len(odd) - 3} more of its keys mean nothing here: it is the config of another script, such as {reader_of(path)}'
            )
            continue
        given |= {k: (v, f' in {path.name}') for k, v in found.items()}
    given |= {k: (v, ' on the command line') for k, v in flags.items()}

    values, broken = {}, set()
    for name, (value, where) in given.items():
        if name not in fields:
            problems.append(f"unknown key '{brief(str(name))}'{where}{hint(str(name), fields)}")
            continue
        text = isinstance(value, str) and (str in kinds(fields[name].type) or name not in flags)
        shown = repr(brief(value)) if text else brief(value)
        try:
            fit = coerce(value, fields[name].type)
            wrong = violations(fields[name], fit)
        except (ValueError, OverflowError):
            wrong = f'must be of type {type_name(fields[name].type)}'
        if wrong:
            problems.append(f'{name} = {shown}{where}: {wrong}')
            broken.add(name)
        else:
            values[name] = fit
    cfg = schema(**values)  # a default stands in for a broken value: what that would say of it is left out
    problems += [p for p in getattr(cfg, 'problems', list)() if not broken & set(re.findall(r'\w+', p))]
    if problems:
        raise UserError('\n'.join(brief(p, 800) for p in problems))
    return cfg


def hint(name: str, fields) -> str:
    """What may have been meant by an unknown key."""
    if name.removeprefix('no_') in fields and name.startswith('no_'):
        return f'; write --{name[3:]}=false'
    if name == 'init_from' and 'checkpoint' in fields:  # nanoGPT's sample.py
        return '; a run is given by --out_dir=FOLDER, a model by --checkpoint=FILE or --checkpoint=gpt2'
    return nearest(name, fields, cutoff=0.5) or '; --help lists the keys'


def reader_of(path: Path) -> str:
    """The script that a config file of this repository is for."""
    return 'compare.py' if path.parent.name in ('compare', 'track') else 'train.py'


def groups(schema) -> dict[str, list]:
    """{heading: fields} of a schema, for --help. A heading is the `group` of a key and holds for the keys after it; where
    the keys of another class begin, it is the first line of that class's docstring. GROUPS of a class are the headings
    that come first, in order; a class that builds on it puts its own headings before them."""
    found, own, heading, owner = {}, [], '', None
    for f in dataclasses.fields(schema):
        declared = next(c for c in reversed(schema.__mro__) if f.name in c.__dict__.get('__annotations__', ()))
        if declared is not owner:
            doc = (declared.__doc__ or '').strip().split('\n')[0]
            heading = '' if doc.startswith(f'{declared.__name__}(') else doc  # the docstring that dataclass() makes
        heading, owner = f.metadata.get('group') or heading, declared
        if heading not in found and declared is schema:
            own.append(heading)
        found.setdefault(heading, []).append(f)
    first = schema.__dict__.get('GROUPS') or [*own, *getattr(schema, 'GROUPS', ())]
    return dict(sorted(found.items(), key=lambda g: first.index(g[0]) if g[0] in first else len(first)))


def print_help(schema):
    print(
        (sys.modules[schema.__module__].__doc__ or '').strip()
        + '\n\nkeys (--key=value, or key = value in a config file):'
    )
    for heading, fields in groups(schema).items():
        print(f'\n{heading}' if heading else '')
        for f in fields:
            m, default = f.metadata, f.default if f.default is not None else 'none'
            if isinstance(default, float):
                default = f'{default:.4g}'
            elif isinstance(default, tuple):
                default = ','.join(f'{x:.4g}' for x in default)
            elif isinstance(default, str) and not default.isprintable():
                default = ascii(default)
            choices = f' [{" | ".join(map(str, m["choices"]))}]' if m.get('choices') else ''
            print(f'  --{f.name}={default}  ({type_name(f.type)}) {m["help"]}{choices}')


def overrides(cfg) -> dict:
    """The keys whose value is not the default."""
    return {f.name: v for f in dataclasses.fields(cfg) if (v := getattr(cfg, f.name)) != f.default}


def excepthook(kind, e, trace):
    """For what happens while modules are loaded, before run() is there: Ctrl-C (130 in a shell, as after run()), a layer of the
    user's that cannot be loaded, and a disk so full that some of them find no place for a temporary file."""
    if kind is KeyboardInterrupt:
        print('interrupted', flush=True)
    elif kind is UserError:
        print(f'error: {e}', file=sys.stderr)
        raise SystemExit(e.exit_code)
    elif kind is FileNotFoundError and 'temporary directory' in str(e):
        print(f'error: {e.strerror}; free the disk, or name a folder in TMPDIR', file=sys.stderr)
    else:
        sys.__excepthook__(kind, e, trace)


if Path(sys.argv[0]).resolve().is_relative_to(ROOT):  # one of our commands runs, nobody's notebook
    sys.excepthook = excepthook


def no_memory(e: RuntimeError) -> UserError:
    """In one line that the memory of a machine or a GPU is used up. Raises e if it says something else. (For a CPU torch has no
    class, and this file does not load torch.)"""
    if found := re.search(r'DefaultCPUAllocator.* you tried to allocate (\d+ bytes)', str(e)):
        return UserError(f'this machine has no memory for a tensor of {found[1]}; make the model or the batch smaller')
    if found := re.search(r'CUDA out of memory. Tried to allocate ([\d.]+ \w+)', str(e)):
        return UserError(
            f'the GPU has no memory for {found[1]} more; a lower batch_size with more gradient_accumulation_steps needs less,'
            ' and `python bench.py fit` with this config says how low'
        )
    raise e


def say_no_more():
    """What is printed from now on, or waits to be, goes nowhere: where it went nothing more can be written."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def open_streams():
    """stdout and stderr take whatever is printed."""
    for name in ('stdout', 'stderr'):
        if getattr(sys, name) is None:  # closed by who started us
            setattr(sys, name, open(os.devnull, 'w'))
        elif getattr(getattr(sys, name), 'errors', '') in ('strict', 'surrogateescape'):
            # a terminal of few letters: the others are spelled out
            getattr(sys, name).reconfigure(errors='backslashreplace')


def print_error(e: UserError):
    """Its message on stderr, after what was printed. Of several processes that make the same mistake the first one speaks."""
    rank, local = (int(os.environ.get(k, 0)) for k in ('RANK', 'LOCAL_RANK'))
    if local and e.exit_code > 1:  # mostly a mistake of all: torchrun ends the others when the first has gone
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        time.sleep(TURN)
    lines = printable(str(e)).split('\n')
    head = f'error (rank {rank}): ' if rank else 'error: '
    try:
        sys.stdout.flush()
    except OSError:
        say_no_more()
    print('\n'.join(head + line for line in lines), file=sys.stderr, flush=True)


def run(main, interrupted='interrupted'):
    """Run main(); a UserError becomes its message on stderr and its exit code. Every script's last line."""
    open_streams()
    try:
        try:
            main()
        except SystemExit:
            sys.stdout.flush()  # Python would do it at its end, without a line for a full disk
            raise
        sys.stdout.flush()
    except KeyboardInterrupt:
        print(interrupted, flush=True)
        sys.exit(130)
    except (UserError, RuntimeError) as e:
        e = e if isinstance(e, UserError) else no_memory(e)
        print_error(e)
        sys.exit(e.exit_code)
    except OSError as e:
        if e.errno not in (errno.EPIPE, errno.ENOSPC, errno.EDQUOT):
            raise
        say_no_more()
        if e.errno == errno.EPIPE:  # python sample.py | head
            sys.exit(1)
        print(f'error: {e.filename or "what is printed"}: {e.strerror}; free the disk', file=sys.stderr, flush=True)
        sys.exit(2)
