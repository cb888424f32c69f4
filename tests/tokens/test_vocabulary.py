"""What ids mean travels with the checkpoint: what does not agree is refused, nothing of another run is replaced."""

import json
import re
import shutil
import subprocess
import sys
import types

import numpy as np
import pytest
import torch
from conftest import TINY, tiny_gpt

import checkpoint
import evaluate
import sample
import transfer
from configurator import ROOT, UserError, load, printable
from evaluate import EvalConfig
from sample import SampleConfig
from surgery import collapse, distill
from tokens import loader, recipes, tokenizer
from train import TrainConfig, train

LETTERS = list('\n !,.abcdefghijklmnopqrstuvwxyz')
GREEK = list('\n !,.αβγδεζηθικλμνξοπρσςτυφχψω')[:31] + ['Ω']


def characters(folder, itos=LETTERS, n=3000, seed=0):
    """A data set of characters in nanoGPT's layout, for --dataset=<absolute path>."""
    from tokens.download import write_dataset

    folder.mkdir(parents=True, exist_ok=True)
    ids = np.random.default_rng(seed).integers(len(itos), size=n)
    write_dataset(folder, ids[: n // 2], ids[n // 2 :], vocab_size=len(itos), tokenizer='char', itos=itos)
    return folder


@pytest.fixture
def run(tmp_path):
    """A run of one step: run(data set, ...) -> its folder."""

    def go(dataset, *flags, out='run'):
        small = [f for f in TINY if 'dataset' not in f and 'block_size' not in f]
        flags = ['--block_size=8', '--max_iters=1', '--n_layer=1', f'--dataset={dataset}', *flags]
        train(load(TrainConfig, [*small, f'--out_dir={tmp_path / out}', *flags]))
        return tmp_path / out

    return go


def old(path, **changes):
    """Take the vocabulary out of a checkpoint, as those before it had none."""
    ckpt = checkpoint.load(path)
    ckpt.pop('tokenizer')
    ckpt['config'] |= changes
    checkpoint.save(path, ckpt)


def test_a_checkpoint_says_what_its_ids_mean_whatever_lies_beside_it(run, tmp_path, capsys):
    out = run(characters(tmp_path / 'a'))
    ckpt = checkpoint.load(out / 'ckpt.pt')
    assert ckpt['tokenizer'] == dict(tokenizer='char', vocab_size=31, itos=LETTERS)
    (out / 'meta.json').write_text(json.dumps(dict(tokenizer='char', itos=GREEK)))
    shutil.rmtree(tmp_path / 'a')
    tok = tokenizer.load(out / 'ckpt.pt', ckpt)
    assert tok.decode(tok.encode('hello')) == b'hello' and tok.name == '31 characters'
    assert 'those in the checkpoint count' in capsys.readouterr().out
    (out / 'meta.json').write_text('{"tokenizer": "ch')
    assert tokenizer.load(out / 'ckpt.pt', ckpt).encode('hello') == tok.encode('hello')


def test_nanogpt_reads_a_checkpoint_with_a_vocabulary(tmp_path):
    """nanoGPT's sample.py takes model_args, model and config out of the dict and leaves the rest."""
    record = tokenizer.of_data('shakespeare_char')
    checkpoint.save(tmp_path / 'a.pt', checkpoint.pack(tiny_gpt(bias=True), {}, 1, 1.0, tokenizer=record))
    raw = torch.load(tmp_path / 'a.pt', weights_only=True)
    assert raw['tokenizer'] == record and set(raw['model']) == set(tiny_gpt(bias=True).state_dict())


def test_resuming_on_other_characters_is_refused_and_nothing_is_replaced(run, tmp_path, fails):
    data = characters(tmp_path / 'a')
    out = run(data)
    before = {p.name: p.read_bytes() for p in out.iterdir()}
    characters(data, GREEK)
    fails(lambda: run(data, '--init_from=resume', '--max_iters=2'), 'init_from', 'abcde', 'αβγ', 'prepare the data set')
    assert {p.name: p.read_bytes() for p in out.iterdir()} == before
    old(out / 'ckpt.pt')  # an older one goes by the files beside it
    fails(lambda: run(data, '--init_from=resume', '--max_iters=2'), 'abcde', 'αβγ')
    characters(data, LETTERS, seed=1)  # other text of the same characters is what one may want
    run(data, '--init_from=resume', '--max_iters=2')


def test_a_checkpoint_on_data_in_other_tokens_names_its_data_set(run, fails):
    out = run('shakespeare_char')
    fails(lambda: run('openwebtext', '--init_from=resume'), 'gpt2 tokens; use --dataset=shakespeare_char, its own')
    start = f'--init_from={out}/ckpt.pt'
    fails(lambda: run('openwebtext', start, out='new'), 'use --dataset=shakespeare_char', '--other_vocabulary=true')


def test_ids_without_a_vocabulary_are_said_to_be_taken_for_those_of_gpt2(run, tmp_path, capsys):
    data = characters(tmp_path / 'a')
    run(data)
    assert 'has no meta.json' not in capsys.readouterr().out
    (data / 'meta.json').unlink()
    out = run(data, out='new')
    assert "a has no meta.json: its ids are taken for those of GPT-2's vocabulary" in capsys.readouterr().out
    assert checkpoint.load(out / 'ckpt.pt')['model_args']['vocab_size'] == 50304


def test_weights_on_other_characters_only_if_asked_for(run, tmp_path, fails, capsys):
    out, other = run(characters(tmp_path / 'a')), characters(tmp_path / 'b', GREEK)
    start = f'--init_from={out}/ckpt.pt'
    fails(lambda: run(other, start, out='new'), 'abcde', '--other_vocabulary=true')
    grow = ['--init_from=transfer', f'--transfer_from={out}/ckpt.pt', '--transfer_method=clone', '--n_embd=64']
    fails(lambda: run(other, *grow, '--n_head=4', out='new'), 'transfer_from', 'abcde')
    fails(lambda: run(other, f'--distill_from={out}/ckpt.pt', out='new'), 'distill_from', 'abcde')
    new = run(other, start, '--other_vocabulary=true', out='new')
    assert 'the ids get the meanings of' in capsys.readouterr().out
    assert checkpoint.load(new / 'ckpt.pt')['tokenizer']['itos'] == GREEK
    fails(lambda: load(TrainConfig, ['--other_vocabulary=true']), "with another model's weights")


def test_a_vocabulary_that_goes_on_is_said_aloud():
    gpt2, padded = dict(tokenizer='gpt2', vocab_size=50257), dict(tokenizer='gpt2', vocab_size=50258)
    record = lambda itos: dict(tokenizer='char', vocab_size=len(itos), itos=itos)
    assert tokenizer.compare(padded, gpt2) == 'longer' and tokenizer.compare(gpt2, gpt2) == 'same'
    assert tokenizer.compare(record(LETTERS[:9]), record(LETTERS)) == 'shorter'
    assert (
        tokenizer.compare(record(LETTERS), record(LETTERS[::-1])) == 'other' == tokenizer.compare(gpt2, record(GREEK))
    )
    assert 'the ids that both have mean the same' in tokenizer.require_same(padded, gpt2, 'x', 'y', strict=False)
    with pytest.raises(UserError, match='x: its vocabulary is GPT-2.s 50,258 tokens.*; y'):
        tokenizer.require_same(padded, gpt2, 'x', 'y')
    assert 'nothing says what its tokens mean' in tokenizer.require_same({}, gpt2, 'x', 'y')


def test_a_bpe_lies_in_the_checkpoint_or_is_found_by_its_hash(tmp_path, monkeypatch):
    pytest.importorskip('tokenizers')
    recipes.train_bpe(tmp_path / 'tokenizer.json', ['to be or not to be, naïve'] * 3, 280)
    meta = dict(tokenizer='bpe', vocab_size=280)
    meta['vocab_size'] = json.loads((tmp_path / 'tokenizer.json').read_text())['model']['vocab'].__len__()
    whole = tokenizer.of_meta(meta, tmp_path)
    monkeypatch.setattr(tokenizer, 'WHOLE', 10)
    by_hash = tokenizer.of_meta(meta, tmp_path)
    assert 'json' in whole and 'json' not in by_hash and tokenizer.compare(whole, by_hash) == 'same'
    assert tokenizer.build(whole).decode(tokenizer.build(whole).encode('naïve')) == 'naïve'.encode()
    with pytest.raises(UserError, match='does not know the characters'):
        tokenizer.build(whole).encode('\udcff')  # what a shell gives for a byte that is no UTF-8
    with pytest.raises(UserError, match='too large to lie in the checkpoint'):
        tokenizer.build(by_hash, 'x.pt', [tmp_path / 'nowhere'])
    assert tokenizer.build(by_hash, 'x.pt', [tmp_path]).name == f'bpe of {meta["vocab_size"]} tokens'
    tokenizer.carry(by_hash, tmp_path / 'x.pt', tmp_path / 'new' / 'y.pt')
    assert (tmp_path / 'new' / 'tokenizer.json').read_bytes() == (tmp_path / 'tokenizer.json').read_bytes()
    (tmp_path / 'new' / 'tokenizer.json').write_text("another run's")
    with pytest.raises(UserError, match='tokenizer of another run'):
        tokenizer.carry(by_hash, tmp_path / 'x.pt', tmp_path / 'new' / 'y.pt')


@pytest.mark.parametrize(
    'record',
    [
        'char', [], dict(tokenizer='char'), dict(tokenizer='char', vocab_size=1, itos='x'), dict(tokenizer='words', vocab_size=3),
        dict(tokenizer='char', vocab_size=2, itos=['a', 'a']), dict(tokenizer='char', vocab_size=3, itos=['a', 'b']),
        dict(tokenizer='bpe', vocab_size=300), dict(tokenizer='bpe', vocab_size=300, sha256='0', json='{}'),
        dict(tokenizer='gpt2', vocab_size=-1), dict(tokenizer='gpt2', vocab_size='50257'), dict(tokenizer='gpt2', vocab_size=0),
        dict(tokenizer='gpt2', vocab_size=2**32 + 1), dict(tokenizer='gpt2', vocab_size=True), dict(tokenizer='gpt2'),
        dict(tokenizer='bpe', vocab_size=9, sha256=7), dict(tokenizer='huggingface', vocab_size=9, sha256='0', json=7),
    ],
)  # fmt: skip
def test_a_damaged_record_is_named(record, tmp_path):
    with pytest.raises(UserError, match='x.pt: its tokenizer is'):
        tokenizer.check(record, 'x.pt')


# -----------------------------------------------------------------------------
# finding one


def test_old_checkpoints_go_by_the_files_beside_them_then_by_their_data_set(tmp_path, run):
    out = run('shakespeare_char')
    old(out / 'ckpt.pt')
    itos = loader.read_meta('shakespeare_char')['itos']
    find = lambda: tokenizer.of_checkpoint(out / 'ckpt.pt', checkpoint.load(out / 'ckpt.pt'))
    assert find()['itos'] == itos
    (out / 'meta.json').unlink()
    assert find()['itos'] == itos  # the data set's
    nano = dict(vocab_size=2, itos={0: 'a', 1: 'b'}, stoi=dict(a=0, b=1))  # nanoGPT's meta.pkl
    (out / 'meta.json').write_text(json.dumps(nano))
    assert find()['itos'] == ['a', 'b']
    old_dataset = checkpoint.load(out / 'ckpt.pt') | dict(config=dict(dataset='not_here'))
    (out / 'meta.json').unlink()
    assert tokenizer.of_checkpoint(out / 'ckpt.pt', old_dataset) == {}
    with pytest.raises(
        UserError, match=r'are not GPT-2.s; put the meta.json .*meta\.pkl: python -c "import json, pickle'
    ):
        tokenizer.load(out / 'ckpt.pt', old_dataset)
    big = dict(model_args=dict(vocab_size=50304), config={})
    assert tokenizer.of_checkpoint(out / 'ckpt.pt', big) == tokenizer.GPT2


def test_the_command_for_nanogpts_pickle_works(tmp_path):
    import pickle

    pkl, out = tmp_path / 'meta.pkl', tmp_path / 'meta.json'
    pkl.write_bytes(pickle.dumps(dict(vocab_size=2, itos={0: '\n', 1: 'ß'}, stoi={'\n': 0, 'ß': 1})))
    code = re.search(r'python -c "(.*)"$', loader.from_pickle(pkl, out))[1]
    subprocess.run([sys.executable, '-c', code], check=True)
    assert loader.read_meta_file(out)['itos'] == ['\n', 'ß']


def hf_folder(folder, vocab_size):
    transformers = pytest.importorskip('transformers')
    transformers.utils.logging.disable_progress_bar()
    torch.manual_seed(0)
    config = transformers.GPT2Config(n_layer=1, n_head=2, n_embd=8, n_positions=32, vocab_size=vocab_size)
    transformers.GPT2LMHeadModel(config).save_pretrained(folder)
    return folder


def lm_of(folder):
    cfg = load(EvalConfig, [f'--checkpoint={folder}', '--device=cpu', '--window=8'])
    return evaluate.open_model(cfg), cfg


def test_a_folder_with_vocab_txt_is_sampled_with_its_own_words_and_nothing_before_them(tmp_path, capsys):
    folder = hf_folder(tmp_path / 'bert', 12)
    words = ['[PAD]', '[UNK]', '[CLS]', '[SEP]', '[MASK]', 'to', 'be', 'or', 'not', '##er', '!', 'ab']
    (folder / 'vocab.txt').write_text('\n'.join(words))
    (folder / 'tokenizer_config.json').write_text('{"tokenizer_class": "BertTokenizer"}')
    tok = tokenizer.of_folder(folder)
    assert tok.encode('to be') == [5, 6] and tok.vocabulary == 12
    sample.sample(load(SampleConfig, [f'--checkpoint={folder}', '--start=to be', '--max_new_tokens=3', '--device=cpu']))
    printed = capsys.readouterr().out
    assert printed.startswith('to be') and '[CLS]' not in printed[:5]


def test_a_folder_without_a_tokenizer_is_gpt2s_only_if_its_size_is(tmp_path):
    folder = hf_folder(tmp_path / 'odd', 300)
    with pytest.raises(UserError, match="300 tokens mean, and they are not GPT-2's; add the files"):
        tokenizer.load(folder, dict(model_args=dict(vocab_size=300), config={}))


def test_surgery_on_a_folder_does_not_look_into_its_parent(tmp_path):
    folder = hf_folder(tmp_path / 'parent' / 'hf', 65)
    (tmp_path / 'parent' / 'meta.json').write_text(json.dumps(dict(tokenizer='char', itos=GREEK)))
    assert tokenizer.of_checkpoint(folder, dict(model_args=dict(vocab_size=65), config={})) == {}


def test_characters_of_several_ids_are_printed_whole(tmp_path):
    text = 'naïve 日本語 🙂 é\n'
    tok = tokenizer.build(tokenizer.GPT2)
    ids = tok.encode(text)
    parts = list(tokenizer.stream(tok, tok.encode('So '), iter(ids)))
    assert ''.join(parts) == text and len(parts) > 5 and '\ufffd' not in ''.join(parts)
    cut = ''.join(tokenizer.stream(tok, [], iter(tok.encode('🙂')[:-1])))
    assert cut == '\ufffd'  # what is left of a character at the end is shown as such
    long = 'word 🙂' * 200
    assert ''.join(tokenizer.stream(tok, [], iter(tok.encode(long)))) == long


def test_a_sample_of_any_length_is_printed_once():
    for tok in (
        tokenizer.build(tokenizer.GPT2),
        tokenizer.build(dict(tokenizer='char', vocab_size=9, itos=[*'abcdefghi'])),
    ):
        ids = tok.encode('abcdefghi' * 4)
        for n in range(1, len(ids)):
            new = ''.join(tokenizer.stream(tok, ids[:n], iter(ids[n:])))
            assert new == tok.decode(ids[n:]).decode(), (tok.name, len(ids) - n)


def test_an_exported_character_model_refuses_what_it_cannot_write(tmp_path, run, fails):
    pytest.importorskip('transformers')
    data = characters(tmp_path / 'a')
    out = run(data, '--bias=true')
    (tmp_path / 'meta.json').write_text(json.dumps(dict(tokenizer='char', itos=GREEK)))  # in the parent of the export
    transfer.export_hf(collapse.TransferConfig(f'{out}/ckpt.pt', f'{tmp_path}/hf', str(data)))
    tok = tokenizer.of_folder(tmp_path / 'hf')
    assert tok.decode(tok.encode('to be,\n')) == b'to be,\n' and tok.record['vocab_size'] == 31
    with pytest.raises(UserError, match="does not know the characters .'Z'"):
        tok.encode('to Z')
    assert tokenizer.compare(tok.record, tokenizer.of_data(str(data))) == 'same'
    lm, _ = lm_of(tmp_path / 'hf')
    with pytest.raises(UserError, match='lambada: this model does not know the characters'):
        evaluate.check_characters(lm, 'lambada', 'An odd Question?')


def test_a_folder_whose_tokenizer_writes_ids_that_the_model_lacks_is_refused(tmp_path, monkeypatch):
    """Ids that no text needs are allowed: models of the hub have such tokenizers."""
    tok = tokenizer.Tokenizer(lambda text: list(text.encode()), bytes, 256, 'bytes', {}, first=[10])
    monkeypatch.setattr(tokenizer, 'of_folder', lambda folder: tok)
    (tmp_path / 'tokenizer.json').touch()
    of = lambda n: tokenizer.load(tmp_path, dict(model_args=dict(vocab_size=n), config={}))
    assert of(128).encode('to be') == list(b'to be') and of(128).encode('') == []
    with pytest.raises(UserError, match='the model has 128 tokens, and its tokenizer writes token 195'):
        of(128).encode('caf\u00e9')
    with pytest.raises(UserError, match='writes token 10'):
        of(10)


def test_many_unknown_characters_are_counted():
    tok = tokenizer.build(dict(tokenizer='char', vocab_size=len(LETTERS), itos=LETTERS))
    with pytest.raises(UserError, match=' and 108 more; it knows ') as e:
        tok.encode(''.join(map(chr, range(0x4E00, 0x4E80))))
    assert len(str(e.value)) < 300


def test_the_share_of_unknown_tokens_is_reported_and_a_text_of_them_is_refused(capsys):
    lm = evaluate.LM(None, 9, 8, list, None, [], unknown=lambda text, ids: text.count('?'))
    assert evaluate.check_characters(lm, 'val', 'a' * 999 + '?') == dict(unknown_share=1 / 1000)
    assert 'NOTE: val: 1 of 1,000 tokens are unknown' in capsys.readouterr().out
    with pytest.raises(UserError, match='val: the tokenizer cannot write this text: 50.0%'):
        evaluate.check_characters(lm, 'val', 'a?')
    assert evaluate.check_characters(lm, 'val', 'aaa') == dict(unknown_share=0.0)


# -----------------------------------------------------------------------------
# names and strings out of files


@pytest.mark.parametrize('name', ['../out/downloaded', '/tmp/x', 'a/b', '.hidden', '..', 'a b', 'a\x1b[2J', 7])
def test_a_data_set_named_by_a_file_is_a_plain_name(name, tmp_path, run, fails):
    with pytest.raises(UserError, match='no plain name under data/; if you trust it, add --dataset yourself'):
        loader.named_by(dict(config=dict(dataset=name)), 'x.pt')


@pytest.mark.parametrize('name', ['absolute', '../elsewhere', None, 7, ['x'], "x'; y"])
def test_no_vocabulary_is_looked_for_where_a_checkpoint_points_to(tmp_path, name):
    """Neither a meta.json nor a tokenizer.json, and the name is in no command that a user is told to run."""
    other, path = tmp_path / 'other', tmp_path / 'run' / 'ckpt.pt'
    other.mkdir(), path.parent.mkdir()
    path.touch()
    dataset = str(other) if name == 'absolute' else name
    text = json.dumps(dict(some='tokenizer'))
    (other / 'tokenizer.json').write_text(text)
    (other / 'meta.json').write_text(json.dumps(dict(tokenizer='char', vocab_size=2, itos=['a', 'b'])))
    ckpt = dict(model_args=dict(vocab_size=2), config=dict(dataset=dataset))
    assert tokenizer.of_checkpoint(path, ckpt) == {}
    with pytest.raises(UserError) as e:
        tokenizer.load(path, ckpt)
    assert "data/<dataset>/meta.pkl'" in str(e.value) and "'; y" not in str(e.value)
    assert '/path/to/nanoGPT/data' in str(e.value)  # no meta.pkl is here, so none is named that is not there
    by_hash = {k: v for k, v in tokenizer.of_json('bpe', text, 2).items() if k != 'json'}
    with pytest.raises(UserError, match='put the one with sha256'):
        tokenizer.load(path, ckpt | dict(tokenizer=by_hash))
    with pytest.raises(UserError, match='put the one with sha256'):
        tokenizer.carry(by_hash, path, tmp_path / 'new' / 'ckpt.pt', dataset)


def test_no_code_runs_that_a_checkpoint_points_to(tmp_path, run, fails, monkeypatch):
    """Neither of a place elsewhere nor of an unprepared data set here."""
    out = run(characters(tmp_path / 'a'))
    trap = tmp_path / 'ran'
    root = tmp_path / 'root'
    for folder in (tmp_path / 'downloaded', root / 'data' / 'good'):
        folder.mkdir(parents=True)
        (folder / 'prepare.py').write_text(f'open({str(trap)!r}, "w")')
    monkeypatch.setattr(loader, 'ROOT', root)
    ckpt = checkpoint.load(out / 'ckpt.pt')
    for dataset, message in (
        (str(tmp_path / 'downloaded'), 'no plain name'),
        ('good', 'run: python data/good/prepare.py'),
    ):
        ckpt['config']['dataset'] = dataset
        checkpoint.save(out / 'ckpt.pt', ckpt)
        fails(lambda: evaluate.evaluate(load(EvalConfig, [f'--checkpoint={out}/ckpt.pt', '--device=cpu'])), message)
        fails(lambda: transfer.collapse(collapse.TransferConfig(f'{out}/ckpt.pt', f'{tmp_path}/x.pt')), message)
    assert not trap.exists()
    fails(lambda: loader.prepare('good') or loader.open_tokens('good', 'val', 1, 9), 'is missing')
    assert trap.exists()  # the user named it


def test_transformers_never_asks_whether_to_run_a_folders_code(tmp_path, fails):
    folder = hf_folder(tmp_path / 'hf', 300)
    config = json.loads((folder / 'config.json').read_text())
    config |= dict(model_type='mine', auto_map=dict(AutoConfig='code.C', AutoModelForCausalLM='code.M'))
    (folder / 'config.json').write_text(json.dumps(config))
    (folder / 'code.py').write_text(f'open({str(tmp_path / "ran")!r}, "w")')
    with pytest.raises(UserError, match='which is never run'):
        evaluate.evaluate(load(EvalConfig, [f'--checkpoint={folder}', '--device=cpu']))
    assert not (tmp_path / 'ran').exists()
    calls = [
        call
        for path in ('surgery/language_model.py', 'surgery/huggingface.py', 'tokens/tokenizer.py')
        for call in re.findall(r'\.from_pretrained\((?:[^()]|\(\))*\)', (ROOT / path).read_text())
    ]
    assert len(calls) >= 3 and all('trust_remote_code=False' in c for c in calls), calls


def test_control_characters_of_a_file_do_not_reach_the_terminal(tmp_path, fails):
    assert printable('a\x1b[2J\x07\x9b\u202e\tb\nc') == 'a\\x1b[2J\\x07\\x9b\\u202e\tb\nc'
    (tmp_path / 'meta.json').write_text(json.dumps(dict(command='python \x1b[2J', edition='\x07', vocab_size=9)))
    assert loader.mend(str(tmp_path)) == 'python \\x1b[2J' and loader.read_meta(str(tmp_path))['edition'] == '\\x07'
    err = fails(lambda: tokenizer.check(dict(tokenizer='\x1b[2J', vocab_size=3), 'x\x1b'), 'which this version')
    assert '\x1b' not in err


def test_the_data_set_is_compared_before_it_is_prepared(run, tmp_path, fails, monkeypatch):
    out = run(characters(tmp_path / 'a'))
    monkeypatch.setattr(loader, 'prepare', lambda *_: pytest.fail('must not prepare'))
    for dataset in ('gutenberg', 'gutenberg_bpe'):
        if not (loader.data_dir(dataset) / 'meta.json').exists():
            fails(
                lambda d=dataset: run(d, f'--init_from={out}/ckpt.pt', out='new'),
                '31 characters',
                f'data set {dataset}',
            )


def test_every_recipe_declares_its_tokens():
    for path in (ROOT / 'data').glob('*/prepare.py'):
        if path.parent.name != 'text':
            assert re.search(r"^TOKENIZER = '(gpt2|char|bpe)'", path.read_text(), re.M), path


def test_the_teacher_of_other_tokens_is_refused_before_it_is_built(run, tmp_path):
    out = run(characters(tmp_path / 'a'))
    cfg = load(TrainConfig, [f'--distill_from={out}/ckpt.pt', f'--dataset={characters(tmp_path / "b", GREEK)}'])
    with pytest.raises(UserError, match='distill_from.*abcde.*αβγ'):
        distill.open_teacher(cfg, torch.device('cpu'))


def test_an_unknown_token_that_the_text_spells_is_known():
    bpe = types.SimpleNamespace(token_to_id=dict([('[UNK]', 7)]).get)
    unknown = tokenizer.counting(bpe, '[UNK]')
    assert unknown('a [UNK] b', [1, 7, 2]) == 0 and unknown('a é [UNK]', [1, 7, 7]) == 1
    assert tokenizer.counting(bpe, None)('a', [7]) == tokenizer.counting(bpe, '<unk>')('a', [7]) == 0


def test_a_vocabulary_larger_than_gpt2s_is_not_taken_for_it(tmp_path):
    of = lambda n: tokenizer.of_checkpoint(tmp_path / 'x.pt', dict(model_args=dict(vocab_size=n), config={}))
    assert of(50257) == of(50304) == tokenizer.GPT2 and of(50305) == of(50256) == {}
