"""Making indexes: alone or by several processes, heard by a stop at any member."""

from __future__ import annotations

import logging
import os
import threading
from pathlib import Path

import pytest
import xxhash

from git_scale.data import index, indexing
from git_scale.data.index import ShardIndex
from git_scale.data.indexing import IndexingResult, fill, make, make_indexes, scan
from git_scale.data.listing import list_shards
from git_scale.data.shard_survey import SurveyPart, examine
from git_scale.data.shard_table import joined
from git_scale.data.store import open_store
from git_scale.errors import DataError
from git_scale.stop import Stopped, StopRequest


def test_missing_indexes_are_shared_out(folder: Path) -> None:
    paths = list_shards(folder).paths
    assert [index.load(path) for path in paths] == [None] * 3
    first, second = make_indexes(paths[0::2]), make_indexes(paths[1::2])
    assert first | second == IndexingResult()  # saved, without a problem
    assert None not in [index.load(path) for path in paths]
    assert len(open_store(folder)) == 16


def test_problems_and_unsaved_indexes_of_all_processes_meet(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(index, "save", refuse)
    paths = list_shards(folder).paths
    listing, nothing = list_shards(folder), joined([])
    parts = [examine(listing, nothing, [number]) for number in range(3)]
    monkeypatch.setattr(indexing, "scan", lambda *_, **__: pytest.fail("made again"))
    assert open_store(folder, parts).read(15).key == "tiny-000002.tar:2-3"
    broken = [*parts, SurveyPart(nothing, IndexingResult(problems={paths[1]: f"{paths[1]}: cut short"}))]
    with pytest.raises(DataError, match=r"1 problem in 3 shards:\n  - .*tiny-000001.tar: cut short"):
        open_store(folder, broken)


def test_a_stop_is_heard_at_the_next_member_and_leaves_no_half_index(folder: Path) -> None:
    ticks = 0

    def tick() -> None:
        nonlocal ticks
        ticks += 1
        if ticks == 3:
            raise Stopped

    with pytest.raises(Stopped):
        make_indexes(list_shards(folder).paths[:1], tick=tick)
    assert ticks == 3 and [path for path in folder.iterdir() if path.suffix != ".tar"] == []
    with StopRequest() as stop:
        stop._stopped = True
        with pytest.raises(Stopped):
            open_store(folder)
    index.save(folder / "tiny-000000.tar", scan(folder / "tiny-000000.tar"))
    found = index.load(folder / "tiny-000000.tar")
    assert found is not None
    ticks = 0
    with pytest.raises(Stopped):
        fill(folder / "tiny-000000.tar", found, tick)


def test_digests_are_those_of_every_byte(folder: Path) -> None:
    path = folder / "tiny-000001.tar"
    assert make_indexes([path], digests=True) == IndexingResult()
    found, data = index.load(path), path.read_bytes()
    assert found is not None and found.summary.digests
    for row in found.table[:-1]:
        member = data[row["offset"] : row["offset"] + row["size"]]
        assert row["digest"] == xxhash.xxh3_64_intdigest(member)


def test_a_shard_that_changes_while_it_is_read_is_refused(folder: Path) -> None:
    path = folder / "tiny-000000.tar"
    with pytest.raises(DataError, match="changed while it was read"):
        scan(path, tick=lambda: os.utime(path, ns=(0, 0)))
    found = scan(path)
    os.truncate(path, 2048)
    with pytest.raises(DataError, match="was cut while it was read"):
        fill(path, found)


def test_other_content_under_an_older_index_loses_its_digests(folder: Path) -> None:
    path = folder / "tiny-000000.tar"
    make_indexes([path], digests=True)
    data = path.read_bytes()
    path.write_bytes(data.replace(b"sample 3 caption", b"sample 9 caption"))
    assert make(path).summary.digests == ""
    path.write_bytes(data)
    assert make(path).summary.digests != ""  # the same again, with another time


def test_two_writers_of_one_index_leave_a_whole_one(folder: Path) -> None:
    path = folder / "tiny-000000.tar"
    made: ShardIndex = scan(path)
    threads = [threading.Thread(target=index.save, args=(path, made)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    loaded = index.load(path)
    assert loaded is not None and loaded.summary == made.summary
    assert len(list(folder.iterdir())) == 4


def test_progress_is_said(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(indexing, "SAY_EVERY", 0.0)
    with caplog.at_level(logging.INFO):
        make_indexes(list_shards(folder).paths)
    assert "indexing: shard 2 of 3 (tiny-000001.tar)" in caplog.text and "s left" in caplog.text
