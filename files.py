"""
Files that are written whole or not at all, logs that grow line by line, folders that one process at a time writes to.
"""

import fcntl
import gzip
import io
import json
import os
import re
import secrets
import shutil
import zlib
from contextlib import contextmanager, suppress
from pathlib import Path

from configurator import LONGEST_JSON, UserError, brief, open_file, read_text

HELD = 'NANOMORPH_LOCK'  # environment: the folder that lab/launch.py has locked for the run that it became


def temporary(path: Path) -> Path:
    """A name beside path for what will replace it. The process id tells remove_stale() whose it is; two containers can
    both be process 1, so it does not tell two writers apart."""
    return path.with_name(f'{path.name}.tmp{os.getpid()}-{secrets.token_hex(4)}')


def remove_stale(folder: Path):
    """Remove the temporary files in folder whose processes were killed. For a process that has written nothing yet."""
    for path in folder.glob('*.tmp*'):
        if not (found := re.search(r'\.tmp(\d+)(-[0-9a-f]+)?$', path.name)):
            continue
        try:
            if int(found[1]) != os.getpid():
                os.kill(int(found[1]), 0)
                continue  # it lives
        except ProcessLookupError:
            pass
        except (OSError, OverflowError):
            continue  # somebody else's
        with suppress(OSError):
            path.unlink()


@contextmanager
def writing(path: Path):
    """A binary file that appears under its name when the block ends well, and not at all otherwise."""
    tmp = temporary(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(tmp, 'wb') as f:
            yield f
        os.replace(tmp, path)
    except OSError as e:
        raise UserError(
            f'cannot write {path} ({e.strerror}); free the disk or its permissions and run it again'
        ) from None
    finally:
        with suppress(OSError):
            tmp.unlink()


def is_device(path: Path) -> bool:
    """Whether path is there and neither file nor folder, as /dev/null: writing() would put a file in its place."""
    return path.exists() and not path.is_file() and not path.is_dir()


def check_place(path: Path):
    """UserError if no file can be written at path: to be known before the time is spent that its content takes."""
    if path.is_dir():
        raise UserError(f'out = {path}: is a folder; name a file, such as one in it')
    if is_device(path):
        raise UserError(f'out = {path}: is no plain file, and would be replaced by one; choose another --out')
    above = next(p for p in path.parents if p.exists())
    if not above.is_dir() or not os.access(above, os.W_OK | os.X_OK):
        why = 'may not be written to' if above.is_dir() else 'is no folder'
        raise UserError(f'out = {path}: {above} {why}; choose another --out')


def ready(path: Path, own, command: str, key='out'):
    """UserError where path cannot be written, or is there and not what this command writes, which would be lost: to be
    known before minutes are spent on what it is for. own: the shape of its lines (see misfit), or bytes that each of its
    files has in it; key: the one that names path."""
    if is_device(path) or path.is_file() and path.stat().st_size and not wrote(path, own):
        raise UserError(f'{key} = {path}: is there, and {command} did not write it; name another file')
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        new = not path.exists()
        path.open('ab').close()
        if new:
            path.unlink()
    except OSError as e:
        raise UserError(f'cannot write {path} ({e.strerror}); name another file') from None


def wrote(path: Path, own) -> bool:
    """Whether a file is of its own kind, see ready()."""
    if not isinstance(own, bytes):
        try:
            return bool(read_lines(path, own))
        except UserError:
            return False
    try:
        with (gzip.open if path.suffix in ('.gz', '.svgz') else open)(path, 'rb') as f:
            return own in f.read()
    except (OSError, EOFError, zlib.error):
        return False


def write(path: Path, content: bytes):
    """All of it or nothing: an interrupted preparation leaves no half file behind."""
    with writing(path) as f:
        f.write(content)


def write_json(path: Path, value):
    write(path, (json.dumps(value, indent=1) + '\n').encode())


def write_lines(path: Path, rows: list, separators=None):
    """A JSON object a line, as read_lines() takes them. separators: of json.dumps."""
    write(path, ''.join(json.dumps(row, separators=separators) + '\n' for row in rows).encode())


def add_line(path: Path, row: dict):
    write(path, (path.read_bytes() if path.exists() else b'') + json.dumps(row).encode() + b'\n')


def copy(src: Path, dst: Path):
    """dst becomes src's content, atomically; a hard link where the file system has them, for save() never writes
    into an existing file."""
    tmp = temporary(dst)
    try:
        try:
            os.link(src, tmp)
        except OSError:
            shutil.copyfile(src, tmp)
        os.replace(tmp, dst)
    except OSError as e:
        raise UserError(f'cannot write {dst} ({e.strerror}); {src.name} is whole') from None
    finally:
        with suppress(OSError):
            tmp.unlink()  # still there where the two were links to one file
    sync_dir(dst.parent)


def sync_dir(folder: Path):
    """Make a rename in folder survive a power cut."""
    fd = os.open(folder, os.O_RDONLY)
    os.fsync(fd)
    os.close(fd)


def misfit(value, shape, at='') -> str:
    """Where a value out of a JSON file is not of a shape, in words; '' if it fits. A shape is
        a type                         float takes whole numbers, too; object takes all
        {text, ...}                    one of these texts
        [shape]                        a list, each of its values of that shape
        {key: shape, 'key?': shape}    an object that has these keys, the one with ? not always; str: for all others
        (shape, ...)                   one of them; (): must not be there
    No whole number is so large that a float could not hold the product of a few."""
    if type(value) is shape and shape in (float, str, bool):  # most values
        return ''
    here = at.lstrip('.') or 'it'
    if isinstance(shape, tuple):
        wrong = []
        for s in shape:
            if not (found := misfit(value, s, at)):
                return ''
            wrong.append(found)
        return max(wrong, key=len, default=f'{here} must not be there')
    if isinstance(shape, set):
        return '' if isinstance(value, str) and value in shape else f'{here} must be one of {", ".join(sorted(shape))}'
    if isinstance(shape, list) and isinstance(value, list):
        if shape == [float] and all(type(v) is float for v in value):  # most of a log
            return ''
        return next(filter(None, (misfit(v, shape[0], f'{at}[{i}]') for i, v in enumerate(value))), '')
    if isinstance(shape, dict) and isinstance(value, dict):
        if missing := [k for k in shape if k is not str and not k.endswith('?') and k not in value]:
            return f'{at}.{missing[0]} is missing'.lstrip('.')
        of = lambda k: shape.get(k, shape.get(f'{k}?', shape.get(str, object)))
        return next(filter(None, (misfit(v, of(k), f'{at}.{k}') for k, v in value.items())), '')
    if isinstance(shape, list | dict):
        return f'{here} must be {"a list" if isinstance(shape, list) else "an object"}'
    kinds = {float: (int, float), None: type(None)}.get(shape, shape)
    if isinstance(value, bool) and shape in (int, float) or not isinstance(value, kinds):
        names = {float: 'a number', int: 'a whole number', str: 'a text', None: 'null', bool: 'true or false'}
        return f'{here} must be {names.get(shape, "an object")}'
    return f'{here} is too large' if isinstance(value, int) and abs(value) >= 2**256 else ''


def read_json(path: Path, shape):
    """What a JSON file holds. UserError if it cannot be read, or is not of the shape (see misfit)."""
    try:
        value = json.loads(read_text(path, LONGEST_JSON))
        wrong = misfit(value, shape)
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(f'{path} is missing; name the folder that holds it, or restore it from a copy') from None
    except OSError as e:
        raise UserError(f'{path} cannot be read ({e.strerror}); restore it from a copy') from None
    except (ValueError, RecursionError):
        wrong = 'it is no JSON'
    if wrong:
        raise UserError(f'{path}: damaged, {brief(wrong, 200)}; restore it from a copy')
    return value


def read_lines(path: Path, shape=dict) -> list[dict]:
    """The lines of a log, a JSON object of the shape each; none if there is no file. Only the last can be half written: it
    has no end of line then, and is left out. UserError naming file and line if another one is damaged."""
    try:
        with open_file(path) as f:
            lines = f.read().split(b'\n')
    except FileNotFoundError:
        return []
    except OSError as e:
        raise UserError(f'{path} cannot be read ({e.strerror}); restore it from a copy') from None
    found = []
    for i, text in enumerate(lines, 1):
        try:
            found.append(json.loads(text))
            wrong = misfit(found[-1], shape)
        except (ValueError, RecursionError):
            wrong = 'it is no JSON object' if i < len(lines) else ''  # the last is empty, or half written
        if wrong:
            raise UserError(
                f'{path}, line {i}: damaged, {brief(wrong, 200)}; restore the file from a copy, or delete that line'
            )
    return found


def lock(folder: Path) -> int | None:
    """Take FOLDER/lock and note this process in it; None if another process has it. It is free again when the descriptor
    that this returns is closed, or its process has gone, however that ends."""
    fd = os.open(folder / 'lock', os.O_RDWR | os.O_CREAT)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(fd)
        return None
    os.ftruncate(fd, 0)
    os.write(fd, str(os.getpid()).encode())
    return fd


@contextmanager
def in_turn(folder: Path):
    """One process after the other in this block. Where folder cannot be written nobody waits."""
    try:
        fd = os.open(folder / 'lock', os.O_RDWR | os.O_CREAT)
    except OSError:
        yield
        return
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


def holder(folder: Path) -> int | None:
    """The process that has FOLDER/lock, if there is one on this machine."""
    try:
        fd = os.open(folder / 'lock', os.O_RDWR)
    except OSError:
        return None
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return None
    except BlockingIOError:
        return int(os.pread(fd, 20, 0) or 0) or None
    finally:
        os.close(fd)


@contextmanager
def alone(folder: Path):
    """Nobody else writes to folder until the block ends. UserError if somebody does, or if it cannot be written."""
    if launched(folder):
        yield
        return
    new = not folder.exists()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        fd = lock(folder)
    except OSError as e:
        raise UserError(f"out_dir = '{folder}': {e.strerror}; choose another --out_dir") from None
    if fd is None:
        raise UserError(
            f"out_dir = '{folder}': process {holder(folder) or 'on another machine'} is at work there; wait for it, or"
            ' choose another --out_dir'
        )
    try:
        yield
    finally:
        with suppress(OSError):  # somebody may have removed it
            if new and os.listdir(folder) == ['lock']:  # a mistake ended it before it wrote anything
                (folder / 'lock').unlink()
                folder.rmdir()
        os.close(fd)


def launched(folder: Path) -> bool:
    """Whether lab/launch.py has locked the folder for this process."""
    return os.environ.get(HELD) == str(folder.resolve())


def save_picture(fig, out: Path):
    """UserError if out cannot be written, or is of a format that matplotlib does not know, or see check_picture()."""
    check_picture(out)
    picture = io.BytesIO()
    try:
        fig.savefig(picture, format=out.suffix[1:].lower(), dpi=120, bbox_inches='tight')
    except ValueError as e:
        raise UserError(f'cannot write {out} ({e}); choose another --out') from None
    write(out, picture.getvalue())


def check_picture(out: Path):
    """UserError if out is a folder, or there and not drawn by matplotlib, which writes its name into these formats."""
    if not out.suffix or out.is_dir():
        raise UserError(f'{out}: name a picture, such as {out.with_suffix(".png").name}')
    if out.suffix[1:].lower() in ('png', 'svg', 'svgz', 'pdf', 'ps', 'eps', 'pgf'):
        ready(out, b'atplotlib', 'matplotlib')
