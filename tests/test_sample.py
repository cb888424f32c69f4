"""Samples are drawn from the distribution that the flags describe."""

from types import SimpleNamespace

import pytest
import torch
from conftest import tiny_gpt, tokens

import sample
from configurator import UserError
from model import pick


@pytest.mark.parametrize('temperature', [0.5, 1.0, 2.0])
def test_temperature_divides_the_logits(temperature):
    logits = torch.tensor([0.0, 1.0, -0.5, 0.3])
    gen = torch.Generator().manual_seed(0)
    drawn = pick(logits.expand(4000, -1), temperature, None, None, gen).flatten().bincount(minlength=4) / 4000
    assert (drawn - (logits / temperature).softmax(0)).abs().max() < 0.03  # four standard errors


def test_top_k_of_one_is_greedy_and_padded_ids_are_never_drawn():
    model = tiny_gpt().eval()
    draw = lambda **keys: torch.cat(list(model.generate(tokens(T=3), 10, **keys)), 1)
    assert torch.equal(draw(top_k=1), draw(temperature=0))
    with torch.no_grad():
        model.transformer.wte.weight[:60] = 0  # ids from 60 on are likelier, or less likely, than all others
    assert (draw(temperature=3.0) >= 60).any()
    assert (draw(temperature=3.0, vocabulary=60) < 60).all() and (draw(temperature=0, vocabulary=60) < 60).all()


def test_a_temperature_that_float32_cannot_divide_by_is_greedy():
    logits = torch.randn(5, 50, generator=torch.Generator().manual_seed(0)) * 10
    for temperature in (1e-29, 1e-31, 1e-45):
        assert torch.equal(pick(logits, temperature, 20, 0.9, None), logits.argmax(-1, keepdim=True))


@pytest.mark.parametrize('length', [3, 40])
def test_a_model_that_computes_nan_writes_no_text(length):
    model = tiny_gpt().eval()
    with torch.no_grad():
        model.transformer.ln_f.weight[0] = float('nan')
    for temperature in (0, 1.0):
        with pytest.raises(UserError, match='computes NaN'):
            next(model.generate(tokens(T=length), 10, temperature))


@pytest.mark.parametrize('how', [dict(temperature=0), dict(), dict(top_k=5), dict(top_p=0.9, vocabulary=50)])
@pytest.mark.parametrize('where', [9, 15])
def test_a_nan_that_comes_later_ends_the_text(how, where):
    """Of a position embedding, read after that many tokens: of one in the middle, and of the last one."""
    model, drawn = tiny_gpt().eval(), []
    with torch.no_grad():
        model.transformer.wpe.weight[where, 3] = float('nan')
    with pytest.raises(UserError, match='computes NaN'):
        for new in model.generate(tokens(B=2, T=1), 60, **how):
            drawn.append(new)
    assert len(drawn) == where


@pytest.mark.parametrize('how', [dict(temperature=0), dict(top_k=60), dict(top_p=0.9)])
def test_a_nan_among_the_logits_is_found_whichever_token_is_drawn(how):
    logits, health = torch.randn(3, 60), torch.zeros(3, 1)
    logits[1, 40] = float('nan')
    args = dict(temperature=1.0, top_k=None, top_p=None) | how
    for _ in range(2):
        pick(logits, **args, generator=None, health=health)
    assert health.isnan().flatten().tolist() == [False, True, False]


def test_the_command_draws_sample_i_with_seed_plus_i_below_the_vocabulary(monkeypatch, capsys):
    drawn = []

    class Model:
        config = SimpleNamespace(vocab_size=64)

        def generate(self, x, n, temperature, top_k, top_p, generator, vocabulary):
            drawn.append((x.tolist(), n, temperature, top_k, top_p, generator.initial_seed(), vocabulary))
            return iter([torch.arange(2, 2 + len(x))[:, None]])

    class Characters:
        vocabulary = 5
        encode = staticmethod(lambda text: ['abcde'.index(c) for c in text])
        decode = staticmethod(lambda ids: ''.join('abcde'[i] for i in ids).encode())

    monkeypatch.setattr(sample, 'from_checkpoint', lambda *_: (Model(), Characters()))
    keys = dict(start='ab', num_samples=3, max_new_tokens=9, temperature=0.7, top_k=4, top_p=0.9, seed=7, device='cpu')
    sample.sample(sample.SampleConfig(checkpoint='x.pt', **keys))
    assert drawn == [([[0, 1]], 9, 0.7, 4, 0.9, seed, 5) for seed in (7, 8, 9)]
    assert capsys.readouterr().out == 'abc\n---------------\n' * 3
    drawn.clear()
    sample.sample(sample.SampleConfig(checkpoint='x.pt', batch_size=2, **keys))
    assert [(d[0], d[5]) for d in drawn] == [([[0, 1]] * 2, 7), ([[0, 1]], 9)]
    assert capsys.readouterr().out == ''.join(f'ab{c}\n---------------\n' for c in 'cdc')
    drawn.clear()
    sample.sample(sample.SampleConfig(checkpoint='x.pt', **keys | dict(seed=2**64 - 1, num_samples=2)))
    assert [d[5] for d in drawn] == [2**64 - 1, 0]  # the seeds go round


def test_samples_side_by_side_of_no_new_tokens_are_their_prompts(monkeypatch, capsys):
    model = SimpleNamespace(config=SimpleNamespace(vocab_size=64), generate=lambda *_: iter(()))
    tok = SimpleNamespace(vocabulary=5, encode=lambda text: [0], decode=lambda ids: b'')
    monkeypatch.setattr(sample, 'from_checkpoint', lambda *_: (model, tok))
    for batch in (1, 2):
        keys = dict(start='a', num_samples=3, max_new_tokens=0, batch_size=batch, device='cpu')
        sample.sample(sample.SampleConfig(checkpoint='x.pt', **keys))
        assert capsys.readouterr().out == 'a\n---------------\n' * 3


def test_weights_of_linear_layers_are_rounded_once_and_embeddings_are_not():
    """What autocast does at every product: the logits are the same to the bit."""
    model, x = tiny_gpt(bias=True).eval(), tokens(T=6)
    with torch.autocast('cpu', torch.bfloat16):
        before = model(x, last_only=False)[0]
        sample.round_weights(model, torch.bfloat16)
        assert torch.equal(model(x, last_only=False)[0], before)
    assert model.lm_head.weight.dtype == torch.bfloat16 and model.transformer.wte.weight.dtype == torch.float32
    assert model.transformer.h[0].mlp.c_fc.bias.dtype == torch.bfloat16


@pytest.fixture
def opened(monkeypatch):
    """What a sample is made from: [path of the checkpoint, prompt]; the model and its tokenizer are fakes."""
    found = []

    class Model:
        config = SimpleNamespace(vocab_size=9)
        generate = staticmethod(lambda *_: iter(()))

    class Text:
        vocabulary = 9
        encode = staticmethod(lambda text: found.append(text) or [1])
        decode = staticmethod(lambda ids: b'')

    monkeypatch.setattr(sample, 'from_checkpoint', lambda path, device: found.append(path) or (Model(), Text()))
    return found


def test_the_best_checkpoint_of_a_run_is_sampled_and_the_latest_where_there_is_none(opened, tmp_path):
    for name in ('ckpt.pt', 'best.pt'):
        (tmp_path / name).touch()
        sample.sample(sample.SampleConfig(out_dir=str(tmp_path), device='cpu'))
        assert opened[-2] == tmp_path / name


def test_a_byte_order_mark_of_a_prompt_file_is_no_part_of_the_prompt(opened, tmp_path):
    (tmp_path / 'prompt.txt').write_bytes('é and so on\n'.encode('utf-8-sig'))
    sample.sample(sample.SampleConfig(checkpoint='x.pt', start=f'FILE:{tmp_path}/prompt.txt', device='cpu'))
    assert opened[1] == 'é and so on\n'
