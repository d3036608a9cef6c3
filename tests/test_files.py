"""Files that are whole or absent."""

from __future__ import annotations

import errno
import io
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import pytest
import xxhash

from git_scale import files
from git_scale.files import (
    BLOCK,
    FileDigest,
    digest,
    replaced_atomically,
    sync_folder,
    write_bytes,
    write_durably,
    write_text,
)


def test_what_was_written_is_there_with_its_digest(tmp_path: Path) -> None:
    path = tmp_path / "weights.bin"
    written = write_durably(path, lambda file: file.write(b"abc" * 1000))
    assert path.read_bytes() == b"abc" * 1000
    assert written == FileDigest("weights.bin", 3000, xxhash.xxh3_128(b"abc" * 1000).hexdigest())
    assert written == digest(path)


def test_the_digest_of_nothing_is_xxh3s_published_one(tmp_path: Path) -> None:
    """XXH3_128bits of the empty input with seed 0, from xxHash's own sanity checks."""
    path = tmp_path / "empty"
    path.touch()
    assert digest(path) == FileDigest("empty", 0, "99aa06d3014798d86001c324468d497f")


def test_a_file_longer_than_a_block_is_hashed_wholly(tmp_path: Path) -> None:
    path = tmp_path / "long"
    content = bytes(BLOCK) + b"x"
    path.write_bytes(content)
    assert digest(path).xxh3 == xxhash.xxh3_128(content).hexdigest()
    path.write_bytes(bytes(BLOCK) + b"y")  # same size, other last byte
    assert digest(path).xxh3 != xxhash.xxh3_128(content).hexdigest()


@pytest.mark.parametrize("error", [OSError("disk full"), KeyboardInterrupt()])
def test_a_half_written_file_is_removed(tmp_path: Path, error: BaseException) -> None:
    path = tmp_path / "weights.bin"

    def fail_midway(file: BinaryIO) -> None:
        file.write(b"half")
        raise error

    with pytest.raises(type(error)):
        write_durably(path, fail_midway)
    assert list(tmp_path.iterdir()) == []


class Flipping(io.FileIO):
    """A disk that flips a bit of the tenth byte."""

    def write(self, data: Any) -> int:
        changed = bytearray(data)
        changed[10] ^= 1
        return super().write(changed)


@pytest.fixture
def flipping_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = Path.open

    def opened(path: Path, mode: str = "r", *args: Any, **kwargs: Any) -> Any:
        return Flipping(path, "wb") if mode == "wb" else plain(path, mode, *args, **kwargs)

    monkeypatch.setattr(Path, "open", opened)


@pytest.mark.usefixtures("flipping_disk")
def test_a_writer_that_flips_a_bit_is_not_believed(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="reads back as something else than was written"):
        write_durably(tmp_path / "weights.bin", lambda file: file.write(b"abc" * 1000))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("flipping_disk")
def test_the_digest_is_of_what_was_meant(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where reading back is served from memory, the digest still tells at the next load."""
    path, meant = tmp_path / "weights.bin", b"abc" * 1000
    cached = FileDigest("weights.bin", 3000, xxhash.xxh3_128(meant).hexdigest())
    monkeypatch.setattr(files, "digest", lambda _: cached)
    assert write_bytes(path, meant) == cached
    assert digest(path) != cached


def test_replacing_shows_the_new_content_only_when_the_block_has_ended(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text("old")
    with replaced_atomically(path) as temporary:
        temporary.write_text("new")
        assert temporary.parent == path.parent  # a rename across file systems is not atomic
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]


def test_the_old_content_stays_when_the_block_raises(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text("old")
    with pytest.raises(RuntimeError, match="midway"), replaced_atomically(path) as temporary:
        temporary.write_text("ne")
        raise RuntimeError("midway")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_block_that_writes_nothing_is_an_error_and_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), replaced_atomically(tmp_path / "config.yaml"):
        pass
    assert list(tmp_path.iterdir()) == []


def test_two_writers_of_one_file_do_not_meet(tmp_path: Path) -> None:
    path = tmp_path / "index"
    with replaced_atomically(path) as first, replaced_atomically(path) as second:
        first.write_text("first")
        second.write_text("second")
        assert first != second
    assert path.read_text() == "first"  # the outer block ends last


def test_a_folder_can_be_forced_to_the_disk(tmp_path: Path) -> None:
    sync_folder(tmp_path)
    with pytest.raises(FileNotFoundError):
        sync_folder(tmp_path / "missing")


def failing(number: int) -> Callable[..., None]:
    def fail(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    return fail


@pytest.mark.parametrize(
    "number", [errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EACCES, errno.EPERM, errno.ENOSYS]
)
def test_a_file_system_that_forces_no_folder_is_told_of_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, number: int
) -> None:
    monkeypatch.setattr(files, "_SAID", set())
    plain = os.fsync

    def fsync(handle: int) -> None:
        if stat.S_ISDIR(os.fstat(handle).st_mode):
            failing(number)()
        plain(handle)

    monkeypatch.setattr("git_scale.files.os.fsync", fsync)
    for text in ("one", "two"):
        with replaced_atomically(tmp_path / "config.yaml") as temporary:
            temporary.write_text(text)
    assert (tmp_path / "config.yaml").read_text() == "two"
    assert caplog.text.count("cannot be told to write to the disk at once") == 1


def test_a_folder_that_cannot_be_opened_is_told_of_as_well(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(files, "_SAID", set())
    monkeypatch.setattr("git_scale.files.os.open", failing(errno.EACCES))
    sync_folder(tmp_path)
    assert "cannot be told" in caplog.text


@pytest.mark.parametrize("number", [errno.EIO, errno.ENOSPC, errno.EDQUOT])
def test_a_disk_that_fails_is_no_such_file_system(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    monkeypatch.setattr("git_scale.files.os.fsync", failing(number))
    with pytest.raises(OSError) as caught:
        sync_folder(tmp_path)
    assert caught.value.errno == number
    with pytest.raises(OSError):
        write_bytes(tmp_path / "weights.bin", b"abc")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_disk_that_is_full_is_named_by_the_file_that_was_asked_for(tmp_path: Path) -> None:
    wanted = tmp_path / "wanted.json"
    with pytest.raises(OSError, match="No space left") as failed, replaced_atomically(wanted):
        Path("/dev/full").write_text("x")
    assert failed.value.filename == str(wanted)
    with (
        pytest.raises(FileNotFoundError) as failed,
        replaced_atomically(tmp_path / "no" / "x.json") as temporary,
    ):
        temporary.write_text("x")
    assert failed.value.filename == str(tmp_path / "no" / "x.json")


def test_a_text_comes_with_the_folders_above_it(tmp_path: Path) -> None:
    write_text(tmp_path / "a" / "b" / "file", "old")
    write_text(tmp_path / "a" / "b" / "file", "new")
    assert (tmp_path / "a" / "b" / "file").read_text() == "new"
