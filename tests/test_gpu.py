"""What only a GPU can show. Skipped elsewhere."""

import pytest
import torch

import hardware
from configurator import load
from train import TrainConfig, Trainer

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a CUDA device')
FLAGS = [
    'config/shakespeare_char.py', '--dropout=0', '--warmup_iters=0', '--learning_rate=1e-4', '--min_lr=0',
    '--n_layer=2', '--batch_size=8',
]  # fmt: skip


def run(*flags, graph=True, steps=8):
    torch._dynamo.reset()
    t = Trainer(load(TrainConfig, [*FLAGS, *flags]), hardware.choose_device('auto'))
    torch.set_float32_matmul_precision('highest')
    if not graph:
        t.optimizer.capture = lambda: None
    out = []
    for _ in range(steps):
        t.step()
        out.append(t.take_train_loss())
    assert bool(t.optimizer.graphs) == graph
    return out, t


@pytest.mark.parametrize('dtype', ['float32', 'float16'])
@pytest.mark.parametrize(
    'flags',
    [(), ('--linear=expanded',), ('--linear=expanded', '--expansion_depth=4'), ('--gradient_accumulation_steps=3',)],
)
def test_the_captured_update_is_the_update(flags, dtype):
    a, ta = run(*flags, '--compile=false', f'--dtype={dtype}')
    b, tb = run(*flags, '--compile=false', f'--dtype={dtype}', graph=False)
    assert a == pytest.approx(b, abs=1e-4)
    assert ta.optimizer.grad_norm.item() == pytest.approx(tb.optimizer.grad_norm.item(), rel=1e-2)


@pytest.mark.parametrize('flags', [(), ('--linear=expanded', '--linear_path=factored', '--expansion_depth=3')])
def test_compiled_and_eager_agree(flags):
    a, _ = run(*flags, '--dtype=float32')
    b, _ = run(*flags, '--dtype=float32', '--compile=false')
    assert a == pytest.approx(b, abs=1e-3)


@pytest.mark.parametrize('compile', [True, False])
@pytest.mark.parametrize(
    'flags',
    [(), ('--linear=expanded', '--expansion_depth=3'), ('--gradient_accumulation_steps=3',), ('--dtype=float16',)],
)
def test_a_replayed_step_is_the_step(flags, compile):
    flags = ('--dtype=float32', f'--compile={compile}', *flags)
    a, ta = run(*flags, '--cuda_graph=true')
    b, tb = run(*flags)
    assert ta.micro_step.graph is not None
    assert a == pytest.approx(b, abs=1e-3 if 'float16' in str(flags) else 1e-4)
    assert abs(ta.evaluate('val') - tb.evaluate('val')) < 1e-3


def test_dropout_differs_between_replays():
    _, t = run('--cuda_graph=true', '--dropout=0.5', steps=5)
    x, y = t.data['train'].batch(0)
    losses = {t.micro_step(x, y).item() for _ in range(4)}
    assert len(losses) == 4


def test_mfu_has_a_peak_and_bf16_is_the_default():
    _, t = run(steps=3)
    assert t.dtype == torch.bfloat16
    name = torch.cuda.get_device_name()
    if 'H100' in name or 'H200' in name:
        assert 700e12 < hardware.peak_flops(t.device, t.dtype) < 1000e12
    assert hardware.peak_flops(t.device, torch.float32) is None
