"""bench.py race: every arm trains for the same seconds to the end of its schedule, and is judged on the same windows."""

import json
import os
from types import SimpleNamespace

import pytest
import torch
from conftest import ROOT, TINY

import bench
from configurator import load
from lab import bench_race, figures, steps
from lab.bench_nanogpt import NanoGPT
from lab.bench_race import RaceConfig
from tokens.loader import Loader
from train import Trainer

PATH = os.environ.get('NANOGPT_DIR') or str(ROOT / 'tests' / 'lab' / 'nanogpt.py')


@pytest.fixture(name='race')
def race_on_a_clock(monkeypatch):
    """race(*flags): bench.py race. A step takes 2 seconds, the first 50 more, nanoGPT's 4; an evaluation a thousand."""
    now = [0.0]

    def slow(of, seconds):
        step, evaluate = of.step, of.evaluate

        def timed(self):
            now[0] += seconds + 50 * (self.iter == 0)
            return step(self)

        def timed_evaluation(self, split):
            now[0] += 1000
            return evaluate(self, split)

        monkeypatch.setattr(of, 'step', timed)
        monkeypatch.setattr(of, 'evaluate', timed_evaluation)

    slow(Trainer, 2), slow(NanoGPT, 4)
    monkeypatch.setattr(steps, 'time', SimpleNamespace(perf_counter=lambda: now[0]))
    monkeypatch.setattr(bench_race, 'ONCE', 2)
    monkeypatch.setattr(bench_race, 'TIMED', 3)

    def race(*flags):
        monkeypatch.setattr('sys.argv', ['bench.py', 'race', *flags])
        bench.main()

    return race


def test_each_training_ends_its_schedule_when_its_seconds_are_over(race, monkeypatch, tmp_path, capsys):
    (tmp_path / 'race.jsonl').write_text(json.dumps(trained('before', 60, 3.0)) + '\n')  # stays
    lrs, set_lr = [], bench_race.optim.Optimizer.set_lr
    monkeypatch.setattr(bench_race.optim.Optimizer, 'set_lr', lambda self, lr: (lrs.append(lr), set_lr(self, lr)))
    nano = [*TINY, f'--nanogpt={PATH}', '--seconds=24', '--vocab_size=96']
    wsd = [*TINY, '--seconds=40', '--schedule=wsd', '--wsd_decay_iters=5', '--vocab_size=96']
    out = f'--out={tmp_path}/race.jsonl'
    race(*TINY, '--seconds=24,40', '--vocab_size=96', out, '--', *wsd, '--', *nano)
    before, *rows = [json.loads(line) for line in (tmp_path / 'race.jsonl').read_text().splitlines()]
    assert before == trained('before', 60, 3.0)
    figures = [(r['seconds'], r['trained_s'], r['ms'], r['iters'], r['tokens']) for r in rows]
    ours = [(24, 24, 2000, 12, 12 * 128), (40, 40, 2000, 20, 20 * 128)]
    assert figures == [*ours, ours[1], (24, 24, 4000, 6, 6 * 128)]
    assert [r['once_s'] for r in rows] == [50] * 4
    ends, begins = (lrs[11], lrs[31], lrs[51]), (lrs[1], lrs[13], lrs[33])
    assert begins == pytest.approx([1e-2 * 2 / 3] * 3)  # the warm-up keeps its length
    assert 1e-3 < ends[1] < ends[0] < 1.6e-3 and lrs[11] < lrs[10]
    assert lrs[46] == pytest.approx(1e-2) and lrs[48] < 1e-2 and ends[2] == pytest.approx(1e-3 + 9e-3 / 5)
    capsys.readouterr()
    race(f'--show={tmp_path}/race.jsonl')
    shown = capsys.readouterr().out
    assert (
        shown.count('\n') == 7  # two of the head, names of the columns, four rows
        and f'{rows[3]["val_loss"]:.4f}' in shown
        and PATH not in json.dumps(rows)
        and str(tmp_path) not in json.dumps(rows)
    )


def test_a_training_that_misses_its_seconds_says_so(race, monkeypatch, capsys):
    race(*TINY, '--seconds=20')
    assert 'NOTE' not in capsys.readouterr().out
    monkeypatch.setattr(bench_race, 'TIMED', 0.5 * bench_race.TIMED)  # as if a step took longer than it does
    monkeypatch.setattr(steps, 'seconds', lambda t, n, of=steps.seconds: of(t, round(n)))
    race(*TINY, '--seconds=40')
    assert 'NOTE: 40 s were asked for, 33.3 taken' in capsys.readouterr().out


def test_keys_without_effect_are_named(race, capsys):
    race(*TINY, '--seconds=20', '--rank=4', '--', *TINY, f'--nanogpt={PATH}', '--vocab_size=96', '--wsd_decay_iters=3')
    said = capsys.readouterr().out
    assert 'without effect here: rank = 4' in said and 'without effect here: wsd_decay_iters = 3' in said


def trained(arm: str, seconds: float, loss: float) -> dict:
    return dict(arm=arm, seconds=seconds, trained_s=seconds - 1, val_loss=loss, iters=9, tokens=99, ms=1.0,
                device='cpu', dtype='float32', torch='2', commit='abcdefgh')  # fmt: skip


ROWS = [
    trained('a.py --batch_size=4 --learning_rate=1', 60, 3.0), trained('a.py --batch_size=4 --learning_rate=2', 60, 2.5),
    trained('nanoGPT: a.py --nanogpt=x --batch_size=4', 120, 2.8), trained('a.py --batch_size=4 --learning_rate=2', 120, 2.0),
]  # fmt: skip


def test_the_table_says_once_what_all_arms_share():
    lines = bench_race.table(ROWS).splitlines()
    assert (
        lines[1] == 'all with --batch_size=4'
        and lines[4].startswith('a.py --learning_rate=2 ')
        and '2.5000' in lines[4]
    )
    alone = bench_race.table(ROWS[:1])
    assert 'all with' not in alone and 'a.py --batch_size=4 --learning_rate=1' in alone


def test_the_picture_joins_the_best_training_of_each_length():
    ax = figures.race(ROWS).axes[0]
    lines = {line.get_label(): (list(line.get_xdata()), list(line.get_ydata())) for line in ax.get_lines()}
    assert lines['nanoMorph'] == ([59 / 60, 119 / 60], [2.5, 2.0]) and lines['nanoGPT'] == ([119 / 60], [2.8])
    tried = [y for line in ax.get_lines() if line.get_label().startswith('_') for y in line.get_ydata()]
    assert sorted(tried) == [2.0, 2.5, 2.8, 3.0]


def test_nanogpt_is_judged_on_the_windows_of_ours():
    cfg = load(RaceConfig, [*TINY, f'--nanogpt={PATH}', '--vocab_size=96', '--eval_iters=3'])
    t = NanoGPT(cfg, torch.device('cpu'))
    losses = {half: [] for half in (0, 1)}
    for half, found in losses.items():
        for x, y, n in Loader('shakespeare_char', 'val', 32, 4, 96).eval_batches(12, half=half):
            with torch.no_grad():
                found.append((t.net(x, y.contiguous())[1].item() * n, n))
    mean = lambda found: sum(v for v, _ in found) / sum(n for _, n in found)
    found = t.evaluate('val')
    assert (found['val_a'], found['val_b']) == pytest.approx((mean(losses[0]), mean(losses[1])))
    assert found['val_loss'] == pytest.approx(mean(losses[0] + losses[1])) and t.net.training


def test_no_arm_trains_where_another_one_cannot(race, fails, monkeypatch):
    monkeypatch.setattr(bench_race, 'train', lambda *_: pytest.fail('trained'))
    for flags in (['--deterministic=true'], [f'--nanogpt={PATH}', '--norm=rmsnorm'], ['--nanogpt=nowhere']):
        fails(lambda flags=flags: race(*TINY, '--', *TINY, *flags))


def test_a_schedule_does_not_decay_before_its_length_is_known(race, monkeypatch):
    """The first five steps, of nanoGPT's arm, too."""
    lrs, lr_at = {'': {}, PATH: {}}, bench_race.optim.lr_at
    noted = lambda cfg, it: lrs[cfg.nanogpt].setdefault(it, lr_at(cfg, it))
    monkeypatch.setattr('optimizers.optim.lr_at', noted)
    monkeypatch.setattr('lab.bench_nanogpt.lr_at', noted)
    flags = [*TINY, '--warmup_iters=0', '--lr_decay_iters=2', '--vocab_size=96']
    race(*flags, '--seconds=20', '--', *flags, f'--nanogpt={PATH}', '--seconds=40')
    for found in (list(of.values()) for of in lrs.values()):
        assert found[:5] == pytest.approx([1e-2] * 5) and 1e-3 < found[9] < found[5] < 1e-2 and len(found) == 10


@pytest.mark.parametrize(
    'flags, said',
    [
        (['--seconds=9'], '5 steps of 2e+03 ms take longer'),
        (['--seconds=12', '--warmup_iters=7'], '6 steps of 2e+03 ms fit, warmup_iters = 7 take more; warm up in fewer'),
        (['--seconds=12', '--schedule=wsd', '--wsd_decay_iters=18'], 'warmup_iters = 2 and the decay 5 take more'),
        (['--seconds=9', '--lr_decay_iters=0', '--warmup_iters=0'], '5 steps of 2e+03 ms take longer'),
        (['--init_from=resume'], 'each training begins at its first step'),
        (['--patience=3', '--eval_only=true'], 'eval_only, patience: a training ends when its seconds are over'),
        (['--', *TINY, '--batch_size=8'], 'must be equal, not 8 and 16'),
        (['--', *TINY, '--block_size=16'], 'judged on the same windows, so dataset, block_size and'),
        (['--seconds=20', '--', *TINY, '--deterministic=true'], 'give it to all of them'),
        (['--device=auto', '--', *TINY], 'device = cpu: all arms run on that of the first (auto)'),
        *(
            ([f'--nanogpt={PATH}', flag], f'cannot express {flag[2:].partition("=")[0]}')
            for flag in ('--seed_data=0', '--on_nan=skip', '--activation_checkpointing=true', '--cuda_graph=true')
        ),
        (['--seconds='], 'seconds: must be given'),
        ([f'--nanogpt={PATH}', '--optimizer=muon'], 'cannot express optimizer'),
        (['--seconds=-1'], 'seconds: -1 must be above 0'),
        (['--seconds=20', '--', *TINY, '--out=x'], 'out: belongs to the first arm'),
        (['--show=nowhere'], 'not a file that bench.py race --out=FILE wrote'),
    ],
)
def test_what_cannot_be_raced_gets_one_line(race, fails, flags, said):
    fails(lambda: race(*TINY, *flags), said)
