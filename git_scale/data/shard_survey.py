"""What is known of the shards of a folder at a start: from the folder's index, else from their own, which are made.

    list_shards(path) -> examine(listing, numbers) by one or more processes -> survey(path, parts)

Of a shard that the folder's index knows, size and time are looked at: one request to the file system, where its own
index would take five. Ranks share them: alone, 100,000 take half a second on a disk and half a minute on a network.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Sequence
from functools import reduce
from operator import or_
from pathlib import Path
from typing import NamedTuple

import numpy as np

from git_scale.data import folder_index
from git_scale.data.index import ShardIndex, load
from git_scale.data.indexing import IndexingResult, make_indexes
from git_scale.data.listing import ShardListing, list_shards
from git_scale.data.shard_table import ShardTable, encoded, joined, table_of
from git_scale.errors import DataError
from git_scale.stop import check_stop

log = logging.getLogger(__name__)


class SurveyPart(NamedTuple):
    """Says what came of examining some shards."""

    found: ShardTable
    """Of those that the folder's index does not know, or not as they are."""
    indexed: IndexingResult


class ShardSurvey(NamedTuple):
    """Holds all that a start knows of the shards of `listing`, in their order."""

    listing: ShardListing
    table: ShardTable
    unsaved: dict[Path, ShardIndex]
    """Of shards in a folder that cannot be written."""


def survey(path: Path, parts: Sequence[SurveyPart] = ()) -> ShardSurvey:
    """All shards below a folder, or the one that `path` is; without parts, they are examined here.

    So are those that the parts know and that have no index here, as on a node with a folder of its own.

    Keeps the folder's own index. Raises one DataError that lists every problem.
    """
    listing = list_shards(path)
    known = known_of(listing, says=True)
    if not parts:
        return assembled(listing, known, [examine(listing, known, range(len(listing.names)))])
    indexed = reduce(or_, (part.indexed for part in parts))
    done = {str(path) for path in (*indexed.problems, *indexed.unsaved)}
    waiting = [number for number, name in enumerate(listing.names) if name not in listing.indexed]
    missing = [number for number in waiting if str(listing.path(number)) not in done]
    return assembled(listing, known, [*parts, examine(listing, known, missing)])


def assembled(listing: ShardListing, known: ShardTable, parts: Sequence[SurveyPart]) -> ShardSurvey:
    """The parts put together; see `survey`."""
    indexed = reduce(or_, (part.indexed for part in parts), IndexingResult())
    if found := indexed.problems:
        problems = [found[path] for path in listing.paths if path in found]
        noun = "problem" if len(problems) == 1 else "problems"
        raise DataError(
            "\n  - ".join(
                [f"{listing.root}: {len(problems)} {noun} in {len(listing.names)} shards:", *problems]
            )
        )
    everything = joined([known, *(part.found for part in parts)])
    places = everything.places(names_of(listing))
    if (gone := places < 0).any():
        raise DataError(f"{listing.path(int(gone.argmax()))}: it changed while it was looked at; start again")
    table = everything.taken(places)
    if listing.is_folder and not indexed.unsaved and table != known:
        folder_index.keep(listing.root, table)
    return ShardSurvey(listing, table, indexed.unsaved)


def known_of(listing: ShardListing, says: bool = False) -> ShardTable:
    """What the folder's own index says; nothing where there is none. `says`: logs where something else lies there."""
    try:
        return folder_index.load(listing.root) if listing.is_folder else joined([])
    except ValueError as error:
        if says:
            log.warning("%s: %s, so it is made anew", listing.root / folder_index.FILE, error)
        return joined([])


def examine(listing: ShardListing, known: ShardTable, numbers: Iterable[int]) -> SurveyPart:
    """Looks at the shards of these numbers, and makes and saves the indexes that they lack. Raises Stopped."""
    waiting = outdated(listing, known, numbers)
    found = {number: row_of(listing.path(number), listing.names[number]) for number in waiting}
    missing = [number for number in waiting if not len(found[number])]
    indexed = make_indexes([listing.path(number) for number in missing])
    found |= {number: row_of(listing.path(number), listing.names[number], indexed) for number in missing}
    return SurveyPart(joined(list(found.values())), indexed)


def outdated(listing: ShardListing, known: ShardTable, numbers: Iterable[int]) -> list[int]:
    """Those of the numbers whose shards `known` does not know as they are. Raises Stopped."""
    places, rows = known.places(names_of(listing)).tolist(), known.rows[["size", "time"]].tolist()
    found = []
    for number in numbers:
        check_stop()
        name, place = listing.names[number], places[number]
        if (
            place < 0
            or name not in listing.indexed
            or size_and_time(f"{listing.folder}/{name}") != rows[place]
        ):
            found.append(number)
    return found


def row_of(path: Path, name: str, indexed: IndexingResult | None = None) -> ShardTable:
    """What the index of one shard says, or that of `indexed` where it could not be saved; nothing without one."""
    check_stop()
    _, time = size_and_time(str(path))
    index = (indexed.unsaved.get(path) if indexed else None) or load(path)
    return table_of(name, index, time) if index else joined([])


def size_and_time(path: str) -> tuple[int, int]:
    try:
        found = os.stat(path)  # noqa: PTH116 - an object for each of 100,000 paths would take twice the time
    except OSError:
        return -1, -1
    return found.st_size, found.st_mtime_ns


def names_of(listing: ShardListing) -> np.ndarray:
    return np.array([encoded(name) for name in listing.names])
