"""The parts of a data set whose file names the part of each item: --split train, or --split train,restval."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from git_scale.data.builders.source_images import SourceRow
from git_scale.data.builders.writer import Skipped
from git_scale.errors import DataError

Item = TypeVar("Item")
HELD_OUT_EVERY = 10


def of_split(path: Path, unit: str, splits: Mapping[Item, object], wanted: str | None) -> list[Item]:
    """The items whose part is among `wanted`, in their order; all of them where nothing is wanted.

    of_split(path, "image", {"a": "train", "b": "val"}, "train")  ->  ["a"]
    `unit`: what an item is. Raises DataError for a part that no item has.
    """
    if wanted is None:
        return list(splits)
    names = [name.strip() for name in wanted.split(",")]
    known = {str(part) for part in splits.values()}
    if missing := [name for name in names if name not in known]:
        raise DataError(
            f"{path}: no {unit} of --split {missing[0]}; its splits are {', '.join(sorted(known)) or 'none'}"
        )
    return [item for item, part in splits.items() if part in names]


def tenth_held_out(
    path: Path, rows: Sequence[SourceRow | Skipped], wanted: str | None
) -> list[SourceRow | Skipped]:
    """The rows of train or heldout, and all that was skipped, for a file that holds nothing out itself.

    Every tenth of the rows is heldout. All of them where nothing is wanted; raises DataError for another part.
    """
    files = [row.file for row in rows if isinstance(row, SourceRow)]
    parts = {
        file: "train" if place % HELD_OUT_EVERY else "heldout" for place, file in enumerate(files, start=1)
    }
    kept = set(of_split(path, "image", parts, wanted))
    return [row for row in rows if isinstance(row, Skipped) or row.file in kept]
