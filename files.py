"""
Files that are written whole or not at all.
"""

import json
import os
import shutil
from contextlib import contextmanager, suppress
from pathlib import Path

from configurator import UserError


@contextmanager
def writing(path: Path):
    """A binary file that appears under its name when the block ends well, and not at all otherwise."""
    tmp = path.with_name(f'{path.name}.tmp{os.getpid()}')
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


def write(path: Path, content: bytes):
    """All of it or nothing: an interrupted preparation leaves no half file behind."""
    with writing(path) as f:
        f.write(content)


def write_json(path: Path, value):
    write(path, (json.dumps(value, indent=1) + '\n').encode())


def copy(src: Path, dst: Path):
    """dst becomes src's content, atomically; a hard link where the file system has them, for save() never writes
    into an existing file."""
    tmp = dst.with_name(f'{dst.name}.tmp{os.getpid()}')
    try:
        os.link(src, tmp)
    except OSError:
        shutil.copyfile(src, tmp)
    os.replace(tmp, dst)
    tmp.unlink(missing_ok=True)  # still there where the two were links to one file
    sync_dir(dst.parent)


def sync_dir(folder: Path):
    """Make a rename in folder survive a power cut."""
    fd = os.open(folder, os.O_RDONLY)
    os.fsync(fd)
    os.close(fd)


def save_picture(fig, out: Path):
    """UserError if out cannot be written, or is of a format that matplotlib does not know."""
    if not out.suffix or out.is_dir():
        raise UserError(f'{out}: name a picture, such as {out.with_suffix(".png").name}')
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        fig.savefig(out, dpi=120, bbox_inches='tight')
    except (OSError, ValueError) as e:
        raise UserError(f'cannot write {out} ({getattr(e, "strerror", None) or e}); choose another --out') from None
