"""What checkpoints take, against what was written and what a disk has."""

from __future__ import annotations

import shutil
import tarfile
from pathlib import Path

import pytest
import yaml

from git_scale.config import RunConfig
from git_scale.errors import ConfigError
from git_scale.formatting import GIB
from git_scale.planning import disk
from git_scale.planning.disk import (
    CheckpointSpace,
    checkpoint_space,
    describe_space,
    refuse_if_disk_too_small,
)
from git_scale.recipes import load_run

GOLDEN = Path(__file__).parents[1] / "training" / "data" / "run_format_1.tar.gz"


def test_the_size_is_that_of_a_checkpoint_that_was_written(tmp_path: Path) -> None:
    with tarfile.open(GOLDEN) as archive:
        archive.extractall(tmp_path, filter="data")
    run_dir = tmp_path / "run"
    run = RunConfig.model_validate(yaml.safe_load((run_dir / "config.yaml").read_text()))
    space = checkpoint_space(run.model_copy(update={"run_dir": str(run_dir)}))
    written = 0
    for path in (run_dir / "checkpoints").rglob("state/rank_*.safetensors"):
        content = path.read_bytes()
        written += len(content) - 8 - int.from_bytes(content[:8], "little")
    assert space.each == written, "all but the headers"
    assert space.used == sum(
        path.stat().st_size for path in (run_dir / "checkpoints").rglob("*") if path.is_file()
    )
    assert space.free is not None and abs(space.free - shutil.disk_usage(tmp_path).free) < GIB


def test_git2_takes_what_its_parameters_and_moments_take() -> None:
    space = checkpoint_space(load_run("git2", ["run_dir=/somewhere/else", "checkpoint.keep=3"]))
    assert space.each / 5_150_987_066 == pytest.approx(12, rel=0.001)
    assert (space.count, space.used) == (4, 0)
    frozen = checkpoint_space(load_run("git2", ["run_dir=/somewhere/else", "train.freeze=[encoder.*]"]))
    assert 4 < frozen.each / 5_150_987_066 < 5
    averaged = checkpoint_space(load_run("git2", ["run_dir=/somewhere/else", "optimizer.ema=0.9999"]))
    assert averaged.each / 5_150_987_066 == pytest.approx(16, rel=0.001)


def test_the_best_one_is_kept_as_well() -> None:
    run = load_run("demo", ["checkpoint.best=null"])
    best = load_run("demo", ["checkpoint.best=exact_match"])
    assert checkpoint_space(best).count == checkpoint_space(run).count + 1


def space(free: int | None, used: int = 0) -> CheckpointSpace:
    return CheckpointSpace("runs/x", each=10 * GIB, count=3, used=used, free=free)


def test_a_disk_that_takes_all_is_told_in_one_line() -> None:
    text = describe_space(space(30 * GIB))
    assert text == "checkpoints: 10.00 GiB each, up to 3 at a time: 30.00 GiB; free for runs/x: 30.00 GiB"
    refuse_if_disk_too_small(space(30 * GIB))


def test_a_disk_that_takes_some_is_warned_of() -> None:
    text = describe_space(space(29 * GIB))
    assert "NOT ALL OF THEM WILL FIT: free 30.00 GiB there, set run_dir" in text
    refuse_if_disk_too_small(space(10 * GIB))
    assert "NOT ALL" not in describe_space(space(12 * GIB, used=18 * GIB)), (
        "those that lie there are replaced"
    )


def test_a_disk_that_takes_none_is_refused() -> None:
    with pytest.raises(
        ConfigError, match=r"run_dir=runs/x: a checkpoint takes 10\.00 GiB, and 9\.00 GiB are free"
    ):
        refuse_if_disk_too_small(space(9 * GIB, used=20 * GIB))


def test_a_file_system_that_does_not_tell_is_believed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(disk.shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(0, 0, 0))
    unknown = checkpoint_space(load_run("demo", [f"run_dir={tmp_path / 'not' / 'there'}"]))
    assert unknown.free is None and unknown.holds_all
    assert "an unknown amount" in describe_space(unknown)
    refuse_if_disk_too_small(unknown)
