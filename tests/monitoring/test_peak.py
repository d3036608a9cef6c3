"""Peak rates by device name, and the measured one where no name is known."""

from __future__ import annotations

import logging

import pytest
import torch
import yaml

from git_scale.monitoring.peak import TABLE, known_accelerator, measure_peak, peak_flops


@pytest.mark.parametrize(
    ("name", "bf16"),
    [
        ("NVIDIA A100-SXM4-80GB", 312e12),
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA H100 PCIe", 756e12),
        ("NVIDIA H200", 989e12),
        ("NVIDIA GH200 480GB", 989e12),
        ("NVIDIA B200", 2250e12),
        ("NVIDIA GB200", 2500e12),
        ("NVIDIA L40S", 362e12),
        ("NVIDIA L4", 121e12),
        ("NVIDIA A10", 125e12),
        ("Tesla V100-SXM2-32GB", 125e12),
        ("Tesla V100-PCIE-16GB", 112e12),
        ("AMD Instinct MI250X", 191.5e12),
        ("AMD Instinct MI300X", 1307e12),
    ],
)
def test_known_names(name: str, bf16: float) -> None:
    accelerator = known_accelerator(name)
    assert accelerator is not None
    assert accelerator.peak("bf16") == pytest.approx(bf16)


@pytest.mark.parametrize(
    "name", ["NVIDIA A10G", "NVIDIA H100 80GB HBM3 MIG 1g.10gb", "NVIDIA GeForce RTX 9999", "cpu"]
)
def test_other_names_are_unknown(name: str) -> None:
    assert known_accelerator(name) is None


def test_every_row_is_whole_and_plausible() -> None:
    for row in yaml.safe_load(TABLE.read_text(encoding="utf-8")):
        assert set(row) == {"name", "bf16", "fp32", "memory_gib", "intra_gbps", "inter_gbps", "source"}
        found = known_accelerator(row["name"])
        assert found is not None
        assert found.name == row["name"]
        assert found.peak("fp32") == pytest.approx(1e12 * row["fp32"])
        assert 0 < row["fp32"] < row["bf16"]
        assert 15 * 2**30 < found.memory < 300 * 2**30
        assert found.intra > found.inter > 1e9


def test_links_are_in_bytes_per_second() -> None:
    """NVLink 4 moves 900 GB/s both ways, an NDR adapter 400 Gbit/s."""
    h100 = known_accelerator("H100")
    assert h100 is not None
    assert h100.intra == pytest.approx(450e9)
    assert h100.inter == pytest.approx(50e9)


def test_cuda_names_come_from_the_table(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA A100-SXM4-40GB")
    assert peak_flops(torch.device("cuda", 7), "fp32") == pytest.approx(156e12)


def test_the_cpu_is_measured_once_and_the_log_says_so(caplog: pytest.LogCaptureFixture) -> None:
    peak_flops.cache_clear()
    with caplog.at_level(logging.INFO):
        first = peak_flops(torch.device("cpu"), "fp32")
        assert peak_flops(torch.device("cpu"), "fp32") == first
    assert [record.message.startswith("peak of cpu at fp32 is measured") for record in caplog.records] == [
        True
    ]
    second = measure_peak(torch.device("cpu"), torch.float32)
    assert 0 < second / 10 < first < 10 * second  # a busy machine


@pytest.mark.parametrize("flops", [1e8, 1e10, 1e12, 1e15])
def test_a_slow_device_is_not_measured_for_long(flops: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """A device that does `flops` in a second of its own clock; the first product of a size takes twice as long."""
    clock, seen = [0.0], set[int]()

    def multiply(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
        side = len(left)
        clock[0] += 2 * side**3 / flops * (1 if side in seen else 2) + 1e-6
        seen.add(side)
        return left

    monkeypatch.setattr("torch.mm", multiply)
    monkeypatch.setattr("time.perf_counter", lambda: clock[0])
    assert measure_peak(torch.device("cpu"), torch.float32) == pytest.approx(min(flops, 2e15), rel=0.5)
    assert clock[0] < 2
