"""The indexes of a folder made whole: a digest of every member, for shards that somebody else has written."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path

from git_scale.data import index
from git_scale.data.builders.parallel import map_in_order
from git_scale.data.index import ShardFacts
from git_scale.data.indexing import Indexed, make_indexes
from git_scale.data.left_out import Reasons
from git_scale.data.shard_report import copies, left_out_of, unread_of
from git_scale.data.tar_shards import find_shards, read_facts
from git_scale.errors import DataError
from git_scale.progress import progress


def fill_folder(folder: Path, workers: int) -> dict[Path, ShardFacts]:
    """Reads every byte of all shards that lack a digest, over `workers` processes, and saves their indexes.

    What was done when it is stopped stays done: the next call goes on with the other shards. Raises Stopped, and one
    DataError that lists the shards that are damaged, after all others are done.
    """
    paths = find_shards(folder)
    if not os.access(paths[0].parent, os.W_OK):
        raise DataError(f"{folder}: cannot be written, so digests could not be kept")
    waiting = [path for path in paths if not _is_whole(path)]
    indexed = Indexed()
    made = map_in_order(_fill, waiting, workers, batch_size=1)
    for part in progress(made, len(waiting), "shard"):
        indexed = indexed | part
    if indexed.unsaved:
        raise DataError(
            f"{folder}: {len(indexed.unsaved)} indexes could not be written; make room or mend the rights"
        )
    facts, _ = read_facts(folder, indexed)
    return facts


def describe_folder(folder: Path, facts: Mapping[Path, ShardFacts]) -> Iterator[str]:
    """What each shard holds and is not used, then all together."""
    for path, shard in facts.items():
        if told := Reasons(shard.summary.left_out).describe(shard.samples, shard.summary.members):
            yield f"  {path.name}: {shard.samples:,} samples; {told}"
    for names in copies(facts):
        yield f"  the same samples lie in {' and '.join(names)}"
    for unread in unread_of(folder):
        yield f"  {unread}"
    samples = sum(shard.samples for shard in facts.values())
    size = sum(shard.size for shard in facts.values())
    left_out = left_out_of(facts, max_names=float("inf"))
    yield (
        f"{folder}: {samples:,} samples in {len(facts):,} shards, {size / 2**20:,.1f} MiB, with digests of all"
        f" members{f'; not used, or not as it may be meant: {left_out}' if left_out else ''}"
    )


def _is_whole(path: Path) -> bool:
    found = index.load(path)
    return found is not None and bool(found.summary.digests)


def _fill(path: Path) -> Indexed:
    return make_indexes([path], digests=True)
