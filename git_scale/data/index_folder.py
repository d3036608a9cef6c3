"""The indexes of a folder made whole: a digest of every member, for shards that somebody else has written."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from git_scale.data import folder_index, index
from git_scale.data.builders.parallel import map_in_order
from git_scale.data.indexing import IndexingResult, make_indexes
from git_scale.data.listing import ShardListing, list_shards
from git_scale.data.shard_report import copies, left_out_of
from git_scale.data.shard_survey import (
    ShardSurvey,
    SurveyPart,
    assembled,
    known_of,
    names_of,
    outdated,
    row_of,
)
from git_scale.data.shard_table import ShardTable
from git_scale.errors import DataError
from git_scale.progress import progress


def fill_folder(path: Path, workers: int) -> ShardSurvey:
    """Reads every byte of the shards that lack a digest, in `workers` processes; saves their indexes and one for all.

    What was done when it is stopped stays done: the next call goes on with the other shards. Raises Stopped, and one
    DataError that lists the shards that are damaged, after all others are done.
    """
    listing = list_shards(path)
    if not os.access(listing.path(0).parent, os.W_OK):
        raise DataError(f"{path}: cannot be written, so digests could not be kept")
    known = known_of(listing, says=True)
    waiting = _without_digests(listing, known)
    shards = [(listing.path(number), listing.names[number]) for number in waiting]
    made = map_in_order(_fill, shards, workers, batch_size=1)
    found = assembled(listing, known, list(progress(made, len(shards), "shard")))
    if found.unsaved:
        raise DataError(
            f"{path}: {len(found.unsaved)} indexes could not be written; make room or mend the rights"
        )
    if listing.is_folder:
        try:
            folder_index.save(path, found.table)
        except OSError as error:
            raise DataError(f"{path}: its index could not be written: {error.strerror}") from None
    return found


def describe_folder(found: ShardSurvey) -> Iterator[str]:
    """What each shard holds and is not used, then all together."""
    path, table = found.listing.root, found.table
    for number in np.unique(table.left_out["shard"]).tolist():
        row = table.rows[number]
        told = table.reasons_of(number).describe(int(row["samples"]), int(row["members"]))
        yield f"  {table.name(number)}: {row['samples']:,} samples; {told}"
    for names in copies(table):
        yield f"  the same samples lie in {' and '.join(names)}"
    if found.listing.unread:
        yield f"  {found.listing.unread}"
    size, left_out = int(table.rows["size"].sum()), left_out_of(found, compares_all=True)
    yield (
        f"{path}: {table.samples:,} samples in {len(table):,} shards, {size / 2**20:,.1f} MiB, with digests of all"
        f" members{f'; not used, or not as it may be meant: {left_out}' if left_out else ''}"
    )


def _without_digests(listing: ShardListing, known: ShardTable) -> list[int]:
    """The numbers of the shards of which the folder's index does not say that they have digests."""
    is_whole = np.append(known.rows["digests"] != 0, False)[known.places(names_of(listing))]
    is_whole[outdated(listing, known, range(len(is_whole)))] = False
    return np.flatnonzero(~is_whole).tolist()


def _fill(shard: tuple[Path, str]) -> SurveyPart:
    path, name = shard
    before = index.load(path)
    is_whole = before is not None and before.summary.digests
    indexed = IndexingResult() if is_whole else make_indexes([path], digests=True)
    return SurveyPart(row_of(path, name, indexed), indexed)
