"""bench.py profile: kernels are sorted by their names, overlaps counted once; the roofline is what its formulas say."""

import json
from types import SimpleNamespace

import pytest
import torch
from conftest import TINY
from torch.autograd import DeviceType

import bench
from configurator import load
from lab import bench_profile
from train import TrainConfig, Trainer


@pytest.mark.parametrize(
    'kind, names',
    [
        ('matmul', ('nvjet_hsh_128x256_64x4_1x2_h_bz_coopA_NNT', 'sm90_xmma_gemm_bf16bf16_bf16f32', 'product', 'aten::bmm')),
        ('attention', ('cudnn_generated_fort_native_sdpa_sm90_flash_bprop_wgmma', 'void pytorch_flash::flash_fwd_kernel<T>')),
        ('drawing', ('void at::native::mbtopk::radixFindKthValues<float>', 'aten::exponential_')),
        ('attention', ('part', 'join', 'nanomorph::attend')),
        ('norms', ('triton_per_fused__to_copy_add_native_layer_norm_2', 'triton_red_fused_add_native_layer_norm_backward_7')),
        ('cross-entropy', ('triton_red_fused__log_softmax__to_copy_nll_loss_forward_5',)),
        ('elementwise', ('triton_poi_fused__to_copy_gelu_1', 'triton_poi_fused_embedding_dense_backward_4', 'slope')),
        ('copies', ('triton_poi_fused__to_copy_transpose_view_3', 'Memcpy DtoD (Device -> Device)', 'aten::copy_')),
        ('optimizer', ('void at::native::multi_tensor_apply_kernel<FusedAdamMathFunctor>', 'aten::_fused_adamw_')),
        ('communication', ('ncclDevKernel_AllReduce_Sum_f32_RING_LL',)),
    ],
)  # fmt: skip
def test_kernels_are_sorted_by_their_names(kind, names):
    assert [bench_profile.kind(name) for name in names] == [kind] * len(names)


def test_the_time_of_kernels_is_summed_by_kind_and_overlaps_are_busy_once():
    span = lambda a, b: SimpleNamespace(start=a, end=b, elapsed_us=lambda: b - a)
    on = lambda name, a, b, **v: SimpleNamespace(name=name, time_range=span(a, b), device_type=DeviceType.CUDA, **v)
    events = [
        on('nvjet_x', 0, 10), on('nvjet_x', 5, 20), on('Memset (Device)', 30, 34), on('nvjet_x', 32, 33),
        on('ProfilerStep#1', 0, 90, is_user_annotation=True),
        SimpleNamespace(name='aten::mm', time_range=span(0, 50), device_type=DeviceType.CPU),
    ]  # fmt: skip
    times, numbers, busy = bench_profile.measured(events, torch.device('cuda'))
    assert {k: v for k, v in times.items() if v} == pytest.approx(dict(matmul=26e-6, copies=4e-6))
    assert (numbers['matmul'], numbers['copies']) == (3, 1) and busy == pytest.approx(24e-6)


def test_the_roofline_is_flops_at_the_matmul_rate_or_bytes_at_the_copy_rate():
    t = Trainer(load(TrainConfig, [*TINY, '--gradient_accumulation_steps=2', '--vocab_size=96']), torch.device('cpu'))
    tokens, n, V, hidden = 2 * 4 * 32, 32, t.cfg.vocab_size, 128
    linears = 2 * (3 * n * n + n * n + 2 * n * hidden) + n * V
    found = bench_profile.floor(t, 1e6, 1e30)  # bytes cost nothing
    assert found['matmul'] == pytest.approx(6 * linears * tokens / 1e6)
    assert found['attention'] == pytest.approx(2 * 7 * 2 * n * 16 * tokens / 1e6)
    assert 6 * linears * tokens + 6 * 2 * 2 * 32 * n * tokens == pytest.approx(
        tokens * t.flops_per_token
    )  # full attention
    found = bench_profile.floor(t, 1e30, 1e6)  # FLOPs cost nothing
    assert found['cross-entropy'] == pytest.approx(8 * tokens * V / 1e6)  # float32
    assert found['norms'] == pytest.approx(5 * 36 * n * tokens / 1e6)
    assert found['optimizer'] == pytest.approx(32 * sum(p.numel() for p in t.model.parameters()) / 1e6)
    layers = 2 * (2 * n + 3 * n + 2 * n + 2 * (n + hidden)) - 2 * n + n + V  # features in and out of every product
    assert found['matmul'] == pytest.approx(12 * (layers * tokens + 2 * linears) / 1e6)


@pytest.mark.parametrize('layer', ['btt', 'btt_moe', 'monarch'])
def test_the_roofline_of_a_layer_is_that_of_the_cheaper_of_its_two_paths(layer):
    """Where bytes cost nothing, factors take less than W; where FLOPs cost nothing, W takes less than factors."""
    t = Trainer(load(TrainConfig, [*TINY, f'--linear={layer}', '--vocab_size=96']), torch.device('cpu'))
    mine = [m for m in t.model.modules() if hasattr(m, 'dense_macs')]
    head, tokens = t.cfg.n_embd * t.cfg.vocab_size, 4 * 32
    found = bench_profile.floor(t, 1.0, 1e30)['matmul']
    assert found == pytest.approx(6 * tokens * (sum(min(m.macs(), m.dense_macs()) for m in mine) + head))
    found = bench_profile.floor(t, 1e30, 1.0)['matmul']
    W = 12 * sum((m.d_in + m.d_out) * tokens + m.d_in * m.d_out for m in mine)
    assert found <= W + 12 * (tokens * (t.cfg.n_embd + t.cfg.vocab_size) + head)


def test_a_profile_has_a_trace_and_a_line_for_each_kind(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(bench_profile, 'rates', lambda device, dtype: (1e12, 1e11))
    files = [f'--trace={tmp_path}/trace.json', f'--out={tmp_path}/x.jsonl']
    monkeypatch.setattr('sys.argv', ['bench.py', 'profile', *TINY, '--steps=1', '--warmup=1', *files])
    bench.main()
    said, text = capsys.readouterr().out, (tmp_path / 'x.jsonl').read_text()
    row = json.loads(text)
    assert str(tmp_path) not in text  # a record names no machine
    assert json.loads((tmp_path / 'trace.json').read_text())['traceEvents']
    for k in ('matmul', 'attention', 'copies', 'elementwise'):
        assert row['kinds'][k]['ms'] > 0 and f'\n{k} ' in said
    assert row['floor_ms'] > 0 and row['launches'] > 50
    assert row['kinds']['matmul']['launches'] >= 3 * 9  # 8 layers and the head: forward and two gradients
