"""Which gradients a replayed step writes and adds to. What a CUDA graph does is played on a CPU: tests/test_gpu.py has the rest."""

import pytest
import torch
from conftest import TINY

import hardware
from configurator import load
from optimizers.optim import Optimizer
from train import TrainConfig, Trainer


class Played(hardware.Replay):
    """As a captured backward pass: it finds the gradients that were there in the capture, and leaves its own in the tensors of
    the capture, whatever p.grad is by now."""

    def __call__(self, x, y):
        weights = self.f.__self__.optimizer.weights
        self.calls += 1
        if self.calls <= self.eager:
            return self.f(x, y)
        now = [p.grad for p in weights]
        if self.graph is None:
            assert self.beside is None or self.beside.graph is not None
            self.graph, self.found = object(), now
            result = self.f(x, y)
            self.left = [p.grad for p in weights]
            return result
        for p, g in zip(weights, self.found):
            p.grad = g
        result = self.f(x, y)
        for p, g, was in zip(weights, self.left, now):
            g.copy_(p.grad)
            p.grad = was
        return result


class Update:
    """As a captured update: it reads the gradients of the capture."""

    def __init__(self, optimizer):
        self.optimizer = optimizer

    def replay(self):
        o = self.optimizer
        now = [p.grad for p in o.weights]
        for p, g in zip(o.weights, o.static_grads):
            p.grad = g
        o.move()
        o.factors.form()
        for p, g in zip(o.weights, now):
            p.grad = g


def capture(self):
    self.static_grads = [p.grad for p in self.weights]
    self.graphs = (Update(self),)


def losses(monkeypatch, flags, played, wrap_at=None):
    t = Trainer(load(TrainConfig, [*TINY, '--compile=false', *flags]), torch.device('cpu'))
    if played:
        monkeypatch.setattr(hardware, 'Replay', Played)
        monkeypatch.setattr(Optimizer, 'capture', capture)
        t.graphs = t.optimizer.captured = True
        real = t.optimizer.build

        def build():
            real()
            t.optimizer.capturable = True

        t.optimizer.build = build
        monkeypatch.setattr(t.optimizer, 'set_lr', lambda lr: set_lr(t.optimizer, lr))
        build()
        t.wrap()
    found = []
    for n in range(14):
        if n == wrap_at:
            t.wrap()
        t.step()
        found.append(t.take_train_loss())
    return found, t


def set_lr(optimizer, lr):
    for g in optimizer.adamw.param_groups:
        g['lr'] = lr * g['lr_scale']


@pytest.mark.parametrize('accumulation', [1, 2, 3])
@pytest.mark.parametrize(
    'flags',
    [
        (), ('--linear=expanded', '--expansion=64'), ('--on_nan=skip',),
        ('--linear=expanded', '--expansion_init=orthogonal', '--expansion_schedule=rotate', '--expansion_every=5'),
        ('--linear=monarch', '--guide_iters=6'),
    ],
)  # fmt: skip
def test_a_step_of_graphs_writes_gradients_first_and_then_adds_to_them(flags, accumulation, monkeypatch):
    flags = (*flags, f'--gradient_accumulation_steps={accumulation}')
    plain, _ = losses(monkeypatch, flags, played=False)
    played, t = losses(monkeypatch, flags, played=True)
    assert played == pytest.approx(plain, abs=1e-6)
    assert t.first_micro_step.graph is not None and (t.micro_step.graph is not None) == (accumulation > 1)
    assert t.optimizer.graphs and all(g is p.grad for g, p in zip(t.optimizer.static_grads, t.optimizer.weights))


@pytest.mark.parametrize('wrap_at', [2, 7])
def test_an_update_that_is_captured_finds_the_gradients_of_a_new_capture(wrap_at, monkeypatch):
    """They lie elsewhere: a hook that changes the model may leave the optimizer as it is."""
    plain, _ = losses(monkeypatch, (), played=False)
    assert losses(monkeypatch, (), True, wrap_at)[0] == pytest.approx(plain, abs=1e-6)
