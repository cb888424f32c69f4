"""MFU is right or absent."""

import pytest

from hardware import peak_of


@pytest.mark.parametrize(
    'name, tflops',
    [
        ('NVIDIA H100 80GB HBM3', 989),
        ('NVIDIA H100 PCIe', 756),
        ('NVIDIA H100 NVL', 835),
        ('NVIDIA H200', 989),
        ('NVIDIA GH200 480GB', 989),
        ('NVIDIA A100-SXM4-80GB', 312),
        ('NVIDIA A100 80GB PCIe', 312),
        ('Tesla V100-SXM2-16GB', 125),
        ('Tesla T4', 65),
        ('NVIDIA L4', 121),
        ('NVIDIA L40S', 362),
        ('NVIDIA GeForce RTX 4090', 165.2),
        ('NVIDIA GeForce RTX 4090 Laptop GPU', None),
        ('NVIDIA GeForce RTX 3090 Ti', None),
        ('NVIDIA A100-SXM4-80GB MIG 1g.10gb', None),
        ('NVIDIA A10G', None),
        ('NVIDIA H1000', None),
    ],
)
def test_peaks_by_device_name(name, tflops):
    assert peak_of(name) == (None if tflops is None else pytest.approx(tflops * 1e12))
