"""A folder that is there when it is complete: renamed, or filled where something waits for it."""

from __future__ import annotations

from pathlib import Path

import pytest

from git_scale.data.builders.new_folder import new_shard_folder
from git_scale.data.builders.writer import SampleToWrite, write_shards
from git_scale.data.store import open_store
from git_scale.errors import DataError


def sample(number: int) -> SampleToWrite:
    return SampleToWrite(b"image %d" % number, "png", {"captions": [f"text {number}"]})


@pytest.mark.parametrize("there", [False, True])
@pytest.mark.parametrize("interruption", [KeyboardInterrupt, SystemExit, RuntimeError])
def test_an_interrupted_build_leaves_nothing(
    tmp_path: Path, interruption: type[BaseException], there: bool
) -> None:
    seen = []
    if there:
        (tmp_path / "set").mkdir()

    def samples():
        yield sample(0)
        yield sample(1)
        seen.extend(path.name for path in (tmp_path / "set" if there else tmp_path).iterdir())
        raise interruption

    with pytest.raises(interruption):
        write_shards(samples(), tmp_path / "set", samples_per_shard=1)
    assert len(seen) == 1 and seen[0].startswith(".set.") and seen[0].endswith(".partial")
    assert list(tmp_path.rglob("*")) == ([tmp_path / "set"] if there else [])


def test_an_existing_destination_is_refused_untouched(tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "mine").write_text("keep")
    with pytest.raises(DataError, match="not empty; remove it or choose another folder"):
        write_shards([sample(0)], tmp_path / "set")
    assert (tmp_path / "set" / "mine").read_text() == "keep"
    assert [path.name for path in tmp_path.iterdir()] == ["set"]
    (tmp_path / "file").write_text("keep")
    with pytest.raises(DataError, match="file: is a file"):
        write_shards([sample(0)], tmp_path / "file")


def test_an_empty_folder_is_filled_as_a_mount_point_must_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing can be renamed onto a mount point, nor out of another file system into it."""
    volume = tmp_path / "volume"
    (volume / "lost+found").mkdir(parents=True)
    identity, rename = volume.stat().st_ino, Path.rename

    def on_a_volume(source: Path, target: Path) -> Path:
        if target == volume or source.is_relative_to(volume) != target.is_relative_to(volume):
            raise OSError(16, "Device or resource busy")
        return rename(source, target)

    monkeypatch.setattr(Path, "rename", on_a_volume)
    write_shards([sample(0), sample(1)], volume, samples_per_shard=1)
    assert volume.stat().st_ino == identity and len(open_store(volume)) == 2
    names = sorted(path.name for path in volume.iterdir() if path.suffix != ".npy")
    assert names == ["lost+found", "report.json", "volume-000000.tar", "volume-000001.tar"]


def test_a_link_to_an_empty_folder_stays_a_link(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "disk")
    write_shards([sample(0)], tmp_path / "link")
    assert (tmp_path / "link").is_symlink()
    assert len(open_store(tmp_path / "disk")) == 1


def test_shards_are_not_read_before_all_have_arrived(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A kill between two moves leaves the hidden folder, and with it half of a data set is refused."""
    (tmp_path / "set").mkdir()
    rename = Path.rename

    def killed_at_the_second(source: Path, target: Path) -> Path:
        if target.name == "set-000001.tar":
            raise OSError(5, "Input/output error")
        return rename(source, target)

    monkeypatch.setattr(Path, "rename", killed_at_the_second)
    with pytest.raises(
        DataError, match=r"Input/output error; all of it is built and lies in .*\.partial; move it"
    ):
        write_shards((sample(n) for n in range(3)), tmp_path / "set", samples_per_shard=1)
    assert (tmp_path / "set" / "set-000000.tar").is_file()
    with pytest.raises(DataError, match="a build into it is running or was cut off"):
        open_store(tmp_path / "set")
    with pytest.raises(DataError, match="another build into it is running or was cut off; remove it"):
        write_shards([sample(0)], tmp_path / "set")


def test_what_took_the_place_meanwhile_stays_and_the_work_too(tmp_path: Path) -> None:
    with (
        pytest.raises(DataError, match="all of it is built and lies in") as error,
        new_shard_folder(tmp_path / "set") as folder,
    ):
        (folder / "built").write_text("hours")
        (tmp_path / "set").mkdir()
        (tmp_path / "set" / "theirs").write_text("keep")
    assert (tmp_path / "set" / "theirs").read_text() == "keep"
    assert (folder / "built").read_text() == "hours" and str(folder) in str(error.value)


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(DataError, match="cannot be made: Not a directory"),
        new_shard_folder(tmp_path / "file" / "set"),
    ):
        pass


@pytest.mark.parametrize("name", ["out**x", "x[1]"])
def test_the_name_of_a_folder_is_no_pattern(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, name: str
) -> None:
    (tmp_path / f".{name}.0123.partial").mkdir()
    write_shards([sample(0)], tmp_path / name)
    assert len(open_store(tmp_path / name)) == 1
    assert f".{name}.0123.partial: left by a build" in caplog.text
