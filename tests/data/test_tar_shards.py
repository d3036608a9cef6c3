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

from git_scale.data import index, indexing
from git_scale.data.members import MemberKind
from git_scale.data.store import SampleStore, open_store
from git_scale.errors import DataError


def test_samples_by_number(folder: Path) -> None:
    shards = open_store(folder)
    assert len(shards) == 16 and shards.counts.tolist() == [5, 7, 4]
    raw = shards.read(5 + 7 + 2)
    assert raw.key == "tiny-000002.tar:2-2" == shards.key(14)
    assert raw.text.captions == [f"shard 2 sample 2 caption {c}" for c in range(3)]
    assert raw.image is not None and raw.image[:2] == b"\xff\xd8" and raw.frames == []
    assert shards.read_text(14) == raw.text
    with pytest.raises(IndexError):
        shards.read(16)


def test_webdataset_reads_the_same_samples(folder: Path) -> None:
    shards = open_store(folder)
    files = [str(path) for path in sorted(folder.glob("*.tar"))]
    theirs = list(webdataset.WebDataset(files, shardshuffle=False, empty_check=False))
    assert len(theirs) == len(shards)
    for number, sample in enumerate(theirs):
        raw = shards.read(number)
        assert raw.key.split(":")[1] == sample["__key__"]
        assert raw.image == sample["jpg"]
        assert str(raw.text.meta["captions"][1]) in sample["json"].decode()


def test_the_sidecars_are_made_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = open_store(folder)
    assert len(list(folder.glob("*.tar.index.npy"))) == 3
    monkeypatch.setattr(indexing, "scan", lambda *_, **__: pytest.fail("scanned again"))
    again = open_store(folder)
    assert again.fingerprint == first.fingerprint
    assert again.read(7) == first.read(7)


def test_the_fingerprint_follows_names_and_contents_but_not_the_place(folder: Path, tmp_path: Path) -> None:
    fingerprint = open_store(folder).fingerprint
    moved = tmp_path / "moved"
    moved.mkdir()
    for path in folder.glob("*.tar"):
        shutil.copy(path, moved)
    assert open_store(moved).fingerprint == fingerprint
    (moved / "tiny-000002.tar").rename(moved / "tiny-000003.tar")
    assert open_store(moved).fingerprint != fingerprint
    assert open_store(moved / "tiny-000003.tar").counts.tolist() == [4]


def test_without_the_right_to_write_the_scan_stays_in_memory(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(index, "save", refuse)
    with caplog.at_level(logging.WARNING):
        shards = open_store(folder)
    assert len(caplog.records) == 1 and "cannot be written" in caplog.text
    assert list(folder.glob("*.npy")) == []
    for copy in (shards, pickle.loads(pickle.dumps(shards))):
        assert copy.read(15).key == "tiny-000002.tar:2-3"


def test_missing_and_empty_folders(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nowhere: no such folder"):
        open_store(tmp_path / "nowhere")
    with pytest.raises(DataError, match=r"no \*\.tar inside; tools/prepare_data.py"):
        open_store(tmp_path)
    (tmp_path / "a.tar.gz").write_bytes(b"")
    with pytest.raises(DataError, match=r"1 other archives are not read \(e\.g\. a\.tar\.gz\): unpack"):
        open_store(tmp_path)


@pytest.mark.parametrize("name", ["pipe.tar", "link.tar"])
def test_a_named_pipe_is_refused_and_not_waited_for(folder: Path, name: str) -> None:
    os.mkfifo(folder / "pipe.tar")
    (folder / "link.tar").symlink_to("pipe.tar")
    with pytest.raises(DataError, match=r"link\.tar is a named pipe, pipe\.tar is a named pipe; move"):
        open_store(folder)
    with pytest.raises(DataError, match=f"{name}: a named pipe"):
        open_store(folder / name)


def test_an_index_that_is_a_named_pipe_is_made_anew(folder: Path) -> None:
    os.mkfifo(folder / "tiny-000001.tar.index.npy")
    assert len(open_store(folder)) == 16
    assert (folder / "tiny-000001.tar.index.npy").is_file()


def test_shards_in_folders_below_are_read_by_their_paths(folder: Path, tmp_path: Path) -> None:
    above = tmp_path / "above"
    for below, shard in (("b/x", 0), ("a", 1), (".", 2), ("a", 0)):
        (above / below).mkdir(parents=True, exist_ok=True)
        shutil.copy(folder / f"tiny-{shard:06d}.tar", above / below)
    shards = open_store(above)
    assert shards.counts.tolist() == [5, 7, 5, 4]
    assert [shards.read(number).key for number in (0, 5, 12, 17)] == [
        "a/tiny-000000.tar:0-0",
        "a/tiny-000001.tar:1-0",
        "b/x/tiny-000000.tar:0-0",
        "tiny-000002.tar:2-0",
    ]
    assert (above / "b/x/tiny-000000.tar.index.npy").is_file()
    fingerprint = shards.fingerprint
    (above / "b").rename(above / "c")
    assert open_store(above).fingerprint != fingerprint


def test_all_problems_come_in_one_error(folder: Path) -> None:
    os.truncate(folder / "tiny-000000.tar", 5000)
    (folder / "tiny-000003.tar").write_bytes(b"")
    (folder / "tiny-000004.tar").mkdir()
    with pytest.raises(DataError) as error:
        open_store(folder)
    lines = str(error.value).splitlines()
    assert lines[0] == f"{folder}: 3 problems in 5 shards:"
    assert "tiny-000000.tar: cut short" in lines[1] and "intact samples" in lines[1]
    assert "tiny-000003.tar: an empty file" in lines[2]
    assert "tiny-000004.tar: cannot be read" in lines[3]


def test_a_shard_cut_after_it_was_indexed_is_noticed(folder: Path) -> None:
    shards = open_store(folder)
    shards.read(0)
    path = folder / "tiny-000000.tar"
    os.truncate(path, 1024)
    with pytest.raises(DataError, match=r"tiny-000000\.tar:0-4: the shard was cut"):
        shards.read(4)  # open already
    with pytest.raises(DataError, match=r"changed during the run"):
        pickle.loads(pickle.dumps(shards)).read(4)
    with pytest.raises(DataError, match=r"damaged .* of 1024, behind 0 intact samples"):
        open_store(folder)


def test_a_shard_that_vanishes_is_one_problem_per_sample(folder: Path) -> None:
    shards = pickle.loads(pickle.dumps(open_store(folder)))
    path = folder / "tiny-000001.tar"
    path.rename(folder / "away")
    for number in (5, 11):
        with pytest.raises(DataError, match=r"tiny-000001\.tar: it or its index changed during the run"):
            shards.read(number)
        assert shards.key(number) == f"tiny-000001.tar#{number - 5}"  # a message needs no file
    assert shards.read(0).key == "tiny-000000.tar:0-0"
    (folder / "away").rename(path)
    assert shards.read(5).key == "tiny-000001.tar:1-0"


@pytest.mark.parametrize("kind", ["image", "json"])
def test_bytes_that_changed_are_noticed_where_the_index_has_digests(folder: Path, kind: str) -> None:
    path = folder / "tiny-000000.tar"
    indexing.make_indexes([path], digests=True)
    times = path.stat().st_mtime_ns
    index_of = index.load(path)
    assert index_of is not None
    row = index_of.table[[MemberKind(row["kind"]).name.lower() for row in index_of.table].index(kind)]
    with path.open("r+b") as file:
        file.seek(int(row["offset"] + row["size"] // 2))
        byte = file.read(1)
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte[0] ^ 1]))
    os.utime(path, ns=(times, times))  # as a failing disk does it
    shards = open_store(folder)
    with pytest.raises(DataError, match=rf"tiny-000000\.tar:0-0: damaged: the bytes of its {kind} "):
        shards.read(0)
    assert shards.read(1).key == "tiny-000000.tar:0-1"


def test_without_digests_a_change_inside_an_image_passes(folder: Path) -> None:
    """The negative control: what foreign shards are exposed to until their digests are filled in."""
    path = folder / "tiny-000000.tar"
    shards = open_store(folder)
    found = index.load(path)
    assert found is not None
    assert [bool(row["digest"]) for row in found.table[:2]] == [False, True]  # the image's, the text's
    assert shards.read(0).image is not None


def test_what_is_not_used_is_said_at_the_start(
    folder: Path, write_shard: Callable, image: Callable, caplog: pytest.LogCaptureFixture
) -> None:
    members = {"jpg": image(0), "txt": b"words"}
    write_shard(
        folder / "x.tar", [("a", {**members, "cls": b"3"}), ("b", {"txt": b"no image"}), ("0-0", members)]
    )
    shutil.copy(folder / "tiny-000002.tar", folder / "y.tar")
    (folder / "old.tar.gz").write_bytes(b"")
    with caplog.at_level(logging.INFO):
        open_store(folder)
    said = caplog.text
    assert "23 samples; not used" in said
    assert "name of a sample of another shard: 5 of 23 samples (22 %), e.g. 'x.tar:0-0'" in said
    assert "no image of the text's name: 1 of 23 samples (4.3 %), e.g. 'b'" in said
    assert "unknown kind .cls: 1 of 46 members (2.2 %), e.g. 'a.cls'" in said
    assert "the same samples lie in tiny-000002.tar and y.tar" in said
    assert "1 other archives are not read (e.g. old.tar.gz)" in said
    assert "5 of 5 shards have no digests" in said


def test_a_healthy_folder_is_opened_without_a_warning(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        open_store(folder)
    assert caplog.records == []


def test_no_sample_with_both(tmp_path: Path, write_shard: Callable, image: Callable) -> None:
    write_shard(tmp_path / "s.tar", [("a", {"jpg": image(0)}), ("b", {"txt": b"only words"})])
    reasons = "no text of the image's name: 1 of 2 samples .*, e.g. 'a'; no image of the text's name: 1 of 2"
    with pytest.raises(DataError, match=rf"no sample has both an image and a text .*{reasons}"):
        open_store(tmp_path)


@pytest.fixture
def read_one(tmp_path: Path, write_shard: Callable, image: Callable) -> Callable:
    """Reads a sample of the given members beside a healthy one."""

    def read(members: dict[str, bytes]) -> object:
        write_shard(tmp_path / "s.tar", [("good", {"jpg": image(0), "txt": b"good"}), ("it", members)])
        (tmp_path / "s.tar.index.npy").unlink(missing_ok=True)  # the clock of files may be too coarse here
        return open_store(tmp_path).read(1)

    return read


def test_text_members(read_one: Callable, text: Callable) -> None:
    assert read_one({"jpg": b"", "txt": b"\xef\xbb\xbfa caf\xc3\xa9"}).text.captions == ["a caf\u00e9"]
    both = {"jpg": b"", "json": text("from json", image_id=7), "txt": b"from txt"}
    assert read_one(both).text.captions == ["from json"]
    assert read_one(both).text.meta["image_id"] == 7
    for json in (b'{"image_id": 8}', b'{"captions": null, "caption": null}', b'{"captions": [" "]}'):
        assert read_one({**both, "json": json}).text.captions == ["from txt"]
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
        ({"txt": b"words"}, "no image"),
        ({"jpg": b"x", "txt": b"caf\xe9 au lait"}, r"not UTF-8 \(byte 3\)"),
        ({"jpg": b"x", "json": b'{"captions": ["caf\xe9"]}'}, "not UTF-8"),
        ({"jpg": b"x", "json": '{"captions": ["a"]}'.encode("utf-16")}, "UTF-16.*save it as UTF-8"),
        ({"jpg": b"x", "json": b'{"caption": "a", "caption": "b"}'}, "the key 'caption' stands twice"),
        ({"jpg": b"x", "json": b'{"captions": ["a"'}, "json is not valid"),
        ({"jpg": b"x", "json": b"[" * 100_000}, "json is not valid"),
        ({"jpg": b"x", "json": b"12"}, "holds 12, not an object"),
        ({"jpg": b"x", "json": b'{"captions": [1]}'}, "captions is 1, not a text"),
        (
            {"jpg": b"x", "json": b'{"captions": ["a"], "clip_captions": {}}'},
            "clip_captions is an object of nothing",
        ),
        (
            {"jpg": b"x", "json": b'{"questions": [{"answers": []}]}'},
            "questions hold an object of answers, not",
        ),
    ],
)
def test_a_bad_sample_is_named(read_one: Callable, members: dict[str, bytes], message: str) -> None:
    with pytest.raises(DataError, match=r"s\.tar:it: .*" + message):
        read_one(members)


def test_a_forged_index_reads_no_memory_away(folder: Path) -> None:
    path = folder / "tiny-000000.tar"
    made = indexing.scan(path)
    made.table["size"][0] = 2**60
    made.table["offset"][2] = -5
    index.save(path, made)
    shards = open_store(folder)
    for number in (0, 1):
        with pytest.raises(DataError, match=r"the index points outside the shard; remove .*index\.npy"):
            shards.read(number)


def _keys(shards: SampleStore, numbers: list[int]) -> list[str]:
    return [shards.read(number).key for number in numbers]


def test_one_shard_many_readers_after_a_fork(folder: Path) -> None:
    shards = open_store(folder / "tiny-000001.tar")
    expected = _keys(shards, list(range(7)))  # the file is open now, and shared by the children
    with multiprocessing.get_context("fork").Pool(3) as pool:
        found = pool.starmap(_keys, [(shards, list(range(7)))] * 6)
    assert found == [expected] * 6


def test_more_shards_than_are_kept_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("git_scale.data.tar_shards.MAX_OPEN", 3)
    for number in range(8):
        with tarfile.open(tmp_path / f"{number}.tar", "w") as tar:
            for name, data in (("k.jpg", b"image %d" % number), ("k.txt", b"text")):
                info = tarfile.TarInfo(name)
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    shards = open_store(tmp_path)
    before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208
    for number in np.random.default_rng(0).integers(8, size=100):
        assert shards.read(int(number)).image == b"image %d" % number
    # a file and a mapped table each
    assert len(os.listdir("/proc/self/fd")) - before <= 2 * 3  # noqa: PTH208
