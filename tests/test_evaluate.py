"""Every figure against a direct loop: one example at a time, one forward per token, in float64, no padding."""

import bz2
import json
import math
import os
import shutil

import numpy as np
import pytest
import torch
from conftest import ROOT

import checkpoint
import evaluate
import files
from configurator import UserError, load
from evaluate import LM, EvalConfig, logprobs, pieces, windows
from tokens import loader
from tokens.download import GPT2_BPE, gpt2_encoding

DATA = os.environ.get('NANOMORPH_DATA')  # as the user set it, before a test changes it
REAL = pytest.param('real', marks=pytest.mark.skipif(not DATA, reason='NANOMORPH_DATA is not set'))

WIKI = ' \n = A heading = \n \n The <unk> of Zürich , which was " old " , had 3 @,@ 000 seats .\n' * 9
PASSAGES = [
    'She looked at the door and waited for the door',
    'one one one one',
    '"Naïve," he said. "You mean the café?"\n\nShe smiled, for she did mean the café',
    'a b',
]
SCENES = [
    ('Roofing: A man sits on a roof. he', 3, ['wraps skis.', 'rips tiles off.', 'holds a cube.', 'starts pulling up it.']),
    ('Canoeing: Two women in a canoe. they', 0, ['paddle.', 'eat the moon and all of its craters.', 'fly.', 'sing']),
    ('[header] How to wait: Sit down.', 1, ['Do not.', 'Stay there, and then wait wait wait.', 'Go.', 'Run to it.']),
]  # fmt: skip


def write_data(folder):
    """The four files in the layout of NANOMORPH_DATA."""
    for name in ('wikitext2/wiki.test.raw', 'wikitext103/wiki.test.tokens'):
        (folder / name).parent.mkdir(parents=True)
        (folder / name).write_text(WIKI)
    (folder / 'lambada').mkdir()
    (folder / 'lambada/lambada_test.jsonl').write_text(''.join(json.dumps({'text': p}) + '\n' for p in PASSAGES))
    (folder / 'hellaswag').mkdir()
    text = ''.join('\n'.join([context, str(label), *endings]) + '\n' for context, label, endings in SCENES)
    (folder / 'hellaswag/hellaswag_val_full.txt.bz2').write_bytes(bz2.compress(text.encode()))


@pytest.fixture
def data(tmp_path, monkeypatch, request):
    """The folder of the texts: the real ones, or short ones in the same layout."""
    if getattr(request, 'param', 'inline') == 'real':
        folder = DATA
    else:
        folder = tmp_path / 'data'
        write_data(folder)
    monkeypatch.setenv('NANOMORPH_DATA', str(folder))
    return folder


@pytest.fixture(scope='module')
def hf(tmp_path_factory):
    """(folder, model in float64) of a tiny GPT-2. Large random weights make its predictions differ from uniform."""
    transformers = pytest.importorskip('transformers')
    torch.manual_seed(0)
    config = transformers.GPT2Config(n_layer=2, n_head=2, n_embd=32, n_positions=32, initializer_range=0.3)
    folder = tmp_path_factory.mktemp('hf')
    transformers.GPT2LMHeadModel(config).save_pretrained(folder)
    return folder, transformers.GPT2LMHeadModel.from_pretrained(folder).double().eval()


def go(path, *flags):
    return evaluate.evaluate(load(EvalConfig, [f'--checkpoint={path}', '--device=cpu', *flags]))


def last(model):
    return lambda idx: model(idx, logits_to_keep=1).logits


@torch.no_grad()
def step(forward, context, token):
    """(nats of the token after the context, whether it is the greedy one)."""
    logits = forward(torch.tensor([context]))[0, -1].double()
    return -logits.log_softmax(0)[token].item(), logits.argmax().item() == token


def score(forward, context, target, block):
    """The same of a target of several tokens, the context cut from the left as one forward over both would be."""
    context = context[-(block + 1 - len(target)) :]
    steps = [step(forward, context + target[:i], token) for i, token in enumerate(target)]
    return sum(n for n, _ in steps), all(g for _, g in steps)


def score_text(forward, ids, window, stride, n):
    """Nats of ids[1 : n + 1]: a token's context begins where the first window that predicts it begins."""
    return sum(
        step(forward, ids[max(0, math.ceil((t - window) / stride)) * stride : t], ids[t])[0] for t in range(1, n + 1)
    )


def close(a, b):
    return a == pytest.approx(b, rel=1e-4)


# -----------------------------------------------------------------------------
# windows and rows


@pytest.mark.parametrize('n', [2, 5, 8, 9, 10, 13, 30])
@pytest.mark.parametrize('window, stride', [(8, 8), (8, 4), (8, 3), (8, 1), (1, 1), (100, 50)])
def test_windows_count_every_token_once_and_fit(n, window, stride):
    ids = list(range(n))
    rows = windows(ids, window, stride)
    assert [t for _, target in rows for t in target] == ids[1:]
    assert all(len(c) >= 1 and len(c) + len(t) - 1 <= window for c, t in rows)
    assert all(c + t == ids[c[0] : t[-1] + 1] for c, t in rows)  # the context is what precedes, without a gap
    assert all(len(t) == stride and len(c) == window + 1 - stride for c, t in rows[1:-1])
    if stride == window:  # disjoint, as in training
        assert all(len(c) == 1 for c, _ in rows)
    assert windows(ids, window, stride, limit=2) == rows[:2]


def test_a_text_shorter_than_a_window_is_one_row():
    assert windows([5, 6, 7], 8, 4) == [([5], [6, 7])]
    assert windows([5], 8, 4) == []


def test_pieces_cut_from_the_left_and_split_only_what_is_longer_than_a_window():
    assert list(pieces([1, 2, 3], [4, 5], 8)) == [([1, 2, 3], [4, 5])]
    assert list(pieces([1, 2, 3], [4, 5], 3)) == [([2, 3], [4, 5])]
    assert list(pieces([1], [2, 3, 4], 3)) == [([1], [2, 3, 4])]
    assert list(pieces([1], [2, 3, 4, 5, 6], 4)) == [([1], [2, 3]), ([1, 2, 3], [4, 5]), ([2, 3, 4, 5], [6])]


def toy(vocab=7, window=8):
    """A causal model whose logits depend on all tokens so far."""
    table = torch.randn(vocab, vocab, generator=torch.Generator().manual_seed(1), dtype=torch.float64) * 2

    def logits(idx):
        return table[idx].cumsum(1)

    return LM(logits, vocab, window, encode=None, decode=None, first=[], window=window)


@pytest.mark.parametrize('batch_size', [1, 3, 100])
def test_logprobs_of_rows_of_all_lengths(batch_size, monkeypatch):
    lm = toy()
    rows = [([1, 2, 3], [4]), ([6], [0, 1, 2]), ([2] * 5, [3, 3]), ([1, 2, 3, 4, 5, 6], [6, 5, 4, 3]), ([0], [0])]
    for context in ([1], [4, 4], [2, 5, 6]):  # the model's own continuation: greedy; with its end changed: not
        ids = list(context)
        for _ in range(3):
            ids.append(lm.logits(torch.tensor([ids]))[0, -1].argmax().item())
        rows += [(context, ids[len(context) :]), (context, [*ids[len(context) : -1], (ids[-1] + 1) % 7])]
    nats, greedy = logprobs(lm, rows, batch_size)
    expected = [score(lm.logits, c, t, 8) for c, t in rows]
    assert close(nats.tolist(), [n for n, _ in expected])
    assert greedy.tolist() == [g for _, g in expected]
    assert greedy[5:].tolist() == [True, False] * 3


def test_batches_keep_logits_below_the_limit(monkeypatch):
    monkeypatch.setattr(evaluate, 'LOGITS_BYTES', 4 * 10 * 64)
    lengths = [3, 64, 10, 1, 20, 65, 7]
    chosen = list(evaluate.batches(lengths, 3, vocab_size=10))
    assert sorted(i for c in chosen for i in c) == list(range(7))
    assert all(len(c) == 1 or len(c) * max(lengths[i] for i in c) <= 64 for c in chosen)
    assert max(map(len, chosen)) == 3


# -----------------------------------------------------------------------------
# the tasks, by a model of transformers


@pytest.mark.parametrize('data', ['inline', REAL], indirect=True)
@pytest.mark.parametrize('task, window, stride', [('wikitext2', 0, 0), ('wikitext103', 20, 20)])
def test_wikitext(hf, data, tmp_path, task, window, stride):
    folder, model = hf
    flags = [f'--tasks={task}', '--limit=3', f'--window={window}', f'--stride={stride}', f'--out={tmp_path}/e.json']
    result = go(folder, *flags)['tasks'][task]
    window, stride = window or 32, stride or 16
    enc = gpt2_encoding()
    text = data / evaluate.SOURCES[task]['file'] if data != DATA else f'{DATA}/{evaluate.SOURCES[task]["file"]}'
    ids = [enc.eot_token, *enc.encode(open(text, encoding='utf-8', newline='').read())]
    n = window + 2 * stride
    nats = score_text(last(model), ids, window, stride, n)
    seen = enc.decode_bytes(ids[1 : n + 1])
    words = len(seen.decode(errors='replace').split())
    assert close(result['figures']['ppl_token'], math.exp(nats / n))
    assert close(result['figures']['ppl_word'], math.exp(nats / words))
    assert close(result['figures']['bits_per_byte'], nats / math.log(2) / len(seen))
    assert [result[k] for k in ('window', 'stride', 'tokens', 'words', 'bytes', 'examples')] == [
        window, stride, n, words, len(seen), 3
    ]  # fmt: skip
    assert result['known_edition'] == (data == DATA)


def test_the_whole_text_counts_with_its_last_partial_window(hf, data, tmp_path):
    folder, model = hf
    result = go(folder, '--tasks=wikitext2', '--stride=32', f'--out={tmp_path}/e.json')['tasks']['wikitext2']
    enc = gpt2_encoding()
    ids = [enc.eot_token, *enc.encode(WIKI)]
    assert (len(ids) - 1) % 32  # there is a partial one
    nats = 0.0
    for i in range(0, len(ids) - 1, 32):  # disjoint windows, one forward each
        chunk = torch.tensor(ids[i : i + 33])
        with torch.no_grad():
            logits = model(chunk[None, :-1]).logits[0]
        nats += torch.nn.functional.cross_entropy(logits, chunk[1:], reduction='sum').item()
    assert result['tokens'] == len(ids) - 1 and result['bytes'] == len(WIKI.encode())
    assert result['words'] == len(WIKI.split())
    assert close(result['figures']['ppl_token'], math.exp(nats / (len(ids) - 1)))
    assert close(result['figures']['ppl_word'], math.exp(nats / len(WIKI.split())))


def greedy_passage(model):
    """Words of which the last is what the model would say."""
    enc = gpt2_encoding()
    for i in range(1000):
        ids = enc.encode(f'Line {i} of the')
        word = enc.decode([last(model)(torch.tensor([ids]))[0, -1].argmax().item()])
        if word[0] == ' ' and word[1:].isalpha():
            return enc.decode(ids) + word


@pytest.mark.parametrize('data', ['inline', REAL], indirect=True)
def test_lambada(hf, data, tmp_path):
    folder, model = hf
    if data != DATA:
        with open(data / 'lambada/lambada_test.jsonl', 'a') as f:
            f.write(json.dumps({'text': greedy_passage(model)}) + '\n')
    result = go(folder, '--tasks=lambada', '--limit=12', f'--out={tmp_path}/e.json')['tasks']['lambada']
    enc = gpt2_encoding()
    with open(f'{data}/lambada/lambada_test.jsonl') as f:
        texts = [json.loads(line)['text'] for line in f][:12]
    pairs = [t.rsplit(' ', 1) for t in texts]
    scores = [score(last(model), enc.encode(a), enc.encode(' ' + b), 32) for a, b in pairs]
    assert close(result['figures']['ppl'], math.exp(sum(n for n, _ in scores) / len(scores)))
    assert result['figures']['acc'] == sum(g for _, g in scores) / len(scores)
    assert result['examples'] == len(texts) and result['tokens'] == sum(len(enc.encode(' ' + b)) for _, b in pairs)
    if data != DATA:
        assert 0 < result['figures']['acc'] < 1  # both kinds are among the passages


@pytest.mark.parametrize('data', ['inline', REAL], indirect=True)
def test_hellaswag(hf, data, tmp_path):
    folder, model = hf
    result = go(folder, '--tasks=hellaswag', '--limit=4', f'--out={tmp_path}/e.json')['tasks']['hellaswag']
    enc = gpt2_encoding()
    lines = bz2.open(f'{data}/hellaswag/hellaswag_val_full.txt.bz2', 'rt', encoding='utf-8').read().split('\n')
    right = norm = n = 0
    for i in range(0, min(24, len(lines) - 1), 6):
        context, label, endings = lines[i], int(lines[i + 1]), lines[i + 2 : i + 6]
        nats = [score(last(model), enc.encode(context), enc.encode(' ' + e), 32)[0] for e in endings]
        right += min(range(4), key=lambda j: nats[j]) == label
        norm += min(range(4), key=lambda j: nats[j] / len(endings[j])) == label
        n += 1
    assert result['figures'] == {'acc': right / n, 'acc_norm': norm / n} and result['examples'] == n


def test_hellaswag_scores_are_those_of_the_rows(hf, data, tmp_path):
    """An accuracy of three tasks says little: the twelve scores themselves."""
    folder, model = hf
    cfg = load(EvalConfig, [f'--checkpoint={folder}', '--tasks=hellaswag', '--device=cpu'])
    lm = evaluate.open_model(cfg)
    nats, _ = logprobs(lm, evaluate.hellaswag(lm, cfg)[0], 5)
    enc = gpt2_encoding()
    rows = [(enc.encode(c), enc.encode(' ' + e)) for c, _, endings in SCENES for e in endings]
    assert close(nats.tolist(), [score(last(model), *row, 32)[0] for row in rows])


@pytest.mark.parametrize('data', ['inline', pytest.param('real', marks=[*REAL.marks, pytest.mark.slow])], indirect=True)
def test_the_batch_size_changes_nothing(hf, data, tmp_path):
    flags = ['--tasks=wikitext2,lambada,hellaswag', '--limit=5', f'--out={tmp_path}/e.json']
    a, b = (go(hf[0], *flags, f'--batch_size={n}')['tasks'] for n in (1, 7))
    for task in a:
        assert a[task]['figures'] == pytest.approx(b[task]['figures'], rel=1e-5)
        assert {k: v for k, v in a[task].items() if k not in ('figures', 'seconds')} == {
            k: v for k, v in b[task].items() if k not in ('figures', 'seconds')
        }


def test_a_folder_with_its_own_tokenizer(hf, data, tmp_path):
    """GPT-2's own, in the files of transformers: the same figures."""
    gpt2_encoding()  # its files are there now
    folder = tmp_path / 'model'
    shutil.copytree(hf[0], folder)
    for name, file in zip(('merges.txt', 'vocab.json'), GPT2_BPE):
        shutil.copy(os.path.join(os.environ['TIKTOKEN_CACHE_DIR'], file), folder / name)
    flags = ['--tasks=wikitext2,lambada,hellaswag,val', '--limit=3', '--dataset=shakespeare_char']
    a, b = (go(f, *flags, f'--out={tmp_path}/{i}.json') for i, f in enumerate((hf[0], folder)))
    assert b['tokenizer'] != a['tokenizer']
    for task in a['tasks']:
        assert a['tasks'][task] | {'seconds': 0} == b['tasks'][task] | {'seconds': 0}


# -----------------------------------------------------------------------------
# our checkpoints


def val_ids(n):
    return np.fromfile(loader.data_dir('shakespeare_char') / 'val.bin', np.uint16)[:n].tolist()


def test_val_of_a_character_checkpoint(run_train, tmp_path):
    out = run_train('--max_iters=5')
    report = go(out / 'ckpt.pt', '--limit=9', '--stride=7', f'--out={tmp_path}/e.json')
    ckpt = checkpoint.load(out / 'ckpt.pt')
    model = checkpoint.build(ckpt).double()
    ids = val_ids(1000)
    n = 32 + 8 * 7
    nats = score_text(lambda x: model(x)[0], ids, 32, 7, n)
    result = report['tasks']['val']
    assert result['tokens'] == result['bytes'] == n  # a character, a byte
    assert close(result['figures']['nats_per_token'], nats / n)
    assert close(result['figures']['bits_per_byte'], nats / n / math.log(2))
    assert report == json.loads((tmp_path / 'e.json').read_text())
    assert report['iter_num'] == 5 and len(report['commit']) >= 7


def test_an_interrupted_evaluation_keeps_the_tasks_that_it_has_measured(run_train, tmp_path, monkeypatch):
    out, done, second = run_train('--max_iters=1'), [], lambda lm, cfg: evaluate.TASKS['val'](lm, cfg)
    monkeypatch.setitem(evaluate.TASKS, 'second', second)
    monkeypatch.setattr(evaluate.EvalConfig, 'names', lambda cfg: ['val', 'second'])
    measure = evaluate.logprobs

    def once(*args):
        if done:
            raise KeyboardInterrupt
        done.append(1)
        return measure(*args)

    monkeypatch.setattr(evaluate, 'logprobs', once)
    with pytest.raises(KeyboardInterrupt):
        go(out, '--limit=3')
    assert list(json.loads((out / 'eval.json').read_text())['tasks']) == ['val']
    (out / 'eval.json').unlink()
    (out / 'config.json').write_text('[' * 100_000)  # nobody needs it
    done.clear()
    monkeypatch.setenv(files.HELD, str(out))
    with pytest.raises(KeyboardInterrupt):
        go(out, '--limit=3')
    assert not (out / 'eval.json').exists()  # in a comparison it would say that all is measured


@pytest.mark.parametrize('of_model', [None, [], [256]])
def test_separators_between_documents_are_no_bytes_of_the_text(of_model, monkeypatch):
    """In the data set's own tokens, and in those of models without a separator and with another one."""
    enc, texts = gpt2_encoding(), ['A café.', '', 'One <|endoftext|> spelled.\n']
    ids = [i for text in texts for i in [enc.eot_token, *enc.encode_ordinary(text)]]
    monkeypatch.setattr(loader, 'prepare', lambda *_, **keys: None)
    monkeypatch.setattr(evaluate.tokenizer, 'of_data', lambda _: evaluate.tokenizer.GPT2)
    monkeypatch.setattr(loader, 'open_tokens', lambda *_: loader.Tokens([np.array(ids)]))
    tok = evaluate.tokenizer.build(evaluate.tokenizer.GPT2)
    lm = LM(None, 50257, 8, tok.encode, tok.decode, tok.first, record=tok.record, window=8)
    if of_model is not None:  # bytes as tokens
        lm = LM(None, 257, 8, lambda text: list(text.encode()), bytes, of_model, window=8)
    rows, counts, _ = evaluate.val(lm, EvalConfig(checkpoint='x', dataset='mine'))
    read = rows[0][0] + [i for _, target in rows for i in target]
    assert read == (ids if of_model is None else [i for text in texts for i in [*of_model, *text.encode()]])
    assert counts['bytes'] == len(''.join(texts).encode()) - (of_model == [])  # then a byte is the first, not predicted


@pytest.mark.slow
def test_val_is_what_training_logs(run_train, capsys):
    out = run_train('--max_iters=5', '--block_size=128', '--eval_iters=1000000')
    logged = [json.loads(line) for line in (out / 'metrics.jsonl').read_text().splitlines()][-1]['val_loss']
    n = 111_539 // 128  # train.py leaves the last tokens
    report = go(out, '--tasks=val', f'--limit={n}')
    assert report['tasks']['val']['figures']['nats_per_token'] == pytest.approx(logged, rel=1e-5)
    report = go(out, '--tasks=val')
    assert report['checkpoint'].endswith('best.pt') and report['tasks']['val']['tokens'] == 111_539
    assert (out / 'eval.json').exists()
    printed = capsys.readouterr().out
    for text in ('bits_per_byte', 'window', 'stride', 'commit', '111,539'):
        assert text in printed


def test_an_expanded_checkpoint_scores_as_its_collapsed_self(run_train, tmp_path):
    out = run_train('--linear=expanded', '--expansion=64', '--max_iters=5')
    result = go(out / 'ckpt.pt', '--limit=2', f'--out={tmp_path}/e.json')['tasks']['val']
    model = checkpoint.build(checkpoint.load(out / 'ckpt.pt')).double()
    ids = val_ids(65)
    assert close(result['figures']['nats_per_token'], score_text(lambda x: model(x)[0], ids, 32, 32, 64) / 64)


def test_a_nanogpt_checkpoint_and_targets_longer_than_its_context(run_train, data, tmp_path):
    """No format in it; texts of known characters only; a context of 16 that most endings exceed."""
    out = run_train('--max_iters=2', '--block_size=16')
    ckpt = checkpoint.load(out / 'ckpt.pt')
    old = {k: ckpt[k] for k in ('model_args', 'config', 'iter_num', 'best_val_loss')}
    old['model'] = {f'_orig_mod.{k}': v for k, v in ckpt['model'].items()}
    checkpoint.save(tmp_path / 'old/ckpt.pt', old)
    text = 'Scene one: A man waits. he\n1\nsings.\nwaits for the others, and for rain.\ngoes home.\nsleeps\n'
    (data / 'hellaswag/hellaswag_val_full.txt.bz2').write_bytes(bz2.compress(text.encode()))
    report = go(tmp_path / 'old/ckpt.pt', '--tasks=hellaswag')
    assert report['kind'] == 'nanoGPT' and report['tasks']['hellaswag']['tokens'] == sum(
        1 + len(e) for e in text.split('\n')[2:6]
    )


# -----------------------------------------------------------------------------
# mistakes


def test_mistakes_in_the_keys(fails):
    fails(lambda: load(EvalConfig, ['--checkpoint=x', '--tasks=val,lambda']), "no 'lambda'", "did you mean 'lambada'")
    fails(lambda: load(EvalConfig, ['--tasks=val']), '--checkpoint=PATH')
    fails(lambda: load(EvalConfig, ['--checkpoint=x', '--tasks=,']), 'name at least one of wikitext2')
    fails(lambda: load(EvalConfig, ['--checkpoint=x', '--window=8', '--stride=9']), 'stride = 9')


def test_missing_and_broken_files(run_train, data, tmp_path, monkeypatch, fails):
    def unreachable(*args):
        raise OSError

    monkeypatch.setattr(evaluate, 'ROOT', tmp_path)
    monkeypatch.setattr(evaluate, 'retrieve', unreachable)
    out = run_train('--max_iters=1')
    file = data / 'lambada/lambada_test.jsonl'
    file.write_text('{"text": "single"}\n')
    fails(lambda: go(out, '--tasks=lambada'), 'lambada', 'passage')
    file.unlink()
    err = fails(lambda: go(out, '--tasks=lambada'), 'lambada_test.jsonl', 'place it at', str(file))
    assert err.count('\n') == 1
    monkeypatch.delenv('NANOMORPH_DATA')
    fails(lambda: go(out, '--tasks=lambada'), 'place it at', '.download', 'NANOMORPH_DATA')
    monkeypatch.setenv('NANOMORPH_DATA', str(data))
    file = data / 'hellaswag/hellaswag_val_full.txt.bz2'
    file.write_bytes(file.read_bytes()[:-9])
    fails(lambda: go(out, '--tasks=hellaswag'), 'truncated')
    file.write_bytes(bz2.compress(b'a: b\n0\nc\nd\n'))
    fails(lambda: go(out, '--tasks=hellaswag'), 'six lines')


@pytest.mark.parametrize(
    'task, content, message',
    [
        ('lambada', b'', 'lines of {"text"'),
        ('lambada', b'{"text": 5}\n', 'lines of {"text"'),
        ('lambada', b'{"text": " word"}\n', 'lines of {"text"'),
        ('lambada', b'[' * 100_000, 'lines of {"text"'),
        ('lambada', b'\xff\xfe', 'is not UTF-8 text'),
        ('lambada', 'pipe', 'cannot be read'),
        ('lambada', 'folder', 'cannot be read'),
        ('hellaswag', bz2.compress(b''), 'six lines per task'),
        ('hellaswag', 'bomb', 'is longer than'),
        ('hellaswag', b'plain', 'truncated or no bz2 file'),
        ('wikitext2', b'', 'has none to predict'),
    ],
)  # fmt: skip
def test_damaged_texts_get_one_line(data, task, content, message):
    path = data / evaluate.SOURCES[task]['file']
    path.unlink()
    if content == 'pipe':
        os.mkfifo(path)
    elif content == 'folder':
        path.mkdir()
    elif content == 'bomb':
        path.write_bytes(300 * bz2.compress(bytes(10**6)))
    else:
        path.write_bytes(content)
    lm = LM(lambda idx: None, 256, 8, lambda text: list(text.encode()), bytes, [], window=8)
    with pytest.raises(UserError, match=message) as e:
        evaluate.TASKS[task](lm, EvalConfig(checkpoint='x'))
    assert '\n' not in str(e.value)


def test_a_download_is_kept(data, tmp_path, monkeypatch):
    import io
    import zipfile

    archive = io.BytesIO()
    with zipfile.ZipFile(archive, 'w') as z:
        z.writestr('wikitext-2-raw/wiki.test.raw', WIKI)
    monkeypatch.setattr(evaluate, 'ROOT', tmp_path)
    monkeypatch.delenv('NANOMORPH_DATA')
    monkeypatch.setattr(evaluate, 'retrieve', lambda url, known_hash: archive.getvalue())
    assert evaluate.read_source('wikitext2')[0] == WIKI.encode()
    monkeypatch.setattr(evaluate, 'retrieve', None)  # not needed again
    assert evaluate.read_source('wikitext2')[0] == WIKI.encode()


def test_a_character_model_names_what_it_does_not_know(run_train, data, fails):
    out = run_train('--max_iters=1')
    fails(lambda: go(out, '--tasks=lambada'), 'lambada: this model does not know', 'ï')
    fails(lambda: go(out, '--tasks=val', '--window=33'), 'block_size is 32')
    fails(lambda: go(out, '--tasks=val', '--stride=33'), 'stride = 33')


def test_foreign_folders(hf, tmp_path, fails):
    import transformers
    from safetensors.torch import load_file, save_file

    (tmp_path / 'empty').mkdir()
    fails(lambda: go(tmp_path / 'empty'), 'neither best.pt or ckpt.pt nor a Hugging Face model')
    fails(lambda: go(tmp_path / 'nowhere'), 'no checkpoint at')
    (tmp_path / 'odd').mkdir()
    (tmp_path / 'odd/config.json').write_text('{"model_type": "abacus"}')
    fails(lambda: go(tmp_path / 'odd'), 'cannot be read from a Hugging Face folder')
    fails(lambda: go(hf[0], '--tasks=val'), '--dataset=')

    config = transformers.GPT2Config(n_layer=1, n_head=2, n_embd=8, vocab_size=300, n_positions=16)
    transformers.GPT2LMHeadModel(config).save_pretrained(tmp_path / 'part')
    weights = load_file(tmp_path / 'part/model.safetensors')
    weights.pop('transformer.h.0.mlp.c_fc.weight')
    save_file(weights, tmp_path / 'part/model.safetensors', metadata={'format': 'pt'})
    fails(lambda: go(tmp_path / 'part'), 'would be random', 'h.0.mlp.c_fc.weight')

    config = transformers.BertConfig(
        vocab_size=300, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8
    )
    transformers.BertLMHeadModel(config).save_pretrained(tmp_path / 'bert')
    fails(lambda: go(tmp_path / 'bert'), 'only causal models')


@pytest.mark.slow
def test_as_a_user_runs_it(run_train, script, tmp_path):
    r = script('evaluate.py', f'--checkpoint={run_train()}', '--limit=4', '--device=cpu', f'--out={tmp_path}/x/e.json')
    assert 'nats_per_token' in r.stdout and (tmp_path / 'x/e.json').exists()
    r = script('evaluate.py', '--checkpoint=nowhere', '--tasks=wikitext', check=False)
    assert r.returncode == 2 and "did you mean 'wikitext2'" in r.stderr and 'Traceback' not in r.stderr
    assert '--tasks' in script('evaluate.py', '--help').stdout and (ROOT / 'evaluate.py').exists()


def test_the_known_edition_of_a_file_is_told_from_another_one(data, monkeypatch, capsys):
    import hashlib

    content, facts = evaluate.read_source('wikitext2')
    assert 'is another edition' in capsys.readouterr().out and not facts['known_edition']
    digest = hashlib.sha256(content).hexdigest()
    monkeypatch.setitem(evaluate.SOURCES, 'wikitext2', evaluate.SOURCES['wikitext2'] | dict(sha256=digest))
    assert evaluate.read_source('wikitext2') == (content, facts | dict(known_edition=True))
    assert capsys.readouterr().out == ''


def test_an_ending_has_a_token_even_where_the_tokenizer_joins_it_to_the_context():
    """All of the text as one token: it is the target, and what is before it the context."""
    joined = lambda text: [len(text)] if text.endswith('end') else [1] * len(text)
    lm = evaluate.LM(None, 99, 8, joined, None, [], prefix=[7])
    assert evaluate.encode_pair(lm, 'abc', ' end') == ([7], [7])
    whole = lambda text: [1, 2] if text == 'ab' else [1, 9]  # as many tokens as the context alone
    assert evaluate.encode_pair(evaluate.LM(None, 99, 8, whole, None, []), 'ab', 'c') == ([1], [9])
