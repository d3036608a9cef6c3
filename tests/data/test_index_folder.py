"""Digests for shards that somebody else has written: by several processes, and only what is missing."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from git_scale.data import index, index_folder
from git_scale.data.index_folder import describe_folder, fill_folder
from git_scale.data.indexing import IndexingResult
from git_scale.data.listing import list_shards
from git_scale.data.store import open_store
from git_scale.errors import DataError
from git_scale.stop import Stopped


def whole(folder: Path) -> list[bool]:
    """Whether each shard has all digests."""
    found = [index.load(path) for path in list_shards(folder).paths]
    return [bool(item and item.summary.digests) for item in found]


@pytest.mark.parametrize("workers", [1, 2])
def test_every_shard_gets_its_digests(folder: Path, workers: int) -> None:
    before = open_store(folder)  # indexes by headers alone
    assert whole(folder) == [False] * 3
    found = fill_folder(folder, workers)
    assert whole(folder) == [True] * 3
    assert found.table.rows["samples"].tolist() == before.counts.tolist()
    lines = list(describe_folder(found))
    assert (
        len(lines) == 1 and "16 samples in 3 shards" in lines[0] and "with digests of all members" in lines[0]
    )


def test_what_was_done_before_a_stop_stays_done(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make, done = index_folder.make_indexes, list[str]()

    def stopped_at_the_third(paths: list[Path], digests: bool) -> IndexingResult:
        if len(done) == 2:
            raise Stopped
        done.append(paths[0].name)
        return make(paths, digests)

    monkeypatch.setattr(index_folder, "make_indexes", stopped_at_the_third)
    with pytest.raises(Stopped):
        fill_folder(folder, workers=1)
    assert whole(folder) == [True, True, False]
    done.clear()
    fill_folder(folder, workers=1)
    assert done == ["tiny-000002.tar"]


def test_each_shard_is_told_of_by_itself(folder: Path, write_shard: Callable, image: Callable) -> None:
    write_shard(
        folder / "x.tar", [("a", {"jpg": image(0), "txt": b"words", "cls": b"1"}), ("b", {"txt": b"t"})]
    )
    shutil.copy(folder / "tiny-000002.tar", folder / "y.tar")
    lines = list(describe_folder(fill_folder(folder, workers=1)))
    assert lines[:2] == [
        "  x.tar: 2 samples; unknown kind .cls: 1 of 4 members (25 %), e.g. 'a.cls';"
        " no image of the text's name: 1 of 2 samples (50 %), e.g. 'b'",
        "  the same samples lie in tiny-000002.tar and y.tar",
    ]
    assert "name of a sample of another shard: 4 of 22 samples (18 %), e.g. 'y.tar:2-0'" in lines[2]


def test_what_the_folder_index_says_is_not_looked_up_again(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = fill_folder(folder, workers=1)
    monkeypatch.setattr(index_folder, "_fill", lambda shard: pytest.fail("it was opened"))
    assert fill_folder(folder, workers=1).table == first.table


def test_damaged_shards_are_named_when_the_others_are_done(folder: Path) -> None:
    os.truncate(folder / "tiny-000001.tar", 5000)
    with pytest.raises(DataError, match=r"1 problem in 3 shards:\n  - .*tiny-000001\.tar: cut short"):
        fill_folder(folder, workers=1)
    assert whole(folder) == [True, False, True]


def test_a_folder_that_cannot_be_written_is_refused_before_the_work(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "access", lambda *_: False)
    monkeypatch.setattr(index_folder, "_fill", lambda path: pytest.fail("it was read"))
    with pytest.raises(DataError, match="cannot be written, so digests could not be kept"):
        fill_folder(folder, workers=1)
