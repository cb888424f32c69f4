"""
A checkpoint in shares: a folder to which every process of a run writes what it holds, without gathering anything
(torch.distributed.checkpoint), and which any number of processes reads again. It is for the run alone that wrote it;
`transfer.py consolidate` makes the plain file of it, which all commands read.

    __RANK_N.distcp   tensors of a process, each in torch's zip format
    .metadata         which part of which tensor lies where; a pickle
    rest.pt           the rest of the checkpoint (checkpoint.py), and the checksums of all other files

torch's reader unpickles .metadata, which can run code. The reader here finds only the classes that such a file needs, and takes
nothing but tensors, whose parts lie in this folder and are no larger than its files.
"""

import enum
import os
import pickle
import re
import shutil
import warnings
import zlib
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist

import checkpoint
import files
import parallel
from configurator import UserError, key, root_path
from surgery import claims
from surgery.operation import spare, write

NAME = re.compile(r'shards-(\d+)')
FORMAT = 'nanomorph shards 1'
HARMLESS = {'torch': ('Size', 'float32', 'float64', 'bfloat16', 'float16'), 'torch.serialization': ('_get_layout',),
            'torch.distributed.checkpoint.metadata': ('Metadata', 'TensorStorageMetadata', 'TensorProperties',
                'ChunkStorageMetadata', 'MetadataIndex', 'StorageMeta', '_MEM_FORMAT_ENCODING'),
            'torch.distributed.checkpoint.filesystem': ('_StorageInfo',),
            'pathlib': ('PosixPath', 'WindowsPath')}  # fmt: skip


# -----------------------------------------------------------------------------
# writing


def save(folder: Path, ckpt: dict, keep: int):
    """Write a checkpoint whose tensors are shares; every process calls this. The folder is there whole, or not at all. Of
    earlier ones only that of iteration `keep` stays."""
    import torch.distributed.checkpoint as dcp  # only here: it takes a second to import

    shares, tensors = {}, {}
    tree, part = split(ckpt, '', shares, tensors, {}), folder.with_name(f'{folder.name}.part')
    first, mine = dist.get_rank() == 0, [None] * dist.get_world_size()
    if first:
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(parents=True)
    dist.barrier()
    try:
        dcp.save(shares, storage_writer=dcp.FileSystemWriter(part))
    except dcp.CheckpointException as e:
        raise UserError(
            f'cannot write {folder} ({reason(e)}): is the disk full? Earlier ones are as they were'
        ) from None
    dist.all_gather_object(mine, {p.name: checksum(p) for p in part.glob(f'__{dist.get_rank()}_*.distcp')})
    if first:
        sums = {k: v for m in mine for k, v in m.items()} | {'.metadata': checksum(part / '.metadata')}
        checkpoint.save(part / 'rest.pt', dict(format=FORMAT, tree=tree, tensors=tensors, sums=sums))
        shutil.rmtree(folder, ignore_errors=True)
        os.replace(part, folder)
        files.sync_dir(folder.parent)
        clear(folder.parent, {number(folder), keep})
    dist.barrier()


def split(tree, path: str, shares: dict, tensors: dict, seen: dict):
    """The tree without its shares, which go to shares {path: share}. tensors: {path: path in shares}, one for tied tensors."""
    if isinstance(tree, dict):
        return {k: split(v, f'{path}/{k}' if path else k, shares, tensors, seen) for k, v in tree.items()}
    if not parallel.is_share(tree):
        return tree
    tensors[path] = seen.setdefault(parallel.memory(tree), path)
    shares[tensors[path]] = tree
    return None


def number(folder: Path) -> int:
    return int(NAME.fullmatch(folder.name)[1])


def checksum(path: Path) -> int:
    """CRC32, as torch's own files have it."""
    value = 0
    with open(path, 'rb') as f:
        while block := f.read(2**24):
            value = zlib.crc32(block, value)
    return value


def clear(out_dir: Path, keep: set):
    """Remove the shares of a run but those of these iterations."""
    for folder in found(out_dir):
        if number(folder) not in keep:
            shutil.rmtree(folder, ignore_errors=True)


def found(out_dir: Path) -> list[Path]:
    """The folders of shares in the folder of a run, the oldest first."""
    there = [p for p in out_dir.glob('shards-*') if NAME.fullmatch(p.name) and p.is_dir()]
    return sorted(there, key=number)


# -----------------------------------------------------------------------------
# reading


def member(kind, name):
    """kind[name], if kind is an enum that has this member; else an UnpicklingError."""
    if not (isinstance(kind, type) and issubclass(kind, enum.Enum) and name in kind.__members__):
        raise pickle.UnpicklingError(f'it names {ascii(kind)[:60]}.{ascii(name)[:60]}')
    return kind[name]


class Unpickler(pickle.Unpickler):
    def find_class(self, module, name):
        if (module, name) == ('builtins', 'getattr'):  # Python 3.11.0 to 3.11.3 writes a member of an enum so
            return member
        if name not in HARMLESS.get(module, ()):
            raise pickle.UnpicklingError(f'it names {ascii(module)[:60]}.{ascii(name)[:60]}')
        return super().find_class(module, name)


def harmless(folder: Path):
    """What .metadata says. Raises ValueError, and what pickle raises, where that is more than reading tensors needs."""
    from torch.distributed.checkpoint.metadata import StorageMeta, TensorStorageMetadata

    with open(folder / '.metadata', 'rb') as f:
        metadata = Unpickler(f).load()
    sizes, claimed = {p.name: p.stat().st_size for p in folder.glob('__*.distcp')}, 0
    for name, about in metadata.state_dict_metadata.items():
        if not isinstance(about, TensorStorageMetadata):  # bytes would be unpickled by torch
            raise ValueError(f'{ascii(name)[:80]} is no tensor')
        if sum(chunk.sizes.numel() for chunk in about.chunks) != about.size.numel():
            raise ValueError(f'parts of {ascii(name)[:80]} are missing')
        claimed += about.size.numel() * about.properties.dtype.itemsize
    if any(at.relative_path not in sizes for at in metadata.storage_data.values()) or claimed > sum(sizes.values()):
        raise ValueError('it claims more than there is in its files')
    metadata.storage_meta = StorageMeta()
    return metadata


def load(folder: Path) -> dict:
    """The checkpoint, whole, as checkpoint.load gives one; each process reads it by itself. UserError where it is damaged or
    foreign."""
    import torch.distributed.checkpoint as dcp

    try:
        checkpoint.check_zip(folder / 'rest.pt')
        rest = torch.load(folder / 'rest.pt', map_location='cpu', weights_only=True)
        if not isinstance(rest, dict) or rest.get('format') != FORMAT:
            raise ValueError(f'rest.pt is not of format {FORMAT}')
        if odd := [name for name, value in rest['sums'].items() if checksum(folder / Path(name).name) != value]:
            raise ValueError(f'{ascii(odd[0])[:60]}: another file than was written')
        reader, metadata = dcp.FileSystemReader(folder), harmless(folder)
        reader.read_metadata = lambda *_, **__: metadata  # torch's own unpickles anything
        about = metadata.state_dict_metadata.items()
        whole = {k: torch.empty(v.size, dtype=v.properties.dtype) for k, v in about}
        with warnings.catch_warnings(action='ignore'):  # that it is one process that reads
            dcp.load(whole, storage_reader=reader, no_dist=True)
        ckpt = joined(rest['tree'], '', {k: whole[source] for k, source in rest['tensors'].items()})
    except UserError:
        raise
    except (Exception, dcp.CheckpointException) as e:  # whatever is wrong with it, the user needs one line
        raise UserError(f'{folder} is no checkpoint in shares of this run ({reason(e)})') from None
    claims.check_resume(ckpt, claims.check_model(ckpt, folder), folder)
    return ckpt


def reason(e) -> str:
    """What went wrong, in one line. A CheckpointException, which is no Exception, has {process: (what it raised, where)}."""
    return checkpoint.first_line(next(iter(e.failures.values()))[0] if hasattr(e, 'failures') else e)


def joined(tree, path: str, tensors: dict):
    """What split() took apart."""
    if isinstance(tree, dict):
        return {k: joined(v, f'{path}/{k}' if path else k, tensors) for k, v in tree.items()}
    return tensors.get(path, tree)


@dataclass
class ConsolidateConfig:
    checkpoint: str = key('', 'folder to read, out_dir/shards-ITERATION')
    out: str = key('', 'file to write')

    def problems(self):
        return [f'{k}: must be given, --{k}=PATH' for k in ('checkpoint', 'out') if not getattr(self, k)]


def consolidate(cfg: ConsolidateConfig):
    """The plain file of a checkpoint in shares (sharded_checkpoints), out_dir/shards-ITERATION."""
    spare(cfg)
    folder = root_path(cfg.checkpoint)
    if not folder.exists():
        raise UserError(
            f'no folder {folder}; a run that has ended keeps that of its best at most; its ckpt.pt is the plain file'
        )
    if not NAME.fullmatch(folder.name) or not (folder / 'rest.pt').exists():
        raise UserError(f'checkpoint = {cfg.checkpoint}: name the folder out_dir/shards-ITERATION of a run')
    write(cfg, load(folder))
