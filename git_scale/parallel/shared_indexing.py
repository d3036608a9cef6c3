"""The shards of a folder, opened by all ranks, which share the work where indexes are missing."""

from __future__ import annotations

import operator
from functools import reduce
from pathlib import Path

from git_scale.data.indexing import Indexed, make_indexes, unindexed
from git_scale.data.shards import ShardSet, find_shards, open_shards
from git_scale.parallel.collectives import first_rank_first, gather_objects, together
from git_scale.parallel.topology import Topology


def open_shards_together(topology: Topology, folder: str | Path) -> ShardSet:
    """The folder's shards, on every rank. Collective.

    Each rank makes the missing indexes of its share of the shards; none waits for another in one collective. On a
    node with a folder of its own the ranks make what is still missing there. Raises DataError, and Stopped, on all.
    """
    rank, ranks = topology.global_rank, topology.world_size
    # a share of all shards, not of the missing ones: which are missing changes while others make them
    made = together(lambda: make_indexes(unindexed(find_shards(folder)[rank::ranks])))
    indexed: Indexed = reduce(operator.or_, gather_objects(made))
    return first_rank_first(topology, lambda: open_shards(folder, indexed))
