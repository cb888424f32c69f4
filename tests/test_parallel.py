"""
parallel = fsdp computes what ddp and a single process compute, sends no gradient that is not needed, and its runs go on
anywhere. Two processes, started once, make all runs of this file's quick tests.
"""

import hashlib
import io
import json
import os
import pickle
import re
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path

import pytest
import torch
from conftest import ROOT, TINY, losses
from torch.distributed.checkpoint.metadata import BytesStorageMetadata

import checkpoint
import evaluate
import files
import hardware
import sample
from configurator import load
from files import in_turn
from linear import LAYERS
from linear.base import Matrix
from logger import read_metrics
from optimizers.base import homes
from parallel import reshards
from surgery import reader, shares
from train import TrainConfig, train

RUN = [*TINY, '--learning_rate=2e-3', '--min_lr=2e-4', '--gradient_accumulation_steps=4', '--eval_iters=1',
       '--save_checkpoint=false', '--max_iters=3']  # fmt: skip
FOUR = '--n_layer=4'  # two units of blocks, where these stay gathered
MODELS = {  # each trained with ddp and with fsdp
    'dense': [FOUR],
    'odd': [FOUR, '--mlp=swiglu', '--position=rope', '--norm=rmsnorm', '--tie_head=false', '--bias=true', '--n_kv_head=1',
            '--on_nan=skip', '--activation_checkpointing=true', '--dropout=0.1'],
    'expanded': ['--linear=expanded', '--linear_layers=mlp+attn', '--expansion=40', '--linear_path=factored'],
    'btt': ['--linear=btt', '--linear_layers=mlp+attn+head', '--tie_head=false', '--linear_path=factored',
            '--structured_norm=true'],
    'moe': ['--mlp=moe', '--experts=3'],
    'bfloat16': ['--dtype=bfloat16'],
}  # fmt: skip
MATRICES = {  # each trained with fsdp and in one process
    'muon': ['--optimizer=muon', '--n_kv_head=1', '--on_nan=skip'],
    'muon-monarch': ['--optimizer=muon', '--linear=monarch', '--linear_layers=mlp+attn', '--blocks=2'],
    'muon-expanded': ['--optimizer=muon', '--linear=expanded', '--expansion=41', '--muon_scale=original'],
    'muon-composed': ['--optimizer=muon', '--linear=expanded', '--expansion=40', '--step_rule=composed'],
    'normuon-btt': ['--optimizer=normuon', '--linear=btt', '--linear_layers=mlp+attn'],
    'normuon-train': ['--optimizer=normuon', '--linear=tensor_train', '--n_layer=1'],  # one share is empty, one home idle
}  # fmt: skip
WAYS = {
    'fsdp': ['--parallel=fsdp'],  # on a CPU: gathered once a step
    'reshard': ['--parallel=fsdp', '--reshard_after_forward=true'],
}
STEPS = [FOUR, '--max_iters=6', '--eval_interval=1', '--learning_rate=1e-2']  # an evaluation between any two steps
RESUMED = 'muon-composed', 'normuon-btt'
ALL = ['--linear_path=factored', '--max_iters=5', '--learning_rate=1e-2']
LONG = ['--save_checkpoint=true', '--parallel=fsdp', '--max_iters=25', '--lr_decay_iters=25', '--eval_interval=25']


GROWN = ['--init_from=transfer', '--transfer_method=clone', '--n_embd=64']


def port() -> int:
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        return s.getsockname()[1]


def two(python: list, folder: Path, jobs: dict):
    """Do the jobs {name: (what, flags)} with two processes, out_dir folder/name."""
    every = [
        (what, [*RUN, *flags, f'--out_dir={folder / name.partition("+")[0]}']) for name, (what, flags) in jobs.items()
    ]
    (folder / 'jobs.json').write_text(json.dumps(every))
    env = os.environ | dict(WORLD_SIZE='2', MASTER_ADDR='127.0.0.1', MASTER_PORT=str(port()), OMP_NUM_THREADS='1')
    command = [*python, str(ROOT / 'tests' / 'member.py'), str(folder / 'jobs.json')]
    pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    members = [subprocess.Popen(command, env=env | dict(RANK=str(rank)), **pipes) for rank in (0, 1)]
    try:
        said = [p.communicate(timeout=300)[0] for p in members]
    finally:
        for p in members:
            p.kill()
    assert not any(p.returncode for p in members), '\n'.join(s[-3000:] for s in said)  # the end of each tells more
    (folder / 'said.txt').write_text(said[0])


@pytest.fixture(scope='module')
def runs(tmp_path_factory, shakespeare, python):
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if 'PYTEST_XDIST_WORKER' in os.environ else base) / 'two'  # of all workers of pytest -n
    folder.mkdir(exist_ok=True)
    ways = {'ddp': ['--parallel=ddp'], **WAYS}
    jobs = {f'{m}-{p}': ('train', [*f, *ways[p]]) for m, f in MODELS.items() for p in ways}
    jobs |= {f'steps-{p}': ('train', [*STEPS, *ways[p]]) for p in WAYS}
    for p in ways:
        for n in (2, 8):
            jobs[f'traffic-{p}-{n}'] = 'traffic', [FOUR, *ways[p], f'--gradient_accumulation_steps={n}']
    jobs['traffic-muon'] = 'traffic', ['--parallel=fsdp', '--optimizer=muon']
    jobs['whole'] = 'train', [*LONG, '--max_iters=10']
    jobs['parts'] = 'train', [*LONG, '--max_iters=5', '--keep_last=9']
    jobs['parts+'] = 'train', [*LONG, '--init_from=resume', '--keep_last=9', '--eval_interval=10']
    jobs['shares'] = 'stopped', [*LONG, '--sharded_checkpoints=true', '--eval_interval=5']
    jobs['shares+'] = 'copied', LONG
    jobs['shares-on'] = 'train', [*LONG, '--sharded_checkpoints=true', '--init_from=resume', '--max_iters=10']
    for m, f in MATRICES.items():
        f, shared = [*ALL, *f, '--parallel=fsdp', '--save_checkpoint=true'], '--sharded_checkpoints=true'
        jobs[m] = 'train', f
        if m not in RESUMED:
            continue
        jobs[f'{m}-parts'] = 'train', [*f, '--max_iters=3', '--keep_last=9']
        jobs[f'{m}-parts+'] = 'train', [*f, '--init_from=resume', '--keep_last=9']
        jobs[f'{m}-shares'] = 'stopped', [*f, shared, '--eval_interval=3']
        jobs[f'{m}-shares+'] = 'copied', f
        jobs[f'{m}-shares-on'] = 'train', [*f, shared, '--init_from=resume']
    for p in ('ddp', 'fsdp'):
        jobs[f'grown-{p}'] = 'train', [*GROWN, f'--transfer_from={folder}/whole/ckpt.pt', f'--parallel={p}']
    with in_turn(folder):
        if not (folder / 'said.txt').exists():
            two(python, folder, jobs)
    return folder


def equal(
    a: dict, b: dict, keys=('model', 'optimizer', 'rng', 'position', 'iter_num', 'best_val_loss', 'tokens')
) -> bool:
    same = lambda x, y: torch.equal(x, y) if torch.is_tensor(x) else x == y
    flat = lambda ckpt: torch.utils._pytree.tree_flatten({k: ckpt[k] for k in keys})
    (x, p), (y, q) = flat(a), flat(b)
    return p == q and all(map(same, x, y))


@pytest.mark.parametrize('name, way', [*((m, p) for m in MODELS for p in WAYS), ('grown', 'fsdp')])
def test_fsdp_computes_what_ddp_computes(runs, name, way):
    for kind in ('train', 'eval'):
        a, b = (losses(runs / f'{name}-{p}', kind) for p in ('ddp', way))
        assert a.keys() == b.keys() and len(a) > 1
        assert max(abs(a[i] - b[i]) for i in a) < (1e-3 if name == 'bfloat16' else 1e-5), (kind, a, b)


@pytest.mark.slow
def test_fsdp_computes_what_ddp_computes_with_every_layer(tmp_path, python):
    flags = ['--n_layer=1', '--linear_layers=mlp+attn', '--linear_path=factored', '--max_iters=2']
    jobs = {
        f'{m}-{p}': ('train', [*flags, f'--linear={m}', f'--parallel={p}']) for m in LAYERS for p in ('ddp', 'fsdp')
    }
    two(python, tmp_path, jobs)
    for m in LAYERS:
        a, b = (losses(tmp_path / f'{m}-{p}') for p in ('ddp', 'fsdp'))
        assert len(a) == 2 and max(abs(a[i] - b[i]) for i in a) < 1e-5, (m, a, b)


@pytest.mark.parametrize('way', WAYS)
def test_fsdp_computes_what_one_process_computes(runs, run_train, way):
    """Over several steps, with evaluations between them: a gathered copy that outlives its step would show."""
    one = run_train(*RUN, *STEPS)
    for kind in ('train', 'eval'):
        a, b = losses(one, kind), losses(runs / f'steps-{way}', kind)
        assert a.keys() == b.keys() and len(a) > 5 and a[5] < a[0] - 0.05
        assert max(abs(a[i] - b[i]) for i in a) < 1e-5, (kind, a, b)


@pytest.mark.parametrize('name', MATRICES)
def test_whole_matrices_are_moved_as_in_one_process(runs, run_train, name):
    """The losses, and all weights and state."""
    one = run_train(*RUN, *ALL, *MATRICES[name], '--save_checkpoint=true')
    a, b = losses(one), losses(runs / name)
    assert len(a) == 5 and a[4] < a[0] - 0.2 and max(abs(a[i] - b[i]) for i in a) < 1e-4, (a, b)
    a, b = (checkpoint.load(d / 'ckpt.pt') for d in (one, runs / name))
    for part in ('model', 'optimizer'):
        torch.testing.assert_close(b[part], a[part], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize('name', RESUMED)
def test_a_run_that_moves_whole_matrices_resumes_to_the_bit(runs, name):
    """From the plain file, and from one in shares."""
    whole = checkpoint.load(runs / name / 'ckpt.pt')
    for kind in ('parts', 'shares-on'):
        assert equal(whole, checkpoint.load(runs / f'{name}-{kind}' / 'ckpt.pt')), kind
        assert losses(runs / name)[4] == losses(runs / f'{name}-{kind}')[4]


@pytest.mark.parametrize('name', RESUMED)
def test_a_run_that_moves_whole_matrices_goes_on_in_one_process(runs, tmp_path, name):
    for kind, file in (('parts', 'ckpt-3.pt'), ('shares', 'shards-3')):
        out, left = tmp_path / kind, runs / f'{name}-{kind}' / file
        if left.is_dir():
            shutil.copytree(left, out / file)
        else:
            out.mkdir()
            shutil.copy(left, out / 'ckpt.pt')
        train(load(TrainConfig, [*RUN, *ALL, *MATRICES[name], '--init_from=resume', f'--out_dir={out}']))
        a, b = losses(out), losses(runs / name)
        assert list(a) == [3, 4] and max(abs(a[i] - b[i]) for i in a) < 1e-4, (kind, a, b)


def test_whole_matrices_take_two_messages_however_many_there_are(runs):
    found = json.loads((runs / 'traffic-muon' / 'traffic.json').read_text())
    assert found['alltoall_base_'] == 2  # there, and back; two blocks of four layers


def test_every_process_is_home_to_a_like_share_of_the_work():
    layers = [(f'{i}', None, dict(weight=Matrix((n, m), (0,), (1,)))) for i in range(4) for n, m in ((9, 8), (8, 32))]
    assert [homes(layers, 2)[i::2].count(0) for i in (0, 1)] == [2, 2]
    assert sorted(homes(layers, 9)) == list(range(8))
    pair = [('x', None, {k: Matrix((9, 8), (0,), (1,)) for k in ('factors.0', 'factors.1')}) for _ in range(3)]
    assert homes(pair, 2) == [0, 0, 1, 1, 0, 0]


def test_gradients_travel_once_in_a_step_however_many_micro_batches_it_has(runs):
    sent = lambda p, n: json.loads((runs / f'traffic-{p}-{n}' / 'traffic.json').read_text())  # n: micro-batches of both
    assert sent('ddp', 2)['allreduce_'] == sent('ddp', 8)['allreduce_'] > 0
    for n in (2, 8):
        for p, units in (('fsdp', 3), ('reshard', 5)):  # of blocks, and the rest
            assert sent(p, n)['_reduce_scatter_base_'] == units and sent(p, n)['allreduce_'] == 1  # the norm


def test_blocks_are_gathered_once_in_a_step_or_for_each_pass(runs):
    gathers = lambda p, n: json.loads((runs / f'traffic-{p}-{n}' / 'traffic.json').read_text())['_allgather_base_']
    for n in (2, 8):  # micro-batches of both processes; four blocks in two units, or one by one, and the rest
        assert gathers('fsdp', n) == 3
        assert gathers('reshard', n) == n // 2 * 9  # blocks forward and backward


def test_blocks_stay_gathered_where_they_are_small_beside_the_memory():
    GiB = 2**30
    assert reshards(None, 3.9 * GiB, 80 * GiB) == (
        False, 'fsdp: blocks are gathered once a step, all of them take 3.90 GiB, 4.9% of the memory'
    )  # fmt: skip
    assert reshards(None, 4 * GiB, 80 * GiB) == (
        True, 'fsdp: blocks are gathered for each pass, all of them take 4.00 GiB, 5.0% of the memory'
    )  # fmt: skip
    assert reshards(None, GiB, hardware.memory(torch.device('cpu')))[0] is False
    for asked in (False, True):
        reshard, about = reshards(asked, 4 * GiB, 80 * GiB)
        assert reshard is asked and about.endswith(f'as reshard_after_forward = {asked} asks')


def test_fsdp_prints_no_warning_of_torch(runs):
    assert 'Warning' not in (runs / 'said.txt').read_text()


def test_a_run_says_how_often_blocks_are_gathered(runs):
    heads = (runs / 'said.txt').read_text().split('config: ')
    for p, said in (('ddp', []), ('fsdp', ['once a step, as always on a CPU']),
                    ('reshard', ['for each pass, as reshard_after_forward = True asks'])):  # fmt: skip
        head = next(h for h in heads if f'/dense-{p}' in h.partition('\n')[0])
        found = [line for line in head.splitlines() if line.startswith('fsdp: ')]
        assert found == [f'fsdp: blocks are gathered {what}' for what in said]


def test_a_run_of_fsdp_resumes_to_the_bit(runs):
    assert equal(checkpoint.load(runs / 'whole' / 'ckpt.pt'), checkpoint.load(runs / 'parts' / 'ckpt-10.pt'))
    assert list(losses(runs / 'whole').items()) == list(losses(runs / 'parts').items())[:10]
    assert losses(runs / 'whole', 'eval')[10] == losses(runs / 'parts', 'eval')[10]


@pytest.fixture(scope='module')
def alone(runs):
    """One process that goes on with the file that two have left at iteration 5."""
    out = runs / 'alone'
    out.mkdir()
    shutil.copy(runs / 'parts' / 'ckpt-5.pt', out / 'ckpt.pt')
    train(load(TrainConfig, [*RUN, *LONG, '--init_from=resume', f'--out_dir={out}']))
    return out


def test_a_run_goes_on_with_another_number_of_processes(runs, alone):
    a, b = losses(alone), losses(runs / 'parts')
    assert list(a) == list(range(5, 25)) and max(abs(a[i] - b[i]) for i in a) < 1e-4


def test_the_file_of_a_run_of_fsdp_is_that_of_any_run(runs, alone):
    """The same names, kinds and ties, the same numbers but for rounding."""
    one, two = (torch.load(d / 'ckpt.pt', weights_only=True) for d in (alone, runs / 'parts'))
    assert list(one) == list(two) and list(one['model']) == list(two['model'])
    assert one['optimizer'].keys() == two['optimizer'].keys()
    for k, v in two['model'].items():
        assert type(v) is torch.Tensor and torch.allclose(v, one['model'][k], atol=1e-4), k
    for ckpt in (one, two):
        assert ckpt['model']['lm_head.weight'].data_ptr() == ckpt['model']['transformer.wte.weight'].data_ptr()


def test_a_single_process_says_that_it_shares_nothing(monkeypatch):
    flags = ['--parallel=fsdp', '--sharded_checkpoints=true', '--reshard_after_forward=false']
    cfg = load(TrainConfig, [*TINY, *flags, '--gradient_accumulation_steps=2'])
    assert cfg.idle() == dict(parallel='fsdp', sharded_checkpoints=True, reshard_after_forward=False)
    monkeypatch.setenv('WORLD_SIZE', '2')
    assert cfg.idle() == {}


@pytest.mark.parametrize(
    'flags, why',
    [
        (['--optimizer=muon', '--linear=btt', '--step_rule=product'], 'step_rule = product: moves whole matrices'),
        (['--linear=expanded', '--linear_path=materialised'], 'linear_path = materialised'),
        (['--linear=expanded', '--expansion_schedule=rotate', '--expansion_init=svd'], 'expansion_schedule = rotate'),
        (['--linear=btt', '--guide_iters=5'], 'guide_iters = 5'),
        (['--mlp_gate=true'], 'mlp_gate = True'),
    ],
)
def test_what_cannot_be_shared_out_is_refused_in_one_line(fails, flags, why):
    said = fails(lambda: load(TrainConfig, [*TINY, '--parallel=fsdp', *flags]), why, 'use parallel = ddp')
    assert len(said.strip().splitlines()) == 1


@pytest.mark.parametrize('flag', ['--sharded_checkpoints=true', '--reshard_after_forward=false'])
def test_keys_of_fsdp_are_refused_with_ddp(fails, flag):
    said = fails(
        lambda: load(TrainConfig, [*TINY, flag]), flag[2:].split('=')[0], 'with parallel = fsdp only', 'leave it out'
    )
    assert len(said.strip().splitlines()) == 1


def test_activation_checkpointing_computes_the_same(run_train):
    flags = ['--dropout=0.1', '--max_iters=3']
    a, b = (run_train(*flags, *more, out=out) for out, more in (('a', []), ('b', ['--activation_checkpointing=true'])))
    assert losses(a) == losses(b)


# -----------------------------------------------------------------------------
# checkpoints in shares


def test_shares_hold_what_the_plain_file_holds(runs, tmp_path, fails):
    folder, plain = runs / 'shares' / 'shards-5', checkpoint.load(runs / 'parts' / 'ckpt-5.pt')
    assert {p.name for p in folder.iterdir()} == {'.metadata', 'rest.pt', '__0_0.distcp', '__1_0.distcp'}
    assert not (runs / 'shares' / 'ckpt.pt').exists() and equal(shares.load(folder), plain)
    flags = [f'--checkpoint={folder}', f'--out={tmp_path}/whole.pt']
    shares.consolidate(load(shares.ConsolidateConfig, flags))
    assert equal(reader.load(tmp_path / 'whole.pt'), plain)
    fails(lambda: reader.load(folder), 'for its own run to resume', 'transfer.py consolidate')
    fails(lambda: reader.load(folder.with_name('best.pt')), 'it is in shares', f'--checkpoint={folder}')


def test_every_reader_says_how_to_make_a_plain_file_of_shares(tmp_path, fails):
    for name in 'shards-80', 'shards-100':
        (tmp_path / name).mkdir()
        (tmp_path / name / 'rest.pt').touch()
    best, last = (f'consolidate --checkpoint={tmp_path / name} ' for name in ('shards-80', 'shards-100'))
    score = lambda path: evaluate.open_model(evaluate.EvalConfig(checkpoint=str(path)))
    for path in tmp_path, tmp_path / 'best.pt', tmp_path / 'shards-80':
        fails(lambda path=path: reader.load(path), best)
        fails(lambda path=path: score(path), best)
    for path in tmp_path / 'ckpt.pt', tmp_path / 'shards-100':
        fails(lambda path=path: reader.load(path), last)
        fails(lambda path=path: score(path), last)
    fails(lambda: sample.sample(sample.SampleConfig(out_dir=str(tmp_path))), last)


def test_a_run_goes_on_from_shares_to_the_bit_and_ends_with_the_plain_file(runs):
    on = runs / 'shares-on'
    assert equal(
        checkpoint.load(on / 'ckpt.pt'), checkpoint.load(runs / 'whole' / 'ckpt.pt'), ('model', 'optimizer', 'position')
    )
    assert losses(on) == losses(runs / 'whole') and not shares.found(on)


def test_a_run_goes_on_from_shares_with_its_own_tokens_only(runs, tmp_path, fails):
    folder = shutil.copytree(runs / 'shares' / 'shards-5', tmp_path / 'shards-5')
    rest = torch.load(folder / 'rest.pt', weights_only=True)
    itos = rest['tree']['tokenizer']['itos']  # 65 characters, or those of the edition that is there
    itos.reverse()
    torch.save(rest, folder / 'rest.pt')
    cfg = load(TrainConfig, [*RUN, *LONG, '--init_from=resume', f'--out_dir={tmp_path}'])
    fails(lambda: train(cfg), f'its vocabulary is {len(itos)} characters', 'prepare the data set as it was')


def test_the_plain_file_of_shares_finds_a_tokenizer_too_large_to_lie_in_it(runs, tmp_path, fails):
    folder, text = shutil.copytree(runs / 'shares' / 'shards-5', tmp_path / 'run' / 'shards-5'), '{"a": 1}'
    rest = torch.load(folder / 'rest.pt', weights_only=True)
    digest = hashlib.sha256(text.encode()).hexdigest()
    rest['tree']['tokenizer'] = dict(tokenizer='bpe', vocab_size=65, sha256=digest)
    torch.save(rest, folder / 'rest.pt')
    cfg = load(shares.ConsolidateConfig, [f'--checkpoint={folder}', f'--out={tmp_path}/x/x.pt'])
    fails(lambda: shares.consolidate(cfg), 'is too large to lie in the checkpoint', 'put the one with sha256')
    (tmp_path / 'run' / 'tokenizer.json').write_text(text)
    shares.consolidate(cfg)
    assert (tmp_path / 'x' / 'tokenizer.json').read_text() == text and (tmp_path / 'x' / 'x.pt').exists()


class Hostile:
    def __reduce__(self):
        return Path.touch, (Path(os.environ['NANOMORPH_TOUCH']),)


def test_shares_run_no_code_and_are_refused_where_they_are_not_as_they_were_written(runs, tmp_path, fails, monkeypatch):
    monkeypatch.setenv('NANOMORPH_TOUCH', str(tmp_path / 'touched'))

    def spoiled(name, spoil, *parts, again=True):
        folder = shutil.copytree(runs / 'shares' / 'shards-5', tmp_path / name / 'shards-5')
        spoil(folder)
        if again:  # the checksums with it
            rest = torch.load(folder / 'rest.pt', weights_only=True)
            rest['sums'] = {k: shares.checksum(folder / k) for k in rest['sums']}
            torch.save(rest, folder / 'rest.pt')
        fails(lambda: shares.load(folder), 'is no checkpoint in shares of this run', *parts)

    def metadata(change):
        def spoil(folder):
            found = pickle.loads((folder / '.metadata').read_bytes())
            (folder / '.metadata').write_bytes(pickle.dumps(change(found) or found))

        return spoil

    def flip(folder):
        data = bytearray((folder / '__1_0.distcp').read_bytes())
        data[len(data) // 2] ^= 1
        (folder / '__1_0.distcp').write_bytes(data)

    def elsewhere(found):
        for place in found.storage_data.values():
            place.relative_path = '../other/__0_0.distcp'

    def less(found):
        next(iter(found.state_dict_metadata.values())).chunks.pop()

    spoiled('flipped', flip, 'another file than was written', again=False)
    spoiled('empty', lambda folder: (folder / '__1_0.distcp').write_bytes(b'PK' * 99_999))
    spoiled('code', metadata(lambda found: Hostile()), 'it names')
    spoiled('bytes', metadata(lambda found: found.state_dict_metadata.update(x=BytesStorageMetadata())), 'it names')
    spoiled('elsewhere', metadata(elsewhere), 'claims more than there is')
    spoiled('less', metadata(less), 'are missing')
    assert not (tmp_path / 'touched').exists()


# -----------------------------------------------------------------------------
# torchrun: several nodes, a process that dies


def wait_for(happened, processes):
    deadline = time.time() + 150
    while not happened():
        assert time.time() < deadline and all(p.poll() is None for p in processes)
        time.sleep(0.1)


@pytest.mark.slow
def test_two_nodes_go_on_by_themselves_where_a_process_has_died(tmp_path, torchrun):
    """Two agents that meet at an address, a process each. One process is killed; both nodes start again and finish. The
    record is that of one run, each iteration once."""
    out, at = tmp_path / 'run', port()
    nodes = [*torchrun, '--nnodes=2', '--nproc_per_node=1', '--rdzv-id=a-launch',
             '--rdzv-backend=c10d', f'--rdzv-endpoint=127.0.0.1:{at}', '--max-restarts=2', '--monitor-interval=0.5']  # fmt: skip
    flags = [
        *LONG,
        '--max_iters=60',
        '--lr_decay_iters=60',
        '--eval_interval=20',
        '--log_interval=1',
        '--ddp_timeout=60',
    ]
    command = [*nodes, str(ROOT / 'train.py'), *RUN, *flags, f'--out_dir={out}']
    env, logs = (
        os.environ | dict(OMP_NUM_THREADS='1', TORCH_DISABLE_SHARE_RDZV_TCP_STORE='1'),
        [tmp_path / 'a.log', tmp_path / 'b.log'],
    )
    started = dict(stderr=subprocess.STDOUT, env=env)
    agents = [subprocess.Popen(command, stdout=log.open('w'), **started) for log in logs]
    try:
        wait_for(lambda: 'iter 25:' in logs[0].read_text() + logs[1].read_text(), agents)
        t0 = time.time()
        os.kill(files.holder(out), signal.SIGKILL)
        codes = [p.wait(timeout=150) for p in agents]
    finally:
        for p in agents:
            p.kill()
    said = [log.read_text() for log in logs]
    assert time.time() - t0 < 120, said
    assert codes == [0, 0], '\n'.join(said)[-5000:]
    assert any('resuming' in text for text in said)
    iters = [m['iter'] for m in read_metrics(out) if m['kind'] == 'train']
    assert iters == list(range(60))
    assert not list(out.glob('earlier-*'))


def test_one_command_trains_small_and_grows_in_several_processes(tmp_path, torchrun):
    """A second group of processes waited for the addresses of the first one for ever, where the first process came
    there last."""
    lines = [a[2:].split('=') for a in TINY]
    small = (
        ''.join(f'{k} = {v if v[0].isdigit() else repr(v)}\n' for k, v in lines) + 'gradient_accumulation_steps = 2\n'
    )
    for name, more in dict(
        tiny='n_layer = 1',
        small=f"init_from = 'transfer'\ntransfer_from = '{tmp_path}/tiny.py'\ntransfer_method = 'stack'",
    ).items():
        (tmp_path / f'{name}.py').write_text(f"{small}max_iters = 3\nout_dir = '{tmp_path}/{name}'\n{more}\n")
    flags = [*TINY, '--gradient_accumulation_steps=2', '--max_iters=3', '--init_from=transfer', '--n_layer=4']
    flags += [f'--transfer_from={tmp_path}/small.py', '--transfer_method=stack']
    run = [*torchrun, '--standalone', '--local-addr=127.0.0.1', '--nproc_per_node=2', str(tmp_path / 'slow.py')]
    (tmp_path / 'slow.py').write_text(f"""
import os, sys, time
sys.path.insert(0, {str(ROOT)!r})
import checkpoint, train
save = checkpoint.save
checkpoint.save = lambda *args: time.sleep(os.environ['RANK'] == '0') or save(*args)
train.run(train.main)
""")
    env = os.environ | {'OMP_NUM_THREADS': '1'}
    said = subprocess.run(
        [*run, *flags, f'--out_dir={tmp_path}/large'], env=env, capture_output=True, text=True, timeout=120
    )
    assert said.returncode == 0, said.stderr
    train(load(TrainConfig, [*flags, f'--out_dir={tmp_path}/one', f'--transfer_from={tmp_path}/small/ckpt.pt']))
    assert losses(tmp_path / 'large') == pytest.approx(losses(tmp_path / 'one'), abs=1e-4)
    ckpts = [checkpoint.load(tmp_path / name / 'ckpt.pt') for name in ('large', 'one')]
    assert ckpts[0]['position'] == ckpts[1]['position'] == 3 * 3 * 8


def test_a_run_that_torchrun_starts_again_goes_on_by_itself(run_train, monkeypatch):
    monkeypatch.setenv('TORCHELASTIC_RUN_ID', 'a-launch')
    flags = ['--eval_interval=2', '--eval_iters=1', '--log_interval=1']
    out = run_train('--max_iters=2', *flags)
    monkeypatch.setenv('TORCHELASTIC_RESTART_COUNT', '1')
    run_train('--max_iters=4', *flags)
    assert list(losses(out)) == [0, 1, 2, 3] and not list(out.glob('earlier-*'))
    monkeypatch.setenv('TORCHELASTIC_RUN_ID', 'another')  # died before it wrote anything: an older run is in the folder
    run_train('--max_iters=2', *flags)
    assert list(losses(out)) == [0, 1] and list(losses(out / 'earlier-1')) == [0, 1, 2, 3]


def test_the_script_for_slurm_starts_one_torchrun_a_node(tmp_path):
    for name, text in (('scontrol', 'echo node7; echo node8'), ('srun', 'echo "$@"')):
        (tmp_path / name).write_text(f'#!/bin/sh\n{text}\n')
        (tmp_path / name).chmod(0o755)
    given = dict(SLURM_NNODES='2', SLURM_GPUS_ON_NODE='4', SLURM_JOB_ID='31', SLURM_JOB_NODELIST='node[7-8]')
    env = os.environ | given | dict(PATH=f'{tmp_path}:{os.environ["PATH"]}')
    command = ['bash', str(ROOT / 'config/slurm/train.sh'), 'config/gpt2.py', '--parallel=fsdp', '--note=two words']
    said = subprocess.run(command, env=env, cwd=tmp_path, capture_output=True, text=True, check=True).stdout
    assert (
        said.split()[:3] == ['torchrun', '--nnodes=2', '--nproc-per-node=4'] and '--rdzv-endpoint=node7:29500' in said
    )
    assert said.strip().endswith('--rdzv-id=31 --rdzv-backend=c10d --rdzv-endpoint=node7:29500 train.py config/gpt2.py'
                                 ' --parallel=fsdp --note=two words')  # fmt: skip


def test_the_table_of_the_scaling_page_is_what_its_formulas_give(capsys):
    page = (ROOT / 'docs' / 'scaling.md').read_text()
    exec(re.search(r'```python\n(.*?)```', page, re.S)[1], {})
    rows = capsys.readouterr().out
    assert rows.count('\n') == 3 and f'| --- |\n{rows}' in page


def test_a_getattr_in_the_metadata_gives_members_of_enums_and_nothing_else():
    """Python 3.11.0 to 3.11.3 pickles a member of an enum so; any other would be a way to run code."""
    text = "cbuiltins\ngetattr\n(ctorch.distributed.checkpoint.metadata\n{0}\nS'{1}'\ntR."
    load = lambda *what: shares.Unpickler(io.BytesIO(text.format(*what).encode())).load()
    assert load('_MEM_FORMAT_ENCODING', 'TORCH_PRESERVE_FORMAT').name == 'TORCH_PRESERVE_FORMAT'
    for what in (('_MEM_FORMAT_ENCODING', '__class__'), ('Metadata', '__init__')):
        with pytest.raises(pickle.UnpicklingError, match='it names'):
            load(*what)
