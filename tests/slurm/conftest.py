from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from slurm_cluster import SlurmCluster, missing_programs


@pytest.fixture(scope="module")
def cluster() -> Iterator[SlurmCluster]:
    """Two nodes of a SLURM that ends with the module's tests."""
    yield from running()


@pytest.fixture(scope="module")
def full_size() -> Iterator[SlurmCluster]:
    """As many nodes as the largest of the shipped jobs asks for, with GPUs in name only."""
    yield from running(nodes=16, cpus=64, gpus=8)


def running(**size: int) -> Iterator[SlurmCluster]:
    if missing_programs():
        pytest.skip(f"SLURM is not installed: no {', '.join(missing_programs())}")
    with (
        tempfile.TemporaryDirectory(prefix="slurm-") as folder,
        SlurmCluster(Path(folder), **size) as cluster,
    ):
        yield cluster
    assert cluster.processes() == [], "a process was left behind"
