"""Files that are whole or absent."""

from __future__ import annotations

from pathlib import Path
from typing import BinaryIO

import pytest
import xxhash

from git_scale.files import BLOCK, FileDigest, digest, replaced_atomically, sync_folder, write_durably


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
