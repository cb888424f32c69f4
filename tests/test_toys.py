"""The seeds' small tasks: many seeds at once are as many runs, collapse and growth do what they say."""

import dataclasses
import functools
import gzip
import json
import math
import os
import shutil
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

import compare
import files
from configurator import load
from lab import outcomes, report
from logger import read_metrics
from toys import letter_counting, mnist
from toys.letter_counting import LetterConfig, Transformer
from toys.mnist import CNN, MLP, MnistConfig
from toys.seeds import Stack, batches, make_optimizer, make_step, read_seeds

QUICK = dict(
    mnist=['--max_iters=8', '--batch_size=32', '--device=cpu'],
    letter_counting=['--d_model=16', '--max_iters=8', '--epochs=4', '--small_epochs=2', '--train_strings=64',
                     '--batch_size=32', '--dev_strings=20', '--device=cpu', '--learning_rate=1e-2'],
)  # fmt: skip


def trained(module, schema, out, *flags):
    cfg = load(schema, [*QUICK[module.__name__.split('.')[-1]], f'--out_dir={out}', *flags])
    module.train(cfg)
    return cfg


def evals(folder):
    return [m for m in read_metrics(folder) if m['kind'] == 'eval']


@pytest.mark.parametrize('flags', [('--chain=3',), ('--net=cnn', '--chain=2', '--inner=20')])
def test_seeds_at_once_train_as_each_does_alone(tmp_path, monkeypatch, flags):
    monkeypatch.setattr(mnist.nn.Dropout, 'forward', lambda self, x: x)  # its numbers depend on who else is there
    few = [t[:100] for t in mnist.images('digits')]
    monkeypatch.setattr(mnist, 'images', lambda dataset: few)
    trained(mnist, MnistConfig, tmp_path / 'all', '--seeds=1,2,3', *flags)
    trained(mnist, MnistConfig, tmp_path / 'one', '--seeds=2', *flags)
    a, b, other = (evals(tmp_path / f) for f in ('all/s2', 'one/s2', 'all/s1'))
    for k in ('val_loss', 'val_error', 'train_loss'):
        assert a[-1][k] == pytest.approx(b[-1][k], rel=1e-4)
    m = json.loads((tmp_path / 'all' / 's2' / 'manifest.json').read_text())
    assert (
        m['params_collapsed']
        == mnist.costs(load(MnistConfig, [*flags, '--chain=0', '--inner=0']))['params']
        < m['params']
    )
    assert a[-1]['val_loss'] < a[0]['val_loss'] and a[-1]['val_loss'] != other[-1]['val_loss']


def test_a_seed_that_is_named_twice_is_one_run_and_the_largest_one_has_an_order():
    assert read_seeds('3, 1,3') == [3, 1]
    largest = read_seeds(str(2**40 - 1))
    assert sorted(next(batches(4, 4, largest, 10**6, 'cpu')).flatten().tolist()) == [0, 1, 2, 3]


def test_images_that_are_kept_back_are_not_trained_on_and_have_figures_of_their_own(tmp_path, monkeypatch, fails):
    x, y, xt, yt = mnist.images('digits')
    trained(mnist, MnistConfig, tmp_path / 'a', '--held_out=100', '--seeds=1,2')
    last = evals(tmp_path / 'a' / 's1')[-1]
    assert {'val_loss', 'val_error', 'test_loss', 'test_error'} <= set(last) and last['val_error'] != last['test_error']
    monkeypatch.setattr(mnist, 'images', lambda dataset: (x, torch.cat([y[:-100], (y[-100:] + 1) % 10]), xt, yt))
    trained(mnist, MnistConfig, tmp_path / 'b', '--held_out=100', '--seeds=1,2')
    other = evals(tmp_path / 'b' / 's1')[-1]  # other labels there change what is measured there, and nothing else
    assert other['test_loss'] == last['test_loss'] and other['val_loss'] > last['val_loss']
    fails(lambda: load(MnistConfig, ['--held_out=1297']), 'held_out', 'at most')


@pytest.mark.parametrize('net', ['cnn', 'mlp', 'letters'])
def test_gradients_lie_in_memory_as_their_parameters(net):
    """A fused optimizer, as it is used on a GPU, refuses any other."""
    make = dict(cnn=lambda: CNN(8, 2, 16), mlp=lambda: MLP(64, 2, 16), letters=lambda: Transformer(16))[net]
    x, y = torch.randn(32, 1, 8, 8), torch.randint(10, (32,))
    if net == 'letters':
        x, y = torch.randint(27, (32, 20)), torch.randint(3, (32, 20))
    stack = Stack(make, [1, 2], torch.device('cpu'))
    optimizer = make_optimizer(torch.optim.Adam, stack, 1e-3, torch.device('cpu'))
    step = make_step(stack, optimizer, x, y, torch.zeros(2), cuda_graph=False)
    for _ in range(2):
        step(torch.stack([torch.randperm(32)[:8] for _ in range(2)]))
    assert all(p.grad.stride() == p.stride() for p in stack.params.values())


def test_bias_and_relu_behind_the_pooling_are_pytorchs_example():
    net, x = mnist.CNN(8, 0, 0).eval(), torch.randn(5, 1, 8, 8)
    y = F.max_pool2d(F.relu(net.conv2(F.relu(net.conv1(x)))), 2).flatten(1)
    y = net.fc2(F.relu(net.fc1(y)))
    grads = [torch.autograd.grad(out.square().sum(), list(net.parameters())) for out in (net(x), y)]
    assert torch.allclose(net(x), y, atol=1e-6)
    assert all(torch.allclose(a, b, rtol=1e-4, atol=1e-6) for a, b in zip(*grads))


@pytest.mark.parametrize('net, n', [('mlp', 20), ('cnn', 3)])
def test_a_collapsed_chain_computes_the_same(net, n):
    cfg = MnistConfig(net=net, chain=n, inner=0 if net == 'mlp' else 30)
    stack = Stack(lambda: mnist.make_net(cfg, 8), [1, 2], torch.device('cpu'))
    with torch.no_grad():
        for k, p in stack.params.items():
            if k.startswith('chain'):
                p.mul_(2.5)  # as drawn, a chain of 20 is next to nothing
    plain = Stack(lambda: mnist.make_net(dataclasses.replace(cfg, chain=0), 8), [1, 2], torch.device('cpu'))
    before = {k: p.clone() for k, p in plain.params.items()}
    for k, p in before.items():  # the baseline starts where the chained net starts
        assert torch.equal(p, stack.params[k])
    plain.params = mnist.collapse(stack.params, net)
    assert set(plain.params) == set(before)
    x = torch.randn(2, 5, 1, 8, 8)
    for s in (stack, plain):
        s.train(False)
    with_chain, after = stack(x), plain(x)
    plain.params = before
    assert (with_chain - after).abs().max() < 1e-5 * with_chain.abs().max()
    assert (with_chain - plain(x)).abs().max() > 0.01 * with_chain.abs().max()  # there was something to collapse


def test_the_order_of_the_data_depends_on_seed_and_epoch_alone():
    cpu = torch.device('cpu')
    a = torch.stack(list(batches(100, 10, [3, 4], 1, cpu)))
    assert torch.equal(a[:, 1], torch.stack(list(batches(100, 10, [4], 1, cpu)))[:, 0])
    assert sorted(a[:, 0].flatten().tolist()) == list(range(100))
    assert not torch.equal(a, torch.stack(list(batches(100, 10, [3, 4], 2, cpu))))


def test_letters_are_counted():
    x = torch.randint(0, 4, (7, 20), generator=torch.Generator().manual_seed(0))
    expected = [[min(2, row[:i].count(row[i])) for i in range(20)] for row in x.tolist()]
    assert letter_counting.labels(x).tolist() == expected


def test_attention_is_one_head_over_the_root_of_the_width_without_a_mask():
    m, x = letter_counting.Transformer(8).eval(), torch.arange(20)[None] % 27
    h = m.embed.weight[x[0]].clone()
    for t in range(20):
        for i in range(8):
            angle = t / 10000 ** (2 * i / 8)
            h[t, i] += math.sin(angle) if i % 2 == 0 else math.cos(angle)
    q, k, v = (h @ W.weight.T for W in (m.W_Q, m.W_K, m.W_V))
    a = torch.stack([(k @ q[t] / math.sqrt(8)).softmax(0) @ v for t in range(20)]) + h
    assert (m(x)[0] - m.classifier(a + m.ffn(a))).abs().max() < 1e-12


def test_strings_to_train_on_and_to_judge_by_share_no_character(monkeypatch):
    """Of a text whose strings all differ, each is in one of the two, and whole."""
    letters = 'abcdefghijklmnopqrstuvwxyz'
    rows = [f'{letters[i // 26]}{letters[i % 26]}' + 'x' * 18 for i in range(300)]
    monkeypatch.setattr(letter_counting, 'text', lambda: (''.join(rows) + 'left over', 'a text'))
    cfg = LetterConfig(train_strings=200, dev_strings=60)
    x, y, dev, dev_y, _ = letter_counting.strings(cfg)
    read = lambda ids: [''.join(letters[i - 1] for i in row) for row in ids.tolist()]
    train, judged = read(x), read(dev)
    assert len(train) == 200 and len(judged) == 60 and len({*train, *judged}) == 260 and {*train, *judged} <= {*rows}
    assert torch.equal(y, letter_counting.labels(x)) and torch.equal(dev_y, letter_counting.labels(dev))


def test_digits_to_train_on_and_to_judge_by_are_disjoint_and_normalised_by_the_former():
    from sklearn.datasets import load_digits

    d = load_digits()
    raw = torch.tensor(d.images).float()
    x, y, xt, yt = mnist.images('digits')
    assert (len(x), len(xt)) == (1297, 500) and abs(x.mean()) < 1e-4 and abs(x.std() - 1) < 1e-4
    order = torch.cat((x, xt)).squeeze(1)
    low, high = order.min(), order.max()  # 0 and 16 in both
    back = ((order - low) / (high - low) * 16).round()
    every = lambda t, labels: sorted((*row, label) for row, label in zip(t.flatten(1).tolist(), labels.tolist()))
    assert every(back, torch.cat((y, yt))) == every(raw, torch.tensor(d.target))  # each once, with its label
    train = back[:1297]
    want = (back[1297:] - train.mean()) / train.std()
    assert torch.allclose(xt.squeeze(1), want, atol=1e-5)


def test_growth_is_the_seeds():
    small, large = torch.tensor([[[1.0, 0.0], [3.0, 4.0]]]), torch.zeros(1, 4, 4)
    padded = [[1, 0, 0, 0], [3, 4, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]
    assert letter_counting.onehot(small, large)[0].tolist() == padded
    small[0, 0, 0] = 0
    assert letter_counting.onehot(small, large)[0, 0, 0] == 1  # the author's code fills every zero of the diagonal
    q = torch.randn(1, 2, 4)  # d/2 x d of a small model
    rows, columns = torch.eye(2).repeat_interleave(2, 0), torch.eye(4).repeat_interleave(2, 0)
    assert torch.equal(letter_counting.double(q, None)[0], rows @ q[0] @ columns.T)


@pytest.mark.parametrize('method', ['scratch', 'onehot', 'double', 'random_onehot', 'all'])
def test_every_method_moves_what_it_says_and_nothing_else(method):
    small = Stack(lambda: letter_counting.Transformer(8), [1], torch.device('cpu')).params
    drawn = Stack(lambda: letter_counting.Transformer(16), [1], torch.device('cpu')).params
    grown = {k: p.detach().clone() for k, p in drawn.items()}
    if method != 'scratch':
        letter_counting.grow(small, grown, method)
    changed = {k for k in grown if not torch.equal(grown[k], drawn[k])}
    attention = {'W_Q.weight', 'W_K.weight', 'W_V.weight'}
    expected = dict(scratch=set(), all=set(grown))
    assert changed == expected.get(method, attention)
    if method == 'all':
        assert torch.equal(grown['embed.weight'][:, :, :8], small['embed.weight'])
        assert torch.equal(grown['classifier.3.weight'][:, :, :4], small['classifier.3.weight'])


@pytest.mark.parametrize('method', ['scratch', 'double'])
def test_costs_are_what_the_logs_say(tmp_path, method):
    out = tmp_path / 'letters'
    cfg = trained(letter_counting, LetterConfig, out, f'--method={method}', '--seeds=1')
    last, cost = evals(out / 's1')[-1], letter_counting.costs(cfg)
    assert (last['tokens'], last['flops']) == (cost['tokens'], cost['flops'])
    m = json.loads((out / 's1' / 'manifest.json').read_text())
    assert m['params'] == cost['params'] and m['flops_per_token'] * cost['tokens'] == pytest.approx(cost['flops'])
    n = letter_counting.Transformer(16)
    macs = sum(p.numel() for k, p in n.named_parameters() if p.ndim == 2 and k != 'embed.weight') * 20 + 20 * 20 * 24
    assert letter_counting.flops_per_string(16) == 6 * macs


@pytest.mark.slow
def test_compare_runs_and_reports_a_toy(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(report, 'write_comparison', functools.partial(report.write_comparison, pictures=False))
    cfg = compare.CompareConfig(
        arms=dict(scratch='', grown='--method=onehot'), common=' '.join(QUICK['letter_counting']), name='c', seeds=2,
        learning_rates=dict(scratch=(1e-2, 2e-2)), sweep_seeds=1, extend=0,
        script='toys/letter_counting.py', cluster='pool', jobs=1, bench=False, metric='val_error', looks=False,
        results=str(tmp_path / 'results'), out=str(tmp_path / 'out'),
    )  # fmt: skip
    compare.compare(cfg)
    assert (
        'exit code' not in capsys.readouterr().out
    )  # the best rate's folder gets two jobs: the sweep's seeds, then these
    shutil.rmtree(tmp_path / 'results')
    shutil.rmtree(tmp_path / 'out' / 'c' / 'grown' / 'lr0.01' / 's2')
    compare.compare(cfg)  # trains that seed only
    c, found = outcomes.load(tmp_path / 'results' / 'c')
    assert [x.mean.n for x in found] == [2, 2] and found[1].verdict.n == 2
    last = evals(tmp_path / 'out' / 'c' / 'grown' / 'lr0.01' / 's2')[-1]
    assert found[1].values[2] == last['val_error'] and found[1].cost['flops'] == last['flops']
    assert [[r['facts']['seeds_at_once'] for r in x.runs.values()] for x in found] == [[2, 2], [2, 1]]


@pytest.mark.parametrize('module, schema', [(mnist, MnistConfig), (letter_counting, LetterConfig)])
def test_a_toy_moves_an_older_record_aside_and_has_its_folder_alone(
    module, schema, tmp_path, monkeypatch, fails, capsys
):
    monkeypatch.setattr(
        'sys.argv', ['toy', *QUICK[module.__name__.split('.')[-1]], f'--out_dir={tmp_path}/a', '--seeds=1,2']
    )
    module.main()
    first = (tmp_path / 'a' / 's2' / 'metrics.jsonl').read_bytes()
    lock = files.lock(tmp_path / 'a')
    fails(module.main, 'is at work there')
    os.close(lock)
    assert not (tmp_path / 'a' / 's2' / 'earlier-1').exists()
    module.main()
    assert (tmp_path / 'a' / 's2' / 'earlier-1' / 'metrics.jsonl').read_bytes() == first
    assert f'held another run, which is now in {tmp_path}/a/s2/earlier-1' in capsys.readouterr().out


def test_mnist_is_verified(tmp_path, monkeypatch, fails):
    (tmp_path / 'mnist').mkdir()
    (tmp_path / 'mnist' / 't10k-labels-idx1-ubyte.gz').write_bytes(gzip.compress(b'\0\0\x08\x01\0\0\0\x01\x05'))
    monkeypatch.setenv('NANOMORPH_DATA', str(tmp_path))
    monkeypatch.setattr(mnist, 'ROOT', tmp_path)
    fails(lambda: mnist.idx('t10k-labels-idx1-ubyte'), 'sha256')
    monkeypatch.setattr(mnist, 'MIRROR', 'file:///nowhere/')
    fails(lambda: mnist.idx('t10k-images-idx3-ubyte'), 'cannot be read', '--dataset=digits')
    (tmp_path / 't10k-images-idx3-ubyte.gz').write_bytes(gzip.compress(b'a page of an error'))
    monkeypatch.setattr(mnist, 'MIRROR', f'file://{tmp_path}/')
    fails(lambda: mnist.idx('t10k-images-idx3-ubyte'), f'{tmp_path}/t10k-images-idx3-ubyte.gz has another content')
    assert not (tmp_path / 'data').exists()  # a download is kept when it is known to be right


def test_what_is_no_text8_or_too_short_is_named(tmp_path, monkeypatch, fails):
    monkeypatch.setenv('NANOMORPH_DATA', str(tmp_path))
    monkeypatch.setattr(letter_counting, 'ROOT', tmp_path)
    cfg, path = LetterConfig(train_strings=2, dev_strings=1), tmp_path / 'text8' / 'text8'
    path.parent.mkdir()
    for content in (b'', b'ab\xff', b'Upper case'):
        path.write_bytes(content)
        fails(lambda: letter_counting.strings(cfg), 'is not letters a to z and spaces')
    path.write_bytes(b'a b ' * 12)
    fails(lambda: letter_counting.strings(cfg), 'train_strings = 2 and dev_strings = 1', 'has 2 strings')


def test_keys_that_would_have_no_effect_or_leave_the_budget_are_refused(fails):
    fails(lambda: load(MnistConfig, ['--chain=1', '--inner=30']), 'inner = 30', 'chain = 2')
    fails(lambda: load(LetterConfig, ['--method=onehot', '--epochs=10']), 'small_epochs = 20: must be at most epochs')
    assert load(LetterConfig, ['--method=scratch', '--epochs=10']).epochs == 10
    fails(lambda: load(LetterConfig, ['--train_strings=100']), 'batch_size = 128: must be at most train_strings')


@pytest.mark.skipif(
    not (Path(os.environ.get('NANOMORPH_DATA', 'nowhere')) / 'mnist').is_dir(), reason='no MNIST in NANOMORPH_DATA'
)
def test_mnist_is_read():
    x, y, xt, yt = mnist.images('mnist')
    assert x.shape == (60000, 1, 28, 28) and xt.shape == (10000, 1, 28, 28) and abs(x.std() - 1) < 1e-3
    assert y[:5].tolist() == [5, 0, 4, 1, 9] and yt.bincount()[0] == 980
