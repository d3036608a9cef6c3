"""A source of samples, opened by all ranks, which share the work where indexes are missing."""

from __future__ import annotations

from pathlib import Path

from git_scale.data.fingerprint import compare_fingerprints
from git_scale.data.store import SampleStore, open_store, prepare_store
from git_scale.errors import DataError
from git_scale.parallel.collectives import first_rank_first, together
from git_scale.parallel.comm import WORLD
from git_scale.parallel.topology import Topology


def open_store_together(topology: Topology, path: str | Path) -> SampleStore:
    """The samples of `path`, on every rank. Collective.

    Each rank prepares its part, as by making the missing indexes of its share of the shards; none waits for another
    in one collective. On a node with a folder of its own the ranks make what is still missing there. Raises
    DataError, also where that holds other samples, and Stopped, on all.
    """
    prepared = together(lambda: prepare_store(path, topology.global_rank, topology.world_size))
    parts = WORLD.gather_objects(prepared)
    store = first_rank_first(topology, lambda: open_store(path, parts))
    first = WORLD.from_first(store.fingerprint)
    together(lambda: _refuse_others(topology, path, first, store.fingerprint))
    return store


def _refuse_others(topology: Topology, path: str | Path, first: str, here: str) -> None:
    """Ranks that see other samples at the same position would train on some twice and never on others."""
    if other := compare_fingerprints(first, here).difference:
        raise DataError(
            f"{path}: rank {topology.global_rank} finds {other} than the first rank: bring all nodes' copies in line"
        )
