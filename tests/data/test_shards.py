from __future__ import annotations

import io
import logging
import multiprocessing
import os
import pickle
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import webdataset

from git_scale.data import index
from git_scale.data.shards import ShardSet, open_shards
from git_scale.errors import DataError


def test_samples_by_number(folder: Path) -> None:
    shards = open_shards(folder)
    assert len(shards) == 16 and shards.counts.tolist() == [5, 7, 4]
    raw = shards.read(5 + 7 + 2)
    assert raw.key == "tiny-000002.tar:2-2" == shards.key(14)
    assert raw.text.captions == [f"shard 2 sample 2 caption {c}" for c in range(3)]
    assert raw.image is not None and raw.image[:2] == b"\xff\xd8" and raw.frames == []
    assert shards.read_text(14) == raw.text
    with pytest.raises(IndexError):
        shards.read(16)


def test_webdataset_reads_the_same_samples(folder: Path) -> None:
    shards = open_shards(folder)
    files = [str(path) for path in sorted(folder.glob("*.tar"))]
    theirs = list(webdataset.WebDataset(files, shardshuffle=False, empty_check=False))
    assert len(theirs) == len(shards)
    for number, sample in enumerate(theirs):
        raw = shards.read(number)
        assert raw.key.split(":")[1] == sample["__key__"]
        assert raw.image == sample["jpg"]
        assert str(raw.text.meta["captions"][1]) in sample["json"].decode()


def test_the_sidecars_are_made_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = open_shards(folder)
    assert len(list(folder.glob("*.tar.index.npy"))) == 3
    monkeypatch.setattr(index, "scan", lambda shard: pytest.fail("scanned again"))
    again = open_shards(folder)
    assert again.fingerprint == first.fingerprint
    assert again.read(7) == first.read(7)


def test_the_fingerprint_follows_names_and_contents_but_not_the_place(folder: Path, tmp_path: Path) -> None:
    fingerprint = open_shards(folder).fingerprint
    moved = tmp_path / "moved"
    moved.mkdir()
    for path in folder.glob("*.tar"):
        shutil.copy(path, moved)
    assert open_shards(moved).fingerprint == fingerprint
    (moved / "tiny-000002.tar").rename(moved / "tiny-000003.tar")
    assert open_shards(moved).fingerprint != fingerprint
    assert open_shards(moved / "tiny-000003.tar").counts.tolist() == [4]


def test_without_the_right_to_write_the_scan_stays_in_memory(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(index, "save", refuse)
    with caplog.at_level(logging.WARNING):
        shards = open_shards(folder)
    assert len(caplog.records) == 1 and "cannot be written" in caplog.text
    assert list(folder.glob("*.npy")) == []
    for copy in (shards, pickle.loads(pickle.dumps(shards))):
        assert copy.read(15).key == "tiny-000002.tar:2-3"


def test_missing_and_empty_folders(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nowhere: no such folder"):
        open_shards(tmp_path / "nowhere")
    with pytest.raises(DataError, match=r"no \*\.tar inside"):
        open_shards(tmp_path)


def test_all_problems_come_in_one_error(folder: Path) -> None:
    os.truncate(folder / "tiny-000000.tar", 5000)
    (folder / "tiny-000003.tar").write_bytes(b"")
    (folder / "tiny-000004.tar").mkdir()
    with pytest.raises(DataError) as error:
        open_shards(folder)
    lines = str(error.value).splitlines()
    assert lines[0] == f"{folder}: 3 problems in 5 shards:"
    assert "tiny-000000.tar: cut short" in lines[1] and "intact samples" in lines[1]
    assert "tiny-000003.tar: an empty file" in lines[2]
    assert "tiny-000004.tar: cannot be read" in lines[3]


def test_a_shard_cut_after_it_was_indexed_is_noticed(folder: Path) -> None:
    shards = open_shards(folder)
    shards.read(0)
    path = folder / "tiny-000000.tar"
    os.truncate(path, 1024)
    with pytest.raises(DataError, match=r"tiny-000000\.tar:0-4: the shard was cut"):
        shards.read(4)  # open already
    with pytest.raises(DataError, match=r"changed during the run"):
        pickle.loads(pickle.dumps(shards)).read(4)
    with pytest.raises(DataError, match=r"damaged .* of 1024, behind 0 intact samples"):
        open_shards(folder)


def test_no_sample_with_both(tmp_path: Path, write_shard: Callable, picture: Callable) -> None:
    write_shard(tmp_path / "s.tar", [("a", {"jpg": picture(0)}), ("b", {"txt": b"only words"})])
    with pytest.raises(DataError, match="no sample has both a picture and a text"):
        open_shards(tmp_path)


@pytest.fixture
def read_one(tmp_path: Path, write_shard: Callable, picture: Callable) -> Callable:
    """Reads a sample of the given members beside a healthy one."""

    def read(members: dict[str, bytes]) -> object:
        write_shard(tmp_path / "s.tar", [("good", {"jpg": picture(0), "txt": b"good"}), ("it", members)])
        (tmp_path / "s.tar.index.npy").unlink(missing_ok=True)  # the clock of files may be too coarse here
        return open_shards(tmp_path).read(1)

    return read


def test_text_members(read_one: Callable, text: Callable) -> None:
    assert read_one({"jpg": b"", "txt": b"\xef\xbb\xbfa caf\xc3\xa9"}).text.captions == ["a caf\u00e9"]
    both = {"jpg": b"", "json": text("from json", image_id=7), "txt": b"from txt"}
    assert read_one(both).text.captions == ["from json"]
    assert read_one(both).text.meta["image_id"] == 7
    assert read_one({**both, "json": b'{"image_id": 8}'}).text.captions == ["from txt"]
    asked = [{"question": "what?", "answers": ["that", "this"]}]
    record = read_one({"jpg": b"", "json": text(questions=asked, clip_captions=["moves"])}).text
    assert (record.captions, record.questions, record.clip_captions) == ([], asked, ["moves"])


def test_frames_come_in_the_order_of_their_numbers(read_one: Callable, text: Callable) -> None:
    frames = {f"{number}.jpg": b"frame %d" % number for number in (10, 2, 0, 1)}
    raw = read_one({**frames, "json": text("c")})
    assert raw.image is None and raw.frames == [b"frame 0", b"frame 1", b"frame 2", b"frame 10"]


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ({"jpg": b"x"}, "no text"),
        ({"txt": b"words"}, "no picture"),
        ({"jpg": b"x", "txt": b"caf\xe9 au lait"}, r"not UTF-8 \(byte 3\)"),
        ({"jpg": b"x", "json": b'{"captions": ["caf\xe9"]}'}, "not UTF-8"),
        ({"jpg": b"x", "json": '{"captions": ["a"]}'.encode("utf-16")}, "not UTF-8"),
        ({"jpg": b"x", "json": b'{"captions": ["a"'}, "json is not valid"),
        ({"jpg": b"x", "json": b"[" * 100_000}, "json is not valid"),
        ({"jpg": b"x", "json": b'["a"]'}, "holds a list"),
        ({"jpg": b"x", "json": b'{"captions": "a"}'}, "captions are not a list"),
        ({"jpg": b"x", "json": b'{"captions": [1]}'}, "captions are not a list"),
        ({"jpg": b"x", "json": b'{"captions": ["a"], "clip_captions": {}}'}, "clip_captions are not a list"),
        ({"jpg": b"x", "json": b'{"questions": [{"answers": []}]}'}, "questions are not a list"),
    ],
)
def test_a_bad_sample_is_named(read_one: Callable, members: dict[str, bytes], message: str) -> None:
    with pytest.raises(DataError, match=r"s\.tar:it: .*" + message):
        read_one(members)


def test_a_forged_index_reads_no_memory_away(folder: Path) -> None:
    path = folder / "tiny-000000.tar"
    table = index.scan(path)
    table["size"][0] = 2**60
    table["offset"][2] = -5
    index.save(path, table)
    shards = open_shards(folder)
    for number in (0, 1):
        with pytest.raises(DataError, match=r"the index points outside the shard; remove .*index\.npy"):
            shards.read(number)


def _keys(shards: ShardSet, numbers: list[int]) -> list[str]:
    return [shards.read(number).key for number in numbers]


def test_one_shard_many_readers_after_a_fork(folder: Path) -> None:
    shards = open_shards(folder / "tiny-000001.tar")
    expected = _keys(shards, list(range(7)))  # the file is open now, and shared by the children
    with multiprocessing.get_context("fork").Pool(3) as pool:
        found = pool.starmap(_keys, [(shards, list(range(7)))] * 6)
    assert found == [expected] * 6


def test_more_shards_than_are_kept_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("git_scale.data.shards.MAX_OPEN", 3)
    for number in range(8):
        with tarfile.open(tmp_path / f"{number}.tar", "w") as tar:
            for name, data in (("k.jpg", b"picture %d" % number), ("k.txt", b"text")):
                info = tarfile.TarInfo(name)
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    shards = open_shards(tmp_path)
    before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208
    for number in np.random.default_rng(0).integers(8, size=100):
        assert shards.read(int(number)).image == b"picture %d" % number
    # a file and a mapped table each
    assert len(os.listdir("/proc/self/fd")) - before <= 2 * 3  # noqa: PTH208
