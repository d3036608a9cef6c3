"""Clusters by name, and the machine that the test runs on."""

from __future__ import annotations

import os

import pytest
import torch

from git_scale.errors import ConfigError
from git_scale.planning.cluster import accelerator_named, cluster_of, this_cluster


def test_a_cluster_of_known_devices() -> None:
    cluster = cluster_of(accelerator_named("NVIDIA A100-SXM4-80GB"), "fp32", world_size=24, per_node=8)
    assert (cluster.device, cluster.nodes, cluster.kind) == ("A100", 3, "cuda")
    assert cluster.peak == pytest.approx(156e12)
    assert cluster.usable == cluster.memory - 3 * 2**29
    assert cluster.usable - cluster.usable_with_margin == int(0.1 * cluster.memory)
    assert cluster_of(accelerator_named("A100"), "bf16", 4, per_node=8).nodes == 1


def test_an_unknown_device_is_answered_with_the_known_ones() -> None:
    with pytest.raises(ConfigError, match=r"--gpu H1: not in accelerators.yaml, which has .*H100"):
        accelerator_named("H1")


def test_this_machines_memory_is_shared_by_its_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    cpu = torch.device("cpu")
    one, two = (this_cluster(cpu, "fp32", ranks) for ranks in (1, 2))
    physical = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert 0 < one.memory <= physical
    assert two.memory == one.memory // 2
    assert one.kind == "cpu"
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert this_cluster(cpu, "fp32", 8).memory == two.memory
    assert this_cluster(cpu, "fp32", 8).nodes == 4
