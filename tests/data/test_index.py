from __future__ import annotations

import gzip
import io
import os
import tarfile
from pathlib import Path

import numpy as np
import pytest

from git_scale.data import index
from git_scale.data.index import ShardSummary
from git_scale.data.indexing import scan
from git_scale.data.left_out import NO_IMAGE, LeftOut
from git_scale.data.members import MemberKind
from git_scale.errors import DataError


@pytest.fixture
def shard(tmp_path: Path) -> Path:
    """Four samples; c is a clip, d has no image; folders, odd names and unknown members in between."""
    names = ["a.jpg", "a.json", "sub/b.PNG", "sub/b.txt", "README", "b.foo", "c.10.jpg", "c.2.webp"]
    return write_tar(tmp_path / "s.tar", [*names, "c.cls", "c.json", "d.txt"])


def write_tar(path: Path, names: list[str], format: int = tarfile.PAX_FORMAT, mtime: float = 0) -> Path:
    with tarfile.open(path, "w", format=format) as tar:
        for number, name in enumerate(names):
            info = tarfile.TarInfo(name)
            info.size, info.mtime = 600 + number, mtime
            tar.addfile(info, io.BytesIO(bytes([number + 1]) * info.size))
    return path


def test_rows_name_the_bytes_of_every_known_member(shard: Path) -> None:
    made = scan(shard)
    found = [
        (row["key"].decode(), MemberKind(row["kind"]), row["frame"], row["sample"]) for row in made.table[:-1]
    ]
    assert found == [
        ("a", MemberKind.IMAGE, 0, 0),
        ("a", MemberKind.JSON, 0, 0),
        ("sub/b", MemberKind.IMAGE, 0, 1),
        ("sub/b", MemberKind.TXT, 0, 1),
        ("c", MemberKind.FRAME, 10, 2),
        ("c", MemberKind.FRAME, 2, 2),
        ("c", MemberKind.JSON, 0, 2),
        ("d", MemberKind.TXT, 0, 3),
    ]
    data = shard.read_bytes()
    numbers = [0, 1, 2, 3, 6, 7, 9, 10]  # of the members above among all
    for number, row in zip(numbers, made.table[:-1], strict=True):
        assert data[row["offset"] : row["offset"] + row["size"]] == bytes([number + 1]) * (600 + number)
    assert made.table[-1]["kind"] == MemberKind.END and made.size == shard.stat().st_size
    assert (made.samples, made.summary.complete, made.summary.members) == (4, 3, 11)
    assert made.summary.left_out == (
        LeftOut("unknown kind", 1, "README"),
        LeftOut("unknown kind .foo", 1, "b.foo"),
        LeftOut("unknown kind .cls", 1, "c.cls"),
        LeftOut(NO_IMAGE, 1, "d"),
    )


@pytest.mark.parametrize("format", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT, tarfile.USTAR_FORMAT])
def test_long_and_non_ascii_names(tmp_path: Path, format: int) -> None:
    key = "folder-" + "x" * 80 + "/b\u00e4r" + "y" * 60
    made = scan(write_tar(tmp_path / "s.tar", [f"{key}.jpg", f"{key}.txt"], format))
    assert made.table[0]["key"].decode() == key
    assert made.summary.complete == 1


def test_the_same_member_twice_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"'a\.jpg' a second time within one sample at byte 3072 "):
        scan(write_tar(tmp_path / "s.tar", ["a.jpg", "a.txt", "a.jpg"]))


# a shard of 6 samples of two members, each member a header and two blocks of data: 3072 bytes per sample
CUTS = {
    "in the first header": (300, 0, 0),
    "at a sample boundary": (3 * 3072, 3, 3 * 3072),
    "in a header": (3 * 3072 + 200, 3, 3 * 3072),
    "behind a header": (3 * 3072 + 512, 3, 3 * 3072),
    "in an image": (3 * 3072 + 800, 3, 3 * 3072),
    "behind an image": (3 * 3072 + 1536, 3, 3 * 3072 + 1536),
    "in the text's padding": (4 * 3072 - 100, 4, 4 * 3072 - 100),
    "in the end mark": (6 * 3072 + 600, 6, 6 * 3072),
}


@pytest.mark.parametrize("cut", CUTS)
def test_a_cut_shard_is_refused_with_place_and_count(tmp_path: Path, cut: str) -> None:
    path = write_tar(tmp_path / "s.tar", [f"{k}.{e}" for k in range(6) for e in ("jpg", "txt")])
    scan(path)  # healthy before
    at, intact, _ = CUTS[cut]
    os.truncate(path, at)
    with pytest.raises(DataError) as error:
        scan(path)
    assert f" of {at}, behind {intact} intact samples" in str(error.value)
    assert "s.tar" in str(error.value) and "rebuild it or move it away" in str(error.value)


@pytest.mark.parametrize("cut", ["at a sample boundary", "in a header", "in an image", "behind an image"])
def test_the_place_of_the_damage_is_the_byte_where_the_good_part_ends(tmp_path: Path, cut: str) -> None:
    path = write_tar(tmp_path / "s.tar", [f"{k}.{e}" for k in range(6) for e in ("jpg", "txt")])
    at, _, place = CUTS[cut]
    os.truncate(path, at)
    with pytest.raises(DataError, match=f"cut short: .* at byte {place} of"):
        scan(path)


@pytest.mark.parametrize("filler", [b"\0", b"\xa5"], ids=["zeros", "garbage"])
@pytest.mark.parametrize("length", [512, 2048, 4096])
def test_overwritten_headers_are_found(tmp_path: Path, filler: bytes, length: int) -> None:
    path = write_tar(tmp_path / "s.tar", [f"{k}.{e}" for k in range(6) for e in ("jpg", "txt")])
    with path.open("r+b") as file:
        file.seek(2 * 3072)
        file.write(filler * length)
    with pytest.raises(DataError, match=r"damaged .* at byte 6144 of 20480, behind 2 intact samples"):
        scan(path)


def test_a_header_that_claims_too_much_or_less_than_nothing(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "s.tar", ["a.jpg", "a.txt", "b.jpg", "b.txt"])
    for size in (2**40, -4096):
        info = tarfile.TarInfo("b.jpg")
        info.size = size
        with path.open("r+b") as file:
            file.seek(3072)
            file.write(info.tobuf(tarfile.GNU_FORMAT))
        with pytest.raises(DataError, match="behind 1 intact samples"):
            scan(path)


def test_nothing_inside(tmp_path: Path) -> None:
    (tmp_path / "empty.tar").write_bytes(b"")
    with pytest.raises(DataError, match=r"empty\.tar: an empty file"):
        scan(tmp_path / "empty.tar")
    with pytest.raises(DataError, match=r"no sample inside"):
        scan(write_tar(tmp_path / "s.tar", ["README", "x.foo"]))
    (tmp_path / "text.tar").write_bytes(b"no tar at all" * 1000)
    with pytest.raises(DataError, match=r"damaged .* at byte 0 of 13000"):
        scan(tmp_path / "text.tar")


def test_a_sidecar_is_used_while_it_fits(shard: Path) -> None:
    assert index.load(shard) is None
    made = scan(shard)
    index.save(shard, made)
    loaded = index.load(shard)
    assert loaded is not None and loaded.table.tobytes() == made.table.tobytes()
    assert loaded.summary == made.summary and made.summary.left_out
    assert [path.name for path in shard.parent.iterdir() if "tmp" in path.name] == []
    with shard.open("ab") as file:
        file.write(bytes(512))
    assert index.load(shard) is None


def test_a_rebuilt_shard_of_the_same_size_makes_its_sidecar_stale(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "s.tar", ["a.jpg", "a.txt", "b.jpg", "b.txt"])
    index.save(path, scan(path))
    size, saved = path.stat().st_size, index.sidecar_of(path).stat().st_mtime_ns
    write_tar(path, ["a.jpg", "b.jpg", "b.txt", "c.txt"])
    assert path.stat().st_size == size
    os.utime(path, ns=(saved, saved + 1))
    assert index.load(path) is None
    os.utime(path, ns=(saved, saved))  # the negative control
    assert index.load(path) is not None


def test_a_shard_from_the_future_keeps_its_sidecar(shard: Path) -> None:
    later = shard.stat().st_mtime_ns + 3600 * 10**9  # the clock of another machine
    os.utime(shard, ns=(later, later))
    index.save(shard, scan(shard))
    assert index.load(shard) is not None


@pytest.mark.parametrize(
    "content",
    [b"", b"rubbish", b"\x93NUMPY\x01\x00", None],
    ids=["empty", "rubbish", "cut", "pickle"],
)
def test_a_damaged_sidecar_is_not_used(shard: Path, content: bytes | None) -> None:
    if content is None:
        buffer = io.BytesIO()
        np.save(buffer, np.array([{"a": 1}], dtype=object), allow_pickle=True)
        content = buffer.getvalue()
    index.sidecar_of(shard).write_bytes(content)
    assert index.load(shard) is None


def test_a_sidecar_of_another_form_is_not_used(shard: Path) -> None:
    made = scan(shard)
    table = made.table
    for wrong in (np.arange(5), table, table[:1], table[:-1], table[["key", "kind"]], table.reshape(1, -1)):
        np.save(index.sidecar_of(shard), wrong)  # the second one: a table without its summary
        assert index.load(shard) is None
    index.save(shard, made)
    assert index.load(shard) is not None
    sidecar = index.sidecar_of(shard)
    whole = sidecar.read_bytes()
    for wrong in (b"", b"[1]", b"{}", b'{"members": "x"}', b"[" * 70_000, whole[-300:][:-20]):
        sidecar.write_bytes(whole[: -len(whole.splitlines()[-1]) - 1] + wrong)
        assert index.load(shard) is None


def older(made: index.ShardIndex) -> np.ndarray:
    """The file of the older form."""
    table = np.zeros(len(made.table), index.older_dtype_of(made.table.dtype["key"].itemsize))
    for name in table.dtype.names:
        table[name] = made.table[name]
    return table


WHOLE = ["a.jpg", "a.json", "b.0.png", "b.1.png", "b.txt"]


@pytest.mark.parametrize("times", [0, 1.5], ids=["plain", "pax headers"])
def test_a_sidecar_of_the_older_form_is_read_where_nothing_was_left_out(tmp_path: Path, times: float) -> None:
    path = write_tar(tmp_path / "s.tar", WHOLE, mtime=times)
    made = scan(path)
    np.save(index.sidecar_of(path), older(made))
    loaded = index.load(path)
    assert loaded is not None and loaded.summary == ShardSummary(members=5, complete=2)
    assert loaded.table[list(older(made).dtype.names)].tolist() == older(made).tolist()
    assert not loaded.table["digest"].any()


@pytest.mark.parametrize("names", [[*WHOLE, "c.jpg"], [*WHOLE, "c.cls", "d.jpg", "d.txt"], ["x.cls", *WHOLE]])
def test_a_sidecar_of_the_older_form_that_left_something_out_is_made_anew(
    tmp_path: Path, names: list[str]
) -> None:
    path = write_tar(tmp_path / "s.tar", names)
    np.save(index.sidecar_of(path), older(scan(path)))
    assert index.load(path) is None


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (gzip.compress(bytes(10240), mtime=0), r"s\.tar: packed with gzip; unpack it"),
        (
            b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n",
            "a Git LFS pointer, .* `git lfs pull`",
        ),
        (b"<html><body>Sign in</body></html>" * 100, "a web page"),
    ],
)
def test_what_is_no_tar_at_all_is_named_with_the_remedy(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "s.tar").write_bytes(content)
    with pytest.raises(DataError, match=message):
        scan(tmp_path / "s.tar")
