"""The index of a folder says what those of its shards say, as long as it is true."""

from __future__ import annotations

import logging
import os
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from git_scale.data import folder_index, index, shard_survey
from git_scale.data.fingerprint import compare_fingerprints
from git_scale.data.index_folder import fill_folder
from git_scale.data.shard_survey import survey
from git_scale.data.shard_table import ShardTable, joined
from git_scale.data.store import SampleStore, open_store, prepare_store
from git_scale.errors import DataError


@pytest.fixture
def indexed(folder: Path, write_shard: Callable, image: Callable) -> Path:
    """The three tiny shards, one of which holds what is not used, below a folder with an index."""
    members = {"jpg": image(0), "txt": b"words", "cls": b"1"}
    write_shard(folder / "x.tar", [("a", members), ("b", {"txt": b"no image"})])
    (folder / "sub").mkdir()
    (folder / "tiny-000001.tar").rename(folder / "sub" / "tiny-000001.tar")
    fill_folder(folder, workers=1)
    return folder


def without(folder: Path) -> tuple[SampleStore, ShardTable]:
    """The same folder, opened without its index."""
    (folder / folder_index.FILE).unlink()
    return open_store(folder), survey(folder).table


def rebuild(shard: Path) -> None:
    """Another caption in a shard of the same size, after its index was made."""
    shard.write_bytes(shard.read_bytes().replace(b"shard 0 sample 3", b"shard 0 sample 9"))
    time = index.sidecar_of(shard).stat().st_mtime_ns + 10**6
    os.utime(shard, ns=(time, time))


def reported(caplog: pytest.LogCaptureFixture, folder: Path) -> list[str]:
    caplog.clear()
    with caplog.at_level(logging.INFO):
        open_store(folder)
    return [record.getMessage() for record in caplog.records]


def test_it_says_the_same_as_the_indexes_of_the_shards(
    indexed: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    said = reported(caplog, indexed)
    with monkeypatch.context() as patched:
        patched.setattr(shard_survey, "load", lambda path: pytest.fail(f"{path} was opened"))
        store, table = open_store(indexed), survey(indexed).table
    plain, plain_table = without(indexed)
    assert store.fingerprint == plain.fingerprint and "-" not in store.fingerprint
    assert store.counts.tolist() == plain.counts.tolist() == [7, 5, 4, 2]
    assert store.contents.tolist() == plain.contents.tolist()
    assert table == plain_table
    assert reported(caplog, indexed) == said and "unknown kind .cls: 1 of 36 members" in said[0]
    assert all(store.read(number) == plain.read(number) for number in range(16))


def test_a_start_keeps_it_where_it_is_worth_it(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    open_store(folder)
    assert not (folder / folder_index.FILE).exists()
    monkeypatch.setattr(folder_index, "WORTH", 3)
    open_store(folder)
    assert folder_index.load(folder) == survey(folder).table


@pytest.mark.parametrize("change", ["added", "removed", "rebuilt", "grown", "unindexed"])
def test_what_has_changed_is_noticed_at_the_start(indexed: Path, change: str) -> None:
    shard, before = indexed / "tiny-000000.tar", open_store(indexed)
    if change == "added":
        shutil.copy(shard, indexed / "sub" / "new.tar")
    elif change == "removed":
        shard.unlink()
    elif change == "rebuilt":
        rebuild(shard)
    elif change == "grown":
        shutil.copy(indexed / "sub" / "tiny-000001.tar", shard)
    else:
        index.sidecar_of(shard).unlink()
    after = open_store(indexed)
    is_same = compare_fingerprints(before.fingerprint, after.fingerprint).difference == ""
    assert is_same == (change == "unindexed")
    assert folder_index.load(indexed) == survey(indexed).table  # it was brought up to date
    assert after.fingerprint == without(indexed)[0].fingerprint
    for number in range(len(after)):
        if "x.tar" not in after.key(number):
            assert after.read(number).text.captions


def test_what_changes_after_the_start_is_noticed_at_the_first_read(indexed: Path) -> None:
    store = open_store(indexed)
    shard = indexed / "tiny-000000.tar"
    rebuild(shard)
    with pytest.raises(DataError, match=r"tiny-000000\.tar: it or its index changed during the run"):
        store.read(7)
    open_store(indexed)  # another start makes the index anew
    with pytest.raises(DataError, match=r"tiny-000000\.tar: it or its index changed during the run"):
        store.read(7)
    assert store.read(0).key == "sub/tiny-000001.tar:1-0"


def broken(path: Path, how: str) -> None:
    arrays = dict(np.load(path))
    data = path.read_bytes()
    if how == "cut":
        path.write_bytes(data[: len(data) // 2])
    elif how == "other":
        path.write_bytes(b"not ours")
    elif how == "flipped":
        path.write_bytes(data.replace(b"tiny-000002", b"tiny-000009", 1))
    elif how == "compressed":
        np.savez_compressed(path, **arrays)
    elif how == "of another version":
        np.savez(path, **{**arrays, "version": 1})
    elif how == "without a column":
        with zipfile.ZipFile(path) as archive, zipfile.ZipFile(path.with_name("part"), "w") as kept:
            for name in archive.namelist()[:-1]:
                kept.writestr(name, archive.read(name))
        path.with_name("part").rename(path)
    elif how == "pickled":
        np.savez(path, **{**arrays, "names": arrays["names"].astype(object)})
    elif how == "boastful":
        arrays["rows"]["samples"][0] = 10**12
        np.savez(path, **arrays)
    else:
        arrays["left_out"]["shard"] = 99
        np.savez(path, **arrays)


@pytest.mark.parametrize(
    "how",
    [
        "cut",
        "other",
        "flipped",
        "compressed",
        "of another version",
        "without a column",
        "pickled",
        "forged",
        "boastful",
    ],
)
def test_anything_else_in_its_place_is_said_once_and_replaced(
    indexed: Path, how: str, caplog: pytest.LogCaptureFixture
) -> None:
    before, file = open_store(indexed).fingerprint, indexed / folder_index.FILE
    broken(file, how)
    assert any("so it is made anew" in line for line in reported(caplog, indexed))
    assert not any("so it is made anew" in line for line in reported(caplog, indexed))
    assert folder_index.load(indexed) == survey(indexed).table
    assert open_store(indexed).fingerprint == before


def test_a_folder_that_cannot_be_written_is_read_all_the_same(
    indexed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copy(indexed / "x.tar", indexed / "y.tar")

    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(folder_index, "save", refuse)
    assert len(open_store(indexed)) == 20
    with pytest.raises(DataError, match="its index could not be written: Permission denied"):
        fill_folder(indexed, workers=1)


def test_parts_of_several_processes_make_one_table(indexed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = survey(indexed).table
    (indexed / folder_index.FILE).unlink()
    parts = [prepare_store(indexed, part, 3) for part in range(3)]
    assert [len(part.found) for part in parts] == [2, 1, 1]
    monkeypatch.setattr(shard_survey, "row_of", lambda *_: pytest.fail("looked at again"))
    assert survey(indexed, parts).table == whole
    fill = joined([])
    assert len(fill) == 0 and fill == joined([joined([])])
