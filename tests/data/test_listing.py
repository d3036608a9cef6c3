"""Which shards lie below a folder, by their paths."""

from __future__ import annotations

from pathlib import Path

import pytest

from git_scale.data.listing import list_shards, problem_of_shards
from git_scale.errors import DataError


def touch(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"")
    return folder


def test_names_are_paths_below_the_folder_in_their_order(tmp_path: Path) -> None:
    touch(tmp_path, "b.tar", "a/z.tar", "a/c/1.tar", "a-1.tar", "a/z.tar.index.npy", "notes.txt")
    listing = list_shards(tmp_path)
    assert listing.names == ["a-1.tar", "a/c/1.tar", "a/z.tar", "b.tar"]
    assert listing.indexed == {"a/z.tar"} and listing.is_folder
    alone = list_shards(tmp_path / "a/z.tar")
    assert (alone.names, alone.paths, alone.indexed) == (["z.tar"], [tmp_path / "a/z.tar"], {"z.tar"})
    assert not alone.is_folder


def test_hidden_folders_are_not_entered(tmp_path: Path) -> None:
    touch(tmp_path, "a.tar", ".git/b.tar", "x/.trash/c.tar")
    assert list_shards(tmp_path).names == ["a.tar"]
    (tmp_path / "a.tar").unlink()
    assert problem_of_shards(tmp_path) == "no *.tar inside; tools/prepare_data.py makes them"


@pytest.mark.parametrize("place", ["", "x/"])
def test_a_build_that_still_runs_is_waited_for(tmp_path: Path, place: str) -> None:
    touch(tmp_path, "a.tar", f"{place}.train.1234.partial/b.tar")
    with pytest.raises(DataError, match=rf"a build into it .* \({place}\.train\.1234\.partial\); wait"):
        list_shards(tmp_path)
    (tmp_path / "a.tar").unlink()
    assert "a build into it is running" in problem_of_shards(tmp_path)


def test_links_to_folders_are_followed_and_end(tmp_path: Path) -> None:
    elsewhere = touch(tmp_path / "elsewhere", "1.tar")
    folder = touch(tmp_path / "folder", "0.tar", "below/2.tar")
    (folder / "linked").symlink_to(elsewhere)
    (folder / "again").symlink_to(elsewhere)
    (folder / "below" / "up").symlink_to(folder)
    (folder / "nowhere").symlink_to("nowhere")
    (elsewhere / "back").symlink_to(folder)
    assert list_shards(folder).names == ["0.tar", "again/1.tar", "below/2.tar", "linked/1.tar"]


def test_archives_that_are_not_read_are_named(tmp_path: Path) -> None:
    touch(tmp_path, "a.tar", "x/b.tar.gz", "c.zip")
    assert list_shards(tmp_path).unread == "2 other archives are not read (e.g. c.zip): unpack them to .tar"
