"""The writer: deterministic tars, whole or not at all, with what was skipped."""

from __future__ import annotations

import errno
import hashlib
import io
import json
import signal
import tarfile
from pathlib import Path

import pytest
import xxhash

from git_scale.data import index
from git_scale.data.builders import writer
from git_scale.data.builders.writer import ChangedItem, SampleToWrite, Skipped, describe_skipped, write_shards
from git_scale.data.indexing import fill, scan
from git_scale.data.members import MemberKind
from git_scale.data.store import open_store
from git_scale.errors import DataError
from git_scale.stop import Stopped, StopRequest


def sample(number: int, frames: int = 0) -> SampleToWrite:
    clip = tuple(b"frame %d" % frame for frame in range(frames))
    return SampleToWrite(b"image %d" % number, "png", {"captions": [f"text {number}", "same"]}, clip)


def digest(folder: Path) -> str:
    tars = sorted(folder.glob("*.tar"))
    return hashlib.sha256(b"".join(tar.read_bytes() for tar in tars)).hexdigest()


def test_five_samples_by_two_make_three_shards_that_read_back(tmp_path: Path) -> None:
    report = write_shards((sample(number) for number in range(5)), tmp_path / "set", samples_per_shard=2)
    assert [tar.name for tar in sorted((tmp_path / "set").glob("*.tar"))] == [
        "set-000000.tar",
        "set-000001.tar",
        "set-000002.tar",
    ]
    assert (report.samples, report.shards, report.captions, report.distinct_captions) == (5, 3, 10, 6)
    assert report.bytes == sum(tar.stat().st_size for tar in (tmp_path / "set").glob("*.tar"))
    shards = open_store(tmp_path / "set")
    assert len(shards) == 5
    assert [shards.read(number).image for number in range(5)] == [b"image %d" % n for n in range(5)]
    assert shards.read(3).text.captions == ["text 3", "same"]


def test_every_shard_leaves_with_its_index_and_the_digests_of_what_was_meant(tmp_path: Path) -> None:
    write_shards([sample(0, frames=1)], tmp_path / "set")
    found = index.load(tmp_path / "set" / "set-000000.tar")
    assert found is not None and found.summary.digests
    members = {row["kind"]: row["digest"] for row in found.table[:-1]}
    assert members[MemberKind.IMAGE] == xxhash.xxh3_64_intdigest(b"image 0")
    assert members[MemberKind.FRAME] == xxhash.xxh3_64_intdigest(b"frame 0")
    assert found.summary == fill(tmp_path / "set" / "set-000000.tar", found).summary


def test_a_disk_that_writes_other_bytes_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def read_back(shard: Path, digests: dict[str, int]) -> index.ShardIndex:
        shard.write_bytes(shard.read_bytes().replace(b"text 0", b"tExt 0"))
        return scan(shard, digests)

    monkeypatch.setattr(writer, "scan", read_back)
    with pytest.raises(DataError, match=r"'000000000.json' does not hold the bytes that were written"):
        write_shards([sample(0)], tmp_path / "set")
    assert list(tmp_path.iterdir()) == []


def test_members_are_numbered_and_frames_lie_beside_the_image(tmp_path: Path) -> None:
    write_shards([sample(0), sample(1, frames=2)], tmp_path / "set")
    with tarfile.open(tmp_path / "set" / "set-000000.tar") as tar:
        members = tar.getmembers()
        names = [member.name for member in members]
        text = json.load(tar.extractfile("000000001.json"))
    assert names[:2] == ["000000000.json", "000000000.png"]
    assert sorted(names[2:]) == ["000000001.0.png", "000000001.1.png", "000000001.json", "000000001.png"]
    assert text == {"captions": ["text 1", "same"]}
    assert {(m.mtime, m.uid, m.gid, m.uname, m.gname) for m in members} == {
        (0, 0, 0, "git_scale", "git_scale")
    }


def test_same_samples_same_bytes_and_other_samples_other_bytes(tmp_path: Path) -> None:
    for name, first in (("one", 0), ("two", 0), ("three", 7)):
        write_shards((sample(number) for number in range(first, first + 3)), tmp_path / name / "set")
    assert digest(tmp_path / "one" / "set") == digest(tmp_path / "two" / "set")
    assert digest(tmp_path / "one" / "set") != digest(tmp_path / "three" / "set")


def test_skipped_things_are_counted_by_reason_with_their_share_and_examples(tmp_path: Path) -> None:
    broken = [Skipped(f"{n}.jpg", "broken") for n in range(12)]
    others = [Skipped("a.jpg", "empty", "caption"), Skipped("fox", "class without an image", "class")]
    report = write_shards([sample(0), *broken, Skipped("z.jpg", "missing"), *others], tmp_path / "set")
    assert report.skipped[("image", "broken")] == 12 and report.skipped.total() == 15
    assert describe_skipped(report) == [  # of 14 images and 3 captions that came
        "skipped 12 (85.7 % of the images): broken: '0.jpg', '1.jpg', '2.jpg', '3.jpg', '4.jpg'",
        "skipped 1 (7.1 % of the images): missing: 'z.jpg'",
        "skipped 1 (33.3 % of the captions): empty: 'a.jpg'",
        "skipped 1 (100.0 % of the classes): class without an image: 'fox'",
    ]


def test_the_report_lies_beside_the_shards(tmp_path: Path) -> None:
    write_shards([sample(0), Skipped("z.jpg", "missing")], tmp_path / "set")
    report = json.loads((tmp_path / "set" / "report.json").read_text())
    (skipped,) = report.pop("skipped")
    assert report.pop("changed") == []
    size = (tmp_path / "set" / "set-000000.tar").stat().st_size
    assert report == {
        "samples": 1,
        "captions": 2,
        "distinct_captions": 2,
        "questions": 0,
        "answers": 0,
        "shards": 1,
        "bytes": size,
    }
    expected = {"unit": "image", "reason": "missing", "count": 1, "share": 0.5, "examples": ["z.jpg"]}
    assert skipped == expected


def test_nothing_usable_is_an_error_with_the_reasons_and_leaves_nothing(tmp_path: Path) -> None:
    message = r"nothing usable to write\n  skipped 1 \(100.0 % of the images\): broken image: 'a.jpg'"
    with pytest.raises(DataError, match=message):
        write_shards([Skipped("a.jpg", "broken image")], tmp_path / "set")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("full_at", [0, 2])
def test_a_full_disk_leaves_the_complete_shards_and_says_where(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, full_at: int
) -> None:
    """They were removed with the unfinished one."""
    members = writer._members

    def full(written: SampleToWrite) -> dict[str, bytes]:
        if written.image == b"image %d" % full_at:
            raise OSError(errno.ENOSPC, "No space left on device")
        return members(written)

    monkeypatch.setattr(writer, "_members", full)
    with pytest.raises(DataError, match=r"cannot be written: .*No space left on device.*; ") as error:
        write_shards((sample(number) for number in range(5)), tmp_path / "set", samples_per_shard=1)
    assert not (tmp_path / "set").exists()
    if full_at == 0:
        assert str(error.value).endswith("nothing was built") and list(tmp_path.iterdir()) == []
        return
    (left,) = tmp_path.iterdir()
    assert str(error.value).endswith(f"the 2 complete shards lie in {left}")
    whole = ["set-000000.tar", "set-000000.tar.index.npy", "set-000001.tar", "set-000001.tar.index.npy"]
    assert sorted(path.name for path in left.iterdir()) == whole


def test_a_stop_is_heard_between_samples_and_leaves_nothing(tmp_path: Path) -> None:
    seen = []

    def samples():
        for number in range(1000):
            seen.append(number)
            if number == 3:
                signal.raise_signal(signal.SIGTERM)
            yield sample(number)

    with StopRequest(), pytest.raises(Stopped):
        write_shards(samples(), tmp_path / "set", samples_per_shard=1)
    assert seen == [0, 1, 2, 3] and list(tmp_path.iterdir()) == []


class Full(io.StringIO):
    """A stream on a full disk."""

    def write(self, _text: str) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")


def test_a_bar_that_cannot_be_drawn_does_not_end_a_build(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stderr", Full())
    assert write_shards([sample(0)], tmp_path / "set").samples == 1


def test_a_half_surrogate_does_not_stop_a_build(tmp_path: Path) -> None:
    text = {"captions": ["a b"], "file": "caf\udce9.jpg"}
    write_shards([SampleToWrite(b"x", "jpg", text)], tmp_path / "set")
    assert open_store(tmp_path / "set").read(0).text.meta == text


def test_what_was_changed_is_told_apart_from_what_was_skipped(tmp_path: Path) -> None:
    items = [sample(0), ChangedItem("a.jpg", "half of it", "caption"), Skipped("a.jpg", "empty", "caption")]
    report = write_shards(items, tmp_path / "set")
    assert report.skipped.total() == report.changed.total() == 1
    assert describe_skipped(report) == [
        "skipped 1 (33.3 % of the captions): empty: 'a.jpg'",
        "changed 1 (33.3 % of the captions): half of it: 'a.jpg'",
    ]
