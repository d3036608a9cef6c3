"""What lies in the shards of a folder and is not used, or not as it may be meant: for a start and for a command."""

from __future__ import annotations

import logging
import posixpath
from collections import defaultdict
from pathlib import Path

import numpy as np

from git_scale.data.index import load
from git_scale.data.left_out import OTHER_SHARDS, LeftOutCounts
from git_scale.data.shard_survey import ShardSurvey
from git_scale.data.shard_table import ShardTable, decoded

log = logging.getLogger(__name__)

MAX_NAMES, MAX_SHARDS = (
    200_000,
    2_000,
)  # up to which a start compares names over shards: a few tenths of a second


def left_out_of(survey: ShardSurvey, compares_all: bool = False) -> str:
    """Reasons, counts and shares over all shards; empty for nothing.

    Names are compared over the shards where there are not too many for a start, or with `compares_all`.
    """
    table, found = survey.table, survey.table.reasons()
    is_small = table.samples <= MAX_NAMES and len(table) <= MAX_SHARDS
    if len(table) > 1 and (compares_all or is_small):
        _count_names_in_several(survey.listing.folder, table, found)
    return found.describe(table.samples, int(table.rows["members"].sum()))


def announce(survey: ShardSurvey) -> None:
    """Logs what is not used, which shards are the same, and what is not known of them."""
    if not log.isEnabledFor(logging.WARNING):
        return  # all ranks but one
    root, table = survey.listing.root, survey.table
    if left_out := left_out_of(survey):
        log.warning("%s: %d samples; not used, or not as it may be meant: %s", root, table.samples, left_out)
    if survey.listing.unread:
        log.warning("%s: %s", root, survey.listing.unread)
    for names in copies(table):
        log.warning("%s: the same samples lie in %s", root, " and ".join(names))
    if unknown := int((table.rows["digests"] == 0).sum()):
        log.info(
            "%s: the indexes of %d of %d shards have no digests, so damage inside an image may pass;"
            " tools/prepare_data.py index %s reads everything once and adds them",
            *(root, unknown, len(table), root),
        )


def copies(table: ShardTable) -> list[list[str]]:
    """Names of shards that hold the same, by group."""
    contents, places, counts = np.unique(table.rows["content"], return_inverse=True, return_counts=True)
    groups: dict[int, list[str]] = {}
    for number in np.flatnonzero((counts[places] > 1) & (contents[places] != 0)).tolist():
        groups.setdefault(int(places[number]), []).append(table.name(number))
    return list(groups.values())


def _count_names_in_several(folder: Path, table: ShardTable, found: LeftOutCounts) -> None:
    """In one folder; those of several are sets of their own, which count from 0 each."""
    seen = defaultdict[str, set[bytes]](set)
    for number in range(len(table)):
        name = table.name(number)
        index, beside = load(folder / name), seen[posixpath.dirname(name)]
        names = set(index.table["key"][:-1].tolist()) if index else set()
        if again := beside & names:
            found.add(OTHER_SHARDS, f"{name}:{decoded(min(again))}", len(again))
        beside |= names
