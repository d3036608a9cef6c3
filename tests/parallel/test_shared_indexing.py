"""Missing indexes are made by all ranks together."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from git_scale.data import index, indexing
from git_scale.data.builders.writer import SampleToWrite, write_shards
from git_scale.errors import DataError
from git_scale.parallel import collectives
from git_scale.parallel.shared_indexing import open_store_together
from git_scale.parallel.topology import Topology
from git_scale.testing.distributed import run_distributed


@pytest.fixture
def unindexed_shards(tmp_path: Path) -> Path:
    """Five shards of two samples, without an index."""
    samples = (SampleToWrite(b"image %d" % n, "png", {"captions": [f"text {n}"]}) for n in range(10))
    write_shards(samples, tmp_path / "set", samples_per_shard=2)
    for sidecar in (tmp_path / "set").glob("*.npy"):
        sidecar.unlink()
    return tmp_path / "set"


def scanned_by(
    topology: Topology, device: torch.device, folder: Path, writable: bool
) -> tuple[list[str], Any]:
    """The shards that this rank has scanned, and what it reads of the last one or cannot read."""
    collectives.ROUND_S = 0.01
    scan, scanned = indexing.scan, []

    def noted(shard: Path, **more: Any) -> index.ShardIndex:
        scanned.append(shard.name)
        return scan(shard, **more)

    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    indexing.scan = noted
    if not writable:
        index.save = refuse
    try:
        return scanned, open_store_together(topology, folder).read(9).image
    except DataError as error:
        return scanned, str(error)


@pytest.mark.distributed
@pytest.mark.parametrize("writable", [True, False])
def test_missing_indexes_are_made_by_all_ranks_together(unindexed_shards: Path, writable: bool) -> None:
    (first, here), (second, there) = run_distributed(scanned_by, 2, unindexed_shards, writable)
    assert first == [f"set-{n:06d}.tar" for n in (0, 2, 4)]
    assert second == [f"set-{n:06d}.tar" for n in (1, 3)]
    assert here == there == b"image 9"
    assert len(list(unindexed_shards.glob("*.npy"))) == (5 if writable else 0)


@pytest.mark.distributed
def test_what_any_rank_finds_damaged_is_named_on_all_and_read_once(unindexed_shards: Path) -> None:
    os.truncate(unindexed_shards / "set-000001.tar", 700)
    shutil.copy(unindexed_shards / "set-000001.tar", unindexed_shards / "set-000002.tar")
    (first, here), (second, there) = run_distributed(scanned_by, 2, unindexed_shards, True)
    assert here == there and here.startswith(f"{unindexed_shards}: 2 problems in 5 shards:")
    assert sorted(first + second) == [f"set-{n:06d}.tar" for n in range(5)]


def opened_at(topology: Topology, device: torch.device, folder: Path, other: Path) -> str:
    """What came of opening: the last rank's folder is another one, as on a node with a copy of its own."""
    try:
        store = open_store_together(topology, other if topology.global_rank else folder)
    except DataError as error:
        return str(error)
    return store.fingerprint


@pytest.mark.distributed
def test_a_node_with_other_samples_is_refused_on_all_ranks(unindexed_shards: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(unindexed_shards, tmp_path / "copy")
    first, second = run_distributed(opened_at, 2, unindexed_shards, copy)
    assert first == second and first.startswith("v2:")
    other = shutil.copytree(unindexed_shards, tmp_path / "other")
    shutil.copy(other / "set-000001.tar", other / "set-000005.tar")
    first, second = run_distributed(opened_at, 2, unindexed_shards, other)
    assert (
        first == second
        and f"{other}: rank 1 finds other shards (names, sizes or numbers of samples) than" in first
    )
