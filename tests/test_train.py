"""The training loop: exact resume, the same result on several processes, honest logs, clean ends."""

import contextlib
import json
import math
import os
import signal
import subprocess
import time
import types

import pytest
import torch
from conftest import ROOT, TINY, losses, tiny_gpt

import checkpoint
import hardware
import parallel
import train as module
from configurator import load
from lab import launch
from linear import factors
from logger import read_metrics
from optimizers.optim import lr_at
from surgery import collapse
from surgery.hook import Hook
from tokens import loader
from tokens.download import write_dataset
from train import TrainConfig, Trainer, hooks, train

EXPANDED = ('--linear=expanded', '--expansion=40')


def test_training_lowers_the_loss_and_expanded_as_well(run_train):
    for out, flags in (('dense', ()), ('expanded', EXPANDED)):
        val = losses(run_train('--max_iters=40', '--lr_decay_iters=40', '--eval_interval=40', *flags, out=out), 'eval')
        assert val[40] < val[0] - 0.5


@pytest.mark.parametrize(
    'flags',
    [
        ('--dropout=0.1',),
        (*EXPANDED, '--dropout=0.1', '--expansion_lr=matched', '--data_order=random'),
        (
            *EXPANDED,
            '--linear_path=factored',
            '--gradient_accumulation_steps=2',
            '--schedule=wsd',
            '--wsd_decay_iters=5',
        ),
    ],
)
def test_ten_steps_equal_five_resume_five_to_the_bit(run_train, flags):
    whole = run_train('--max_iters=10', *flags, out='whole')
    run_train('--max_iters=5', *flags, out='parts')
    parts = run_train('--max_iters=10', '--init_from=resume', *flags, out='parts')
    a, b = (torch.load(d / 'ckpt.pt', weights_only=True) for d in (whole, parts))
    assert a['iter_num'] == b['iter_num'] == 10 and a['position'] == b['position']
    assert a['best_val_loss'] == b['best_val_loss']
    for name in a['model']:
        assert torch.equal(a['model'][name], b['model'][name]), name
    for name, state in a['optimizer'].items():
        for k in state:
            assert torch.equal(state[k], b['optimizer'][name][k]), (name, k)
    assert all(torch.equal(x, y) for x, y in zip(a['rng']['cpu'], b['rng']['cpu']))
    assert losses(whole) == losses(parts) and losses(whole, 'eval') == losses(parts, 'eval')
    events = [[(m['kind'], m['iter']) for m in read_metrics(d)] for d in (whole, parts)]
    assert events[0] == events[1] and len(set(events[0])) == len(events[0])
    seconds = [m['seconds'] for m in read_metrics(parts) if m['kind'] == 'eval']
    assert seconds == sorted(seconds) and seconds[-1] > seconds[1] > 0


def both(split, loss, a=None):
    return dict(val_loss=loss, val_a=loss if a is None else a) if split == 'val' else dict(train_loss=1.0)


def test_training_ends_where_patience_does_and_the_run_is_over(run_train, monkeypatch, capsys):
    """By the half of val that figures do not come from: the whole has its lowest loss earlier, and at the end."""
    a, whole = [4.0, 3.0, 3.5, 2.5, 2.5, 2.6, 9.9], [4.0, 2.0, 3.5, 3.5, 2.5, 1.9, 9.9]
    monkeypatch.setattr(Trainer, 'evaluate', lambda self, split: both(split, whole[self.iter], a[self.iter]))
    out = run_train('--patience=2', '--eval_interval=1')
    assert losses(out, 'eval') == dict(enumerate(whole[:6]))
    m = json.loads((out / 'manifest.json').read_text())
    assert m['final_iter'] == 5 and m['best_val_loss'] == 1.9 and launch.over(out)
    assert 'that of iteration 3: the end (patience = 2)' in capsys.readouterr().out
    assert checkpoint.load(out / 'ckpt.pt')['iter_num'] == checkpoint.load(out / 'best.pt')['iter_num'] == 5


def test_a_run_interrupted_in_its_last_evaluation_is_not_over_and_resuming_makes_it(run_train, monkeypatch, tmp_path):
    """With the checkpoint of the lowest loss, which that evaluation finds."""
    flags = ('--max_iters=3', '--eval_interval=2', '--always_save_checkpoint=false')

    def evaluate(self, split):
        if self.iter == 3 and self.cfg.init_from != 'resume':
            raise hardware.Stopped
        return both(split, 3.0 - 0.1 * self.iter)

    monkeypatch.setattr(Trainer, 'evaluate', evaluate)
    with pytest.raises(SystemExit) as e:
        run_train(*flags)
    assert e.value.code == 130
    out = tmp_path / 'run'
    assert json.loads((out / 'manifest.json').read_text())['final_iter'] == 3 and not launch.over(out)
    run_train(*flags, '--init_from=resume')
    assert launch.over(out) and list(losses(out, 'eval')) == [0, 2, 3]
    assert [checkpoint.load(out / f)['best_iter'] for f in ('best.pt', 'ckpt.pt')] == [3, 3]


def test_patience_is_kept_over_an_interruption(run_train, monkeypatch):
    """Stopped at 4 and gone on with: as if it had not been, and with more patience further."""
    curve = [4.0, 3.0, 3.5, 3.4, 3.3, 3.2, 3.1]
    monkeypatch.setattr(Trainer, 'evaluate', lambda self, split: both(split, 3.0 - 0.1 * self.iter, curve[self.iter]))
    flags = ('--patience=4', '--eval_interval=1')
    out = run_train('--max_iters=3', *flags)
    assert 'out_of_patience' not in json.loads((out / 'manifest.json').read_text())
    run_train('--max_iters=6', '--init_from=resume', *flags)
    assert launch.over(out) and list(losses(out, 'eval')) == list(range(6))
    run_train('--max_iters=6', '--init_from=resume', *flags)  # nothing more to do
    assert list(losses(out, 'eval')) == list(range(6))
    run_train('--max_iters=6', '--init_from=resume', '--patience=9', '--eval_interval=1')
    m = json.loads((out / 'manifest.json').read_text())
    assert m['final_iter'] == 6 and 'out_of_patience' not in m


def test_resuming_leaves_the_way_to_compute_to_the_user(run_train):
    run_train('--max_iters=2', '--linear=low_rank')
    out = run_train('--max_iters=3', '--init_from=resume', '--fuse_mlp=false', '--linear_path=materialised')
    config = json.loads((out / 'config.json').read_text())
    assert not config['fuse_mlp'] and config['linear_path'] == 'materialised' and config['linear'] == 'low_rank'


def test_resuming_takes_the_architecture_from_the_checkpoint(run_train, capsys):
    run_train('--max_iters=5', *EXPANDED)
    out = run_train('--max_iters=10', '--init_from=resume', '--n_layer=3', '--keep_dense=h.0.*')
    said = capsys.readouterr().out.partition('taken from the checkpoint: ')[2].splitlines()[0]
    assert 'n_layer = 2 (not 3)' in said and 'keep_dense = empty (not h.0.*)' in said
    config = json.loads((out / 'config.json').read_text())
    assert config['n_layer'] == 2 and config['linear'] == 'expanded' and config['expansion'] == 40


def test_resuming_discards_what_was_logged_after_the_checkpoint(run_train):
    out = run_train('--max_iters=5')
    with open(out / 'metrics.jsonl', 'a') as f:
        f.write('{"kind": "train", "iter": 5, "loss": 99.0}\n{"kind": "train", "iter": 6, "lo')  # a crash
    run_train('--max_iters=8', '--init_from=resume')
    iters = [m['iter'] for m in read_metrics(out) if m['kind'] == 'train']
    assert iters == list(range(8)) and 99.0 not in losses(out).values()


def test_weights_of_a_plain_model_start_an_expanded_one_with_a_shorter_context(run_train, tmp_path):
    plain = run_train('--max_iters=5', out='plain')
    start = f'--init_from={plain / "ckpt.pt"}'
    same = run_train(start, '--max_iters=0', out='same')
    expanded = run_train(start, '--max_iters=0', *EXPANDED, out='expanded')
    assert losses(same, 'eval')[0] == pytest.approx(losses(plain, 'eval')[5], abs=1e-6)
    assert losses(expanded, 'eval')[0] == pytest.approx(losses(plain, 'eval')[5], abs=1e-5)
    short = run_train(start, '--max_iters=2', '--block_size=16', out='short')
    assert checkpoint.build(checkpoint.load(short / 'ckpt.pt')).config.block_size == 16


@pytest.mark.slow
@pytest.mark.parametrize('flags', [(), EXPANDED, (*EXPANDED, '--linear_path=factored')])
def test_two_processes_equal_one_with_twice_the_accumulation(run_train, two_processes, tmp_path, flags):
    mild = ['--learning_rate=2e-3', '--min_lr=2e-4']  # Adam blows rounding up with every step
    one = run_train('--gradient_accumulation_steps=4', *mild, *flags, out='one')
    two = tmp_path / 'two'
    two_processes(*mild, '--gradient_accumulation_steps=4', f'--out_dir={two}', *flags)
    for kind in ('train', 'eval'):
        a, b = losses(one, kind), losses(two, kind)
        assert a.keys() == b.keys() and len(a) > 2
        for i in a:
            assert abs(a[i] - b[i]) < 1e-5, (kind, i)
    assert torch.load(two / 'ckpt.pt', weights_only=True)['rng']['cpu'][1] is not None


def test_schedules():
    def at(it, **keys):
        args = dict(learning_rate=1.0, min_lr=0.1, warmup_iters=10, lr_decay_iters=110, wsd_decay_iters=20) | keys
        return lr_at(TrainConfig(**args), it)

    assert at(0) == pytest.approx(1 / 11) and at(9) == pytest.approx(10 / 11)  # never 0
    assert at(10) == 1.0 and at(60) == pytest.approx(0.55) and at(110) == at(500) == 0.1
    assert at(60) == pytest.approx(0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi / 2)))
    wsd = dict(schedule='wsd')
    assert at(10, **wsd) == at(90, **wsd) == 1.0 and at(100, **wsd) == pytest.approx(0.55) and at(110, **wsd) == 0.1
    assert at(0, decay_lr=False) == at(10**9, decay_lr=False) == 1.0


def test_logged_train_loss_is_the_mean_of_its_interval(run_train):
    fine = losses(run_train('--log_interval=1', '--gradient_accumulation_steps=2', out='fine'))
    coarse = losses(run_train('--log_interval=3', '--gradient_accumulation_steps=2', out='coarse'))
    assert list(coarse) == [0, 3, 6, 9]
    for i in (3, 6, 9):
        assert coarse[i] == pytest.approx(sum(fine[j] for j in (i, i - 1, i - 2)) / 3, abs=1e-5)


def test_data_and_model_have_seeds_of_their_own(run_train):
    first = {}
    for out, flags in (('a', ()), ('b', ('--seed_data=7',)), ('c', ('--seed_model=7',)), ('d', ())):
        first[out] = run_train('--max_iters=1', *flags, out=out)
    init = {k: losses(d, 'eval')[0] for k, d in first.items()}
    assert init['a'] == init['b'] == init['d'] != init['c']
    assert losses(first['a']) == losses(first['d']) != losses(first['b'])


def test_a_run_leaves_its_record(run_train):
    out = run_train(*EXPANDED)
    config = json.loads((out / 'config.json').read_text())
    assert config['expansion'] == 40 and config['beta1'] == 0.9 and config['seed_model'] == 1337
    m = json.loads((out / 'manifest.json').read_text())
    for key in ('command', 'commit', 'torch', 'device', 'attention', 'peak_memory', 'started', 'finished'):
        assert m[key], key
    assert {'dirty', 'cuda', 'cudnn', 'seed_model', 'seed_data'} <= set(m) and m['peak_flops'] is None
    assert m['params'] > m['params_collapsed'] and m['final_iter'] == 10
    for line in read_metrics(out):
        assert not line.get('mfu')  # a CPU has no entry in the table of peaks: no number rather than a wrong one
    assert json.loads((out / 'meta.json').read_text())['tokenizer'] == 'char'
    assert not list(out.glob('*.pkl')) and not list(out.glob('*.tmp*'))


def test_best_is_kept_when_the_loss_rises_again(run_train):
    out = run_train('--max_iters=10', '--eval_interval=5')
    good = torch.load(out / 'best.pt', weights_only=True)
    run_train('--max_iters=15', '--eval_interval=5', '--init_from=resume', '--decay_lr=false', '--learning_rate=3')
    best, last = (torch.load(out / f, weights_only=True) for f in ('best.pt', 'ckpt.pt'))
    assert last['iter_num'] == 15 and best['iter_num'] == good['iter_num'] == 10
    assert last['best_val_loss'] == good['best_val_loss'] < losses(out, 'eval')[15]


def test_the_lowest_loss_counts_anew_where_evaluations_see_other_text(run_train, monkeypatch, capsys):
    """Else no loss on harder text would ever be the best one, and patience would end the run."""
    monkeypatch.setattr(Trainer, 'evaluate', lambda self, split: both(split, 2.0 + 0.1 * (self.iter or 9)))
    out = run_train('--max_iters=4', '--eval_interval=2')
    assert 'other text' not in capsys.readouterr().out
    run_train('--max_iters=6', '--eval_interval=2', '--init_from=resume', '--batch_size=2', '--eval_iters=4')
    assert 'other text' not in capsys.readouterr().out and checkpoint.load(out / 'best.pt')['iter_num'] == 2
    more = '--init_from=resume', '--eval_iters=3', '--patience=2', '--always_save_checkpoint=false'
    run_train('--max_iters=10', '--eval_interval=2', *more)
    said = capsys.readouterr().out
    assert 'the lowest val loss, 2.2000 until now, counts anew; best.pt of before is best-2.pt' in said
    assert 'no lower val_a than that of iteration 6' in said
    assert [checkpoint.load(out / f)['iter_num'] for f in ('best.pt', 'best-2.pt', 'ckpt.pt')] == [6, 2, 8]


def test_a_data_set_that_was_prepared_otherwise_since_is_named(run_train, tmp_path, capsys):
    """Its name is the same; the order of its windows depends on their number."""
    data = lambda n, m: write_dataset(
        tmp_path / 'mine', [0, 1] * n, [0, 1] * m, vocab_size=2, itos=['a', 'b'], tokenizer='char'
    )
    data(500, 100)
    flags = f'--dataset={tmp_path}/mine', '--eval_iters=0', '--max_iters=2'
    run_train(*flags), run_train(*flags, '--init_from=resume')
    assert 'other tokens' not in capsys.readouterr().out
    data(600, 100)
    run_train(*flags, '--init_from=resume')
    said = capsys.readouterr().out
    assert "{'train': 1200, 'val': 200}, it had {'train': 1000, 'val': 200}" in said and 'other text' not in said
    data(500, 100), run_train(*flags, '--init_from=resume', '--max_iters=4')
    assert 'other tokens' not in capsys.readouterr().out  # that run had nothing to save
    data(500, 90), run_train(*flags, '--init_from=resume', '--max_iters=6')
    said = capsys.readouterr().out
    assert 'window 16, where this run is, is another one' in said and 'evaluations see other text' in said
    data(500, 90)
    write_dataset(tmp_path / 'mine', [1, 0] * 500, [0, 1] * 90, vocab_size=2, itos=['a', 'b'], tokenizer='char')
    run_train(*flags, '--init_from=resume', '--max_iters=8')
    said = capsys.readouterr().out
    assert 'has other tokens than before, as many' in said and 'evaluations see' not in said


def test_a_nan_loss_ends_with_code_3_and_spares_the_checkpoint(run_train, tmp_path, fails):
    out = run_train('--max_iters=5')
    before = (out / 'ckpt.pt').read_bytes()
    flags = [
        *TINY,
        f'--out_dir={out}',
        '--init_from=resume',
        '--learning_rate=1e30',
        '--decay_lr=false',
        '--grad_clip=0',
    ]
    cfg = load(TrainConfig, flags)
    err = fails(lambda: train(cfg), 'the loss is nan at iteration', 'ckpt.pt', code=3)
    assert err.count('\n') == 1
    assert (out / 'ckpt.pt').read_bytes() == before


def test_a_checkpoint_without_optimizer_is_not_resumed(run_train, fails, tmp_path):
    import transfer

    out = run_train('--max_iters=5', *EXPANDED)
    transfer.collapse(collapse.TransferConfig(str(out / 'ckpt.pt'), str(tmp_path / 'plain' / 'ckpt.pt')))
    cfg = load(TrainConfig, [*TINY, f'--out_dir={tmp_path / "plain"}', '--init_from=resume'])
    fails(lambda: train(cfg), 'no optimizer state to resume from', '--init_from=')
    other = [*TINY, f'--out_dir={tmp_path / "x"}', f'--init_from={out / "ckpt.pt"}', '--linear=low_rank']
    fails(lambda: train(load(TrainConfig, other)), 'leave out linear', 'collapse it first')


def test_the_best_checkpoint_is_never_that_of_another_run(run_train):
    out = run_train('--max_iters=10')
    assert (out / 'best.pt').exists()
    run_train('--max_iters=5', '--learning_rate=1e-12', '--min_lr=0', '--seed_model=3', '--eval_iters=1')
    best = out / 'best.pt'
    assert not best.exists() or torch.load(best, weights_only=True)['config']['seed_model'] == 3


def test_layers_are_checked_with_the_sizes_of_the_checkpoint(run_train, tmp_path, fails, capsys):
    wide = run_train('--max_iters=2', '--n_embd=64', out='wide')
    start = [*TINY, f'--init_from={wide}/ckpt.pt', f'--out_dir={tmp_path}/x', '--max_iters=2']
    go = lambda *flags: train(load(TrainConfig, [*start, '--linear=expanded', *flags]))
    fails(lambda: go('--expansion=40', '--expansion_init=orthogonal'), 'expansion = 40', 'expansion >= 64')
    rotating = ('--expansion=40', '--expansion_init=svd', '--expansion_schedule=rotate', '--expansion_every=1')
    fails(lambda: go(*rotating), 'expansion = 40', 'rank 64')
    fails(lambda: go('--linear_layers=h.5.*'), "'h.5.*' matches no layer")
    start[0:0] = ['--n_embd=768']  # as the default of a config without sizes: those of the checkpoint count
    go('--expansion=80', '--expansion_init=orthogonal')


def test_a_structured_head_waits_for_the_vocabulary(run_train):
    out = run_train('--max_iters=2', '--linear=low_rank', '--linear_layers=head', '--tie_head=false')
    assert 'lm_head.factors.0' in torch.load(out / 'ckpt.pt', weights_only=True)['model']


@pytest.mark.parametrize(
    'flags, parts',
    [
        (['--dataset=nope'], ['nope', 'shakespeare_char']),
        (['--device=cuda:9'], ["device = 'cuda:9'", '--device=cpu']),
        (['--dtype=float16'], ["dtype = 'float16'", 'float32']),
        (['--cuda_graph=true'], ['cuda_graph = True', '--cuda_graph=false']),
        (['--block_size=200000'], ['block_size = 200000', 'lower block_size']),
        (['--vocab_size=10'], ['token id', 'vocab_size = 10']),
        (['--init_from=resume'], ['no checkpoint at', 'ckpt.pt']),
        (['--init_from=nothing.pt'], ['no checkpoint at', 'nothing.pt']),
    ],
)
def test_mistakes_of_data_and_device_get_one_line(tmp_path, fails, flags, parts):
    cfg = load(TrainConfig, [*TINY, f'--out_dir={tmp_path / "x"}', *flags])
    assert fails(lambda: train(cfg), *parts).count('\n') == 1


def test_an_out_dir_that_cannot_be_written_gets_one_line(tmp_path, fails):
    (tmp_path / 'file').write_text('')
    cfg = load(TrainConfig, [*TINY, f'--out_dir={tmp_path / "file" / "x"}'])
    fails(lambda: train(cfg), 'out_dir = ', 'choose another')


@pytest.mark.slow
@pytest.mark.parametrize('how', ['a signal', 'its terminal goes'])
def test_an_interrupted_run_saves_and_goes_on_exactly(run_train, tmp_path, python, how):
    out = tmp_path / 'cut'
    args = [*TINY, '--max_iters=100000', '--eval_interval=100000', f'--out_dir={out}']
    master, terminal = os.openpty()
    pipe = subprocess.PIPE if how == 'a signal' else terminal
    p = subprocess.Popen([*python, str(ROOT / 'train.py'), *args], stdout=pipe, stderr=pipe, text=True)
    os.close(terminal)
    os.set_blocking(master, False)
    deadline = time.time() + 60
    while len(losses(out)) < 5 and time.time() < deadline:
        time.sleep(0.05)
        with contextlib.suppress(OSError):
            os.read(master, 2**16)
    if how == 'a signal':
        p.send_signal(signal.SIGTERM)
        assert 'go on with --init_from=resume' in p.communicate(timeout=60)[0]
    else:
        p.send_signal(signal.SIGHUP)
        os.close(master)  # from now on a print would fail
    assert p.wait(timeout=60) == 130
    n = torch.load(out / 'ckpt.pt', weights_only=True)['iter_num']
    assert n >= 5
    more = [f'--max_iters={n + 3}', '--eval_interval=100000', '--init_from=resume']
    run_train(*more, out='cut')
    whole = run_train(more[0], more[1], out='whole')
    assert losses(out) == losses(whole)


@pytest.mark.slow
def test_wandb_gets_every_log_step_offline(run_train, monkeypatch):
    monkeypatch.setenv('WANDB_MODE', 'offline')
    import wandb

    logged = []
    real = wandb.sdk.wandb_run.Run.log
    monkeypatch.setattr(
        wandb.sdk.wandb_run.Run, 'log', lambda self, d, **k: (logged.append((k['step'], d)), real(self, d, **k))
    )
    out = run_train('--wandb_log=true', '--max_iters=5', '--wandb_project=test', '--wandb_run_name=x')
    assert {s for s, d in logged if 'train/loss' in d} == set(range(5))
    assert {s for s, d in logged if 'eval/val_loss' in d} == {0, 5}
    assert list((out / 'wandb').glob('offline-run-*'))


def test_without_checkpoints_the_log_is_all_there_is(run_train):
    a, b = run_train('--save_checkpoint=false', out='a'), run_train(out='b')
    assert not list(a.glob('*.pt')) and list(b.glob('*.pt')) and losses(a) == losses(b)


def test_whole_split_evaluation_is_the_mean_over_its_windows(run_train):
    """Batches of 7 leave an incomplete last one; the result must not depend on the batch size."""
    flags = ('--max_iters=0', '--eval_iters=0', '--block_size=256', '--n_layer=1')
    a, b = (losses(run_train(*flags, f'--batch_size={n}', out=str(n)), 'eval')[0] for n in (7, 64))
    assert a == pytest.approx(b, abs=1e-5)


def test_evaluation_does_not_disturb_training(run_train):
    a = losses(run_train('--eval_interval=1', '--dropout=0.2', out='a'))
    b = losses(run_train('--eval_interval=10', '--dropout=0.2', out='b'))
    assert a == b


def test_the_exact_inits_start_where_the_dense_twin_starts(run_train):
    start = {
        out: losses(run_train('--max_iters=0', *flags, out=out), 'eval')[0]
        for out, flags in (
            ('dense', ()),
            ('orthogonal', (*EXPANDED, '--expansion_init=orthogonal')),
            ('svd', (*EXPANDED, '--expansion_init=svd', '--linear_layers=mlp+attn')),
        )
    }
    assert abs(start['orthogonal'] - start['dense']) < 1e-5 and abs(start['svd'] - start['dense']) < 1e-5


def test_every_parameter_of_a_run_is_in_its_checkpoint(run_train):
    ckpt = checkpoint.load(run_train(*EXPANDED) / 'ckpt.pt')
    model = checkpoint.build(ckpt)
    assert set(ckpt['optimizer']) == {name for name, *_ in factors.leaves(model)}


class Counting(Hook):
    """A hook of one's own: counts its calls, and asks once for the forward pass to be made anew."""

    def __init__(self, at):
        self.at, self.before, self.after = at, [], []

    def before_update(self, model, optimizer, it):
        assert all(p.grad is not None for p in model.parameters())
        self.before.append(it)

    def after_update(self, model, optimizer, it):
        assert all(p.grad is None for p in model.parameters())
        self.after.append(it)
        if it == self.at:
            optimizer.rebuild(optimizer.release())
        return it == self.at

    def describe(self, model, optimizer):
        return [f'counts, and rebuilds at {self.at}']


@pytest.mark.parametrize('flags', [(), (*EXPANDED, '--linear_path=materialised')])
def test_a_hook_of_ones_own_is_called_and_heard(run_train, monkeypatch, capsys, flags):
    import train as module

    plain = losses(run_train('--max_iters=6', '--dropout=0.1', *flags, out='plain'))
    hook, wraps, real = Counting(at=3), [], Trainer.wrap
    monkeypatch.setattr(module, 'hooks', lambda *args, **keys: [hook])
    monkeypatch.setattr(Trainer, 'wrap', lambda self: (wraps.append(self.iter), real(self)))
    hooked = losses(run_train('--max_iters=6', '--dropout=0.1', *flags, out='hooked'))
    assert hook.before == [0, 1, 2, 3, 4, 5] and hook.after == [1, 2, 3, 4, 5, 6]
    assert wraps == [0, 3] and hooked == plain  # the moments are those of before
    assert 'counts, and rebuilds at 3' in capsys.readouterr().out


def test_the_hooks_of_a_config_can_be_listed(tmp_path):
    def listed(*flags):
        cfg = load(TrainConfig, [*TINY, '--vocab_size=65', *flags])
        return [type(h).__name__ for h in hooks(cfg, torch.device('cpu'), False)]

    checkpoint.save(tmp_path / 'teacher.pt', checkpoint.pack(tiny_gpt(vocab_size=65, block_size=32), {}, 0, 1.0))
    assert listed() == []
    assert listed('--linear=btt', '--guide_iters=5', f'--distill_from={tmp_path}/teacher.pt') == ['Guide', 'Teacher']
    assert listed('--linear=expanded', '--expansion_init=svd', '--expansion_schedule=rotate') == ['Rotation']


def test_the_teacher_is_read_once(run_train, tmp_path, monkeypatch):
    n = loader.padded_vocabulary(loader.read_meta('shakespeare_char'))
    checkpoint.save(tmp_path / 'teacher.pt', checkpoint.pack(tiny_gpt(vocab_size=n, block_size=32), {}, 0, 1.0))
    opened, real = [], checkpoint.load
    monkeypatch.setattr(checkpoint, 'load', lambda path, *args: (opened.append(str(path)), real(path, *args))[1])
    flags = ('--linear=btt', '--guide_iters=2', '--max_iters=4')  # whose end makes the forward pass anew
    run_train(f'--distill_from={tmp_path}/teacher.pt', *flags)
    assert opened == [f'{tmp_path}/teacher.pt']


def test_validation_is_logged_in_two_halves_that_make_the_whole(run_train):
    evals = [m for m in read_metrics(run_train('--eval_iters=7')) if m['kind'] == 'eval']
    assert evals and all(m['val_a'] != m['val_b'] for m in evals)
    for m in evals:  # 28 windows, 14 in each half
        assert m['val_loss'] == pytest.approx((m['val_a'] + m['val_b']) / 2, abs=1e-6)


def test_a_run_whose_validation_is_a_single_window_goes_on_and_has_no_second_half(run_train):
    one = ('--eval_iters=1', '--batch_size=1')
    run_train(*one, '--max_iters=2')
    evals = [m for m in read_metrics(run_train(*one, '--max_iters=4', '--init_from=resume')) if m['kind'] == 'eval']
    assert [m['iter'] for m in evals] == [0, 2, 4] and all(m['val_a'] == m['val_loss'] for m in evals)
    assert not any('val_b' in m for m in evals)


def test_every_hook_is_called_whatever_the_one_before_it_says(tmp_path):
    called, forward = [], []

    class Changes(Hook):
        def after_update(self, model, optimizer, it):
            called.append('changes')
            return True

    class Listens(Hook):
        def after_update(self, model, optimizer, it):
            called.append('listens')
            return False

    t = Trainer(load(TrainConfig, [*TINY, f'--out_dir={tmp_path}']), torch.device('cpu'))
    t.hooks, t.wrap = [Changes(), Listens()], lambda: forward.append(t.iter)
    t.step()
    assert called == ['changes', 'listens'] and forward == [1]


def test_an_evaluation_computes_in_the_precision_of_training(tmp_path):
    t = Trainer(load(TrainConfig, [*TINY, '--dtype=bfloat16', f'--out_dir={tmp_path}']), torch.device('cpu'))
    seen = []
    t.eval_forward = lambda x, y: (None, torch.tensor(float(seen.append(torch.is_autocast_enabled('cpu')) or 1)))
    t.evaluate('val')
    assert seen and all(seen)


def test_processes_start_with_one_model_and_draw_dropouts_of_their_own(tmp_path, monkeypatch):
    monkeypatch.setattr(parallel, 'DDP', lambda model, **_: model)
    monkeypatch.setattr(torch.distributed, 'broadcast', lambda *_: None)
    monkeypatch.setattr(torch.distributed, 'barrier', lambda: None)
    monkeypatch.setenv('WORLD_SIZE', '2')
    models, draws = [], []
    for rank in ('0', '1'):
        monkeypatch.setenv('RANK', rank)
        flags = ('--gradient_accumulation_steps=2', '--dropout=0.1', f'--out_dir={tmp_path}')
        models.append(Trainer(load(TrainConfig, [*TINY, *flags]), torch.device('cpu')).model.state_dict())
        draws.append(torch.rand(8))
    assert all(torch.equal(v, models[1][k]) for k, v in models[0].items())
    assert not torch.equal(*draws)


@pytest.mark.parametrize('always, expected', [(True, [True, False, False]), (False, [True, False])])
def test_without_always_save_checkpoint_only_a_lower_loss_and_the_end_are_saved(always, expected):
    saved, quiet = [], lambda *_, **__: None
    t = types.SimpleNamespace(
        cfg=TrainConfig(always_save_checkpoint=always), iter=0, tokens=0, flops=0, seconds=0.0, best_val_loss=9.0,
        best_iter=0, lowest_a=math.inf, lowest_a_iter=0, save=saved.append,
    )  # fmt: skip
    log = types.SimpleNamespace(metrics=quiet, say=quiet)
    for it, loss, done in ((5, 2.0, False), (10, 2.5, False), (15, 2.4, True)):
        t.iter = it
        for save in (False, True):  # false: where the run went on from
            module.after_evaluation(t, log, dict(train_loss=1.0, val_loss=loss if save else 9.0, val_a=9.0), done, save)
    assert saved == expected and (t.best_val_loss, t.best_iter) == (2.0, 5)


def test_parameters_keep_their_moments_when_guides_have_faded(run_train):
    """AdamW counts its steps: the embeddings have had all four, two of them after the guides went."""
    out = run_train('--linear=btt', '--guide_iters=2', '--max_iters=4', '--always_save_checkpoint=true')
    state = checkpoint.load(out / 'ckpt.pt')['optimizer']
    assert not any('guide' in name for name in state)
    assert {name: int(s['step']) for name, s in state.items()} == dict.fromkeys(state, 4)
