"""The writer: deterministic tars, whole or not at all, with what was skipped."""

from __future__ import annotations

import hashlib
import json
import tarfile
from pathlib import Path

import pytest

from git_scale.data.builders.writer import SampleToWrite, Skipped, new_folder, write_shards
from git_scale.data.shards import open_shards
from git_scale.errors import DataError


def sample(number: int, frames: int = 0) -> SampleToWrite:
    clip = tuple(b"frame %d" % frame for frame in range(frames))
    return SampleToWrite(b"picture %d" % number, "png", {"captions": [f"text {number}", "same"]}, clip)


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
    shards = open_shards(tmp_path / "set")
    assert len(shards) == 5
    assert [shards.read(number).image for number in range(5)] == [b"picture %d" % n for n in range(5)]
    assert shards.read(3).text.captions == ["text 3", "same"]


def test_every_shard_leaves_with_its_index(tmp_path: Path) -> None:
    write_shards([sample(0)], tmp_path / "set")
    assert (tmp_path / "set" / "set-000000.tar.index.npy").is_file()


def test_members_are_numbered_and_frames_lie_beside_the_picture(tmp_path: Path) -> None:
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


def test_skipped_things_are_counted_by_reason_and_the_first_ten_named(tmp_path: Path) -> None:
    items = [sample(0), Skipped("z.jpg", "missing"), *(Skipped(f"{n}.jpg", "broken") for n in range(12))]
    report = write_shards(items, tmp_path / "set")
    assert report.skipped == {"missing": 1, "broken": 12}
    assert report.examples == [
        Skipped("z.jpg", "missing"),
        *(Skipped(f"{n}.jpg", "broken") for n in range(9)),
    ]


def test_nothing_usable_is_an_error_with_the_reasons_and_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nothing usable to write\n  'a.jpg': broken picture"):
        write_shards([Skipped("a.jpg", "broken picture")], tmp_path / "set")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("interruption", [KeyboardInterrupt, SystemExit, RuntimeError])
def test_an_interrupted_build_leaves_nothing(tmp_path: Path, interruption: type[BaseException]) -> None:
    seen = []

    def samples():
        yield sample(0)
        yield sample(1)
        seen.extend(path.name for path in tmp_path.iterdir())
        raise interruption

    with pytest.raises(interruption):
        write_shards(samples(), tmp_path / "set", samples_per_shard=1)
    assert len(seen) == 1 and seen[0].startswith("set.tmp-")
    assert list(tmp_path.iterdir()) == []


def test_an_existing_destination_is_refused_untouched(tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "mine").write_text("keep")
    with pytest.raises(DataError, match="not empty; remove it or choose another folder"):
        write_shards([sample(0)], tmp_path / "set")
    assert (tmp_path / "set" / "mine").read_text() == "keep"
    assert [path.name for path in tmp_path.iterdir()] == ["set"]
    (tmp_path / "file").write_text("keep")
    with pytest.raises(DataError, match="not empty"):
        write_shards([sample(0)], tmp_path / "file")


def test_an_empty_destination_and_a_link_to_one_are_filled(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "disk")
    write_shards([sample(0)], tmp_path / "link")
    assert (tmp_path / "link").is_symlink()
    assert len(open_shards(tmp_path / "disk")) == 1


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(DataError, match="cannot be made: Not a directory"),
        new_folder(tmp_path / "file" / "set"),
    ):
        pass


def test_a_half_surrogate_does_not_stop_a_build(tmp_path: Path) -> None:
    write_shards([SampleToWrite(b"x", "jpg", {"captions": ["a \ud800 b"]})], tmp_path / "set")
    assert open_shards(tmp_path / "set").read(0).text.captions == ["a ? b"]
