"""Names to samples: what people's shards look like, and what of them no sample can use."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import pytest

from git_scale.data.index import ShardIndex
from git_scale.data.indexing import scan
from git_scale.data.left_out import NO_IMAGE, NO_TEXT, SAME_NAME, SECOND_IMAGE, LeftOut
from git_scale.data.members import MemberKind
from git_scale.errors import DataError


def indexed(path: Path, names: list[str]) -> ShardIndex:
    with tarfile.open(path, "w") as tar:
        for name in names:
            info = tarfile.TarInfo(name)
            info.size = 3
            tar.addfile(info, io.BytesIO(b"abc"))
    return scan(path)


def samples_of(made: ShardIndex) -> list[tuple[str, str]]:
    """Name and members of each sample: I image, F0 frame 0, J json, T txt."""
    found: list[list[str]] = [["", ""] for _ in range(made.samples)]
    for row in made.table[:-1]:
        letter = MemberKind(row["kind"]).name[0]
        sample = found[row["sample"]]
        sample[0] = row["key"].decode()
        sample[1] += f"{letter}{row['frame']}" if letter == "F" else letter
    return [(name, members) for name, members in found]


@pytest.mark.parametrize(
    ("names", "samples"),
    [
        # dots in names
        (["photo.v1.0001.png", "photo.v1.0001.txt"], [("photo.v1.0001", "IT")]),
        (["photo.v1.0001.png", "photo.v1.0001.json"], [("photo.v1.0001", "IJ")]),
        (["Screenshot 12.30.00.jpg", "Screenshot 12.30.00.txt"], [("Screenshot 12.30.00", "IT")]),
        (["v1.2/a.b.JPEG", "v1.2/a.b.Json"], [("v1.2/a.b", "IJ")]),
        (["a.txt.jpg", "a.txt.txt", "a.jpg", "a.txt"], [("a.txt", "IT"), ("a", "IT")]),
        # numbers: frames of a clip, but not where the image has a text of its own
        (["cam1.0004.jpg", "cam1.0004.txt"], [("cam1.0004", "IT")]),
        (["cam1.0004.txt", "cam1.0004.jpg"], [("cam1.0004", "TI")]),
        (["b.0.jpg", "b.1.jpg", "b.txt"], [("b", "F0F1T")]),
        (["b.json", "b.00007.jpg", "b.123456.png", "b.png"], [("b", "JF7F123456I")]),
        (["b.jpg", "b.txt", "b.1.jpg", "b.1.txt"], [("b", "IT"), ("b.1", "IT")]),
        (["b.v2.0.jpg", "b.v2.1.jpg", "b.v2.txt"], [("b.v2", "F0F1T")]),
        (["20240105.jpg", "20240105.txt"], [("20240105", "IT")]),
        # members apart from their partner
        (["a.jpg", "b.jpg", "a.txt", "b.txt"], [("a", "IT"), ("b", "IT")]),
        (["a.jpg", "b.jpg", "b.json", "a.json", "a.txt"], [("a", "IJT"), ("b", "IJ")]),
        (["b.0.jpg", "c.0.jpg", "b.1.jpg", "c.1.jpg", "c.txt", "b.txt"], [("b", "F0F1T"), ("c", "F0F1T")]),
        (["a.jpg", "b.unknown", "a.txt"], [("a", "IT")]),
        # one name for several samples
        (["a.jpg", "a.txt", "b.jpg", "b.txt", "a.jpg", "a.txt"], [("a", "IT"), ("b", "IT"), ("a", "IT")]),
        (["a.jpg", "a.txt", "b.jpg", "b.txt", "a.png", "a.json"], [("a", "IT"), ("b", "IT"), ("a", "IJ")]),
        (["a/x.jpg", "a/x.txt", "b/x.jpg", "b/x.txt"], [("a/x", "IT"), ("b/x", "IT")]),
    ],
)
def test_names_say_what_belongs_together(
    tmp_path: Path, names: list[str], samples: list[tuple[str, str]]
) -> None:
    made = indexed(tmp_path / "s.tar", names)
    assert samples_of(made) == samples
    assert made.summary.complete == len(samples)


@pytest.mark.parametrize(
    ("names", "left_out"),
    [
        (["b.jpg"], [(NO_TEXT, 1, "b")]),
        (["b.0.jpg", "b.1.jpg"], [(NO_TEXT, 1, "b")]),
        (["b.txt", "c.json"], [(NO_IMAGE, 2, "b")]),
        (["images/b.jpg", "texts/b.txt"], [(NO_TEXT, 1, "images/b"), (NO_IMAGE, 1, "texts/b")]),
        (["a.jpg", "a.txt"], [(SAME_NAME, 1, "a")]),
        (["b.jpg", "b.png", "b.txt"], [(SECOND_IMAGE, 1, "b")]),
        (["b.1.jpg", "b.01.jpg", "b.txt"], [(SECOND_IMAGE, 1, "b")]),
        (
            ["b.gif", "c.TIFF", "d.gif"],
            [("unknown kind .gif", 2, "b.gif"), ("unknown kind .tiff", 1, "c.TIFF")],
        ),
        (["README", "b.not an ending"], [("unknown kind", 2, "README")]),
        ([".DS_Store", "x/._b.jpg", "__MACOSX/b.txt"], [("hidden file", 3, ".DS_Store")]),
        ([f"b.x{n}" for n in range(20)], [("unknown kind", 12, "b.x8"), ("unknown kind .x0", 1, "b.x0")]),
    ],
)
def test_what_is_not_used_is_counted_with_its_reason(
    tmp_path: Path, names: list[str], left_out: list[tuple[str, int, str]]
) -> None:
    made = indexed(tmp_path / "s.tar", ["a.jpg", "a.txt", "z.jpg", "z.txt", *names])
    assert made.summary.left_out[: len(left_out)] == tuple(LeftOut(*item) for item in left_out)
    assert made.summary.members == 4 + len(names)


def test_members_that_are_no_files(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "s.tar", "w") as tar:
        for name, kind in (
            ("x", tarfile.DIRTYPE),
            ("x.jpg", tarfile.SYMTYPE),
            ("y.jpg", tarfile.LNKTYPE),
            ("z.txt", tarfile.FIFOTYPE),
        ):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, "a.jpg"
            tar.addfile(info)
        for name in ("a.jpg", "a.txt"):
            tar.addfile(tarfile.TarInfo(name))
    made = scan(tmp_path / "s.tar")
    assert samples_of(made) == [("a", "IT")]
    assert {item.reason: item.number for item in made.summary.left_out} == {
        "folder": 1,
        "link, which holds no bytes": 2,
        "neither a file nor a folder": 1,
    }


def test_a_sparse_file_is_left_out_not_taken_for_damage(tmp_path: Path) -> None:
    """Its size counts holes that are not in the tar."""
    with tarfile.open(tmp_path / "s.tar", "w", format=tarfile.PAX_FORMAT) as tar:
        sparse = tarfile.TarInfo("hole.jpg")
        sparse.pax_headers = {
            "GNU.sparse.major": "0",
            "GNU.sparse.minor": "1",
            "GNU.sparse.size": str(1 << 30),
            "GNU.sparse.map": f"0,512,{(1 << 30) - 512},0",
            "GNU.sparse.name": "hole.jpg",
        }
        sparse.size = 512
        tar.addfile(sparse, io.BytesIO(b"x" * 512))
        for name in ("a.jpg", "a.txt"):
            tar.addfile(tarfile.TarInfo(name))
    made = scan(tmp_path / "s.tar")
    assert samples_of(made) == [("a", "IT")]
    assert made.summary.left_out == (LeftOut("sparse file", 1, "hole.jpg"),)


def test_a_shard_without_a_sample_says_what_it_holds(tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match=r"no sample inside .*unknown kind \.gif: 2 of 3 members \(67 %\), e\.g\."
    ):
        indexed(tmp_path / "s.tar", ["a.gif", "b.gif", "._a.jpg"])
