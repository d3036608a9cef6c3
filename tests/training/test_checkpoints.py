"""Saving and restoring when something goes wrong: a full disk, a killed rank, damaged files, another run."""

from __future__ import annotations

import errno
import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from git_scale.checkpoint import state
from git_scale.errors import CheckpointError
from git_scale.files import digest
from git_scale.parallel.topology import Topology
from git_scale.testing.distributed import run_distributed
from git_scale.testing.tiny import tiny_run


def build(topology: Topology, device: torch.device, squares: Path, run_dir: Path, **sections: Any) -> Any:
    from git_scale.training.build import build_trainer

    run = tiny_run(squares, run_dir, train={"micro_batch": 4, "steps": 100}, **sections)
    return build_trainer(run, {"zero_optimization": {"stage": 3}}, topology, device)


def steps_and_saves(trainer: Any, count: int) -> None:
    for _ in range(count):
        trainer.train_step()
        trainer.step += 1
        trainer.save()


def names(run_dir: Path) -> list[str]:
    return sorted(path.name for path in (run_dir / "checkpoints").iterdir())


def save_steps(topology: Topology, device: torch.device, squares: Path, run_dir: Path, count: int) -> int:
    trainer = build(topology, device, squares, run_dir)
    steps_and_saves(trainer, count)
    return int(trainer.step)


def resumed_step(topology: Topology, device: torch.device, squares: Path, run_dir: Path) -> int | str:
    try:
        return int(build(topology, device, squares, run_dir).step)
    except CheckpointError as error:
        return str(error)


def save_on_a_full_disk(
    topology: Topology, device: torch.device, squares: Path, run_dir: Path
) -> tuple[bool, float, list[str]]:
    trainer = build(topology, device, squares, run_dir)
    steps_and_saves(trainer, 1)
    write = state.write_durably
    if topology.dp_rank == 1:
        state.write_durably = _no_space_left
    trainer.train_step()
    trainer.step += 1
    saved = trainer.checkpoints.save(trainer.progress())
    state.write_durably = write
    return saved, trainer.train_step().loss, names(run_dir)


def _no_space_left(*_: Any) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def die_while_saving(topology: Topology, device: torch.device, squares: Path, run_dir: Path) -> None:
    trainer = build(topology, device, squares, run_dir)
    steps_and_saves(trainer, 1)
    if topology.dp_rank == 1:
        state.write_durably = _write_a_part_and_die
    steps_and_saves(trainer, 1)


def _write_a_part_and_die(path: Path, _write: Any) -> None:
    path.write_bytes(b"half of a checkpoint")
    os._exit(9)


@pytest.fixture(scope="module")
def two_checkpoints(squares: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run_dir = tmp_path_factory.mktemp("saved") / "run"
    run_distributed(save_steps, 2, squares, run_dir, 3)
    return run_dir


@pytest.fixture
def run_dir(two_checkpoints: Path, tmp_path: Path) -> Path:
    """A fresh copy of a run with checkpoints at steps 2 and 3."""
    return Path(shutil.copytree(two_checkpoints, tmp_path / "run"))


@pytest.mark.distributed
def test_only_the_newest_are_kept_and_nothing_partial_is_left(two_checkpoints: Path) -> None:
    assert names(two_checkpoints) == ["step_00000002", "step_00000003"]


@pytest.mark.distributed
def test_the_newest_one_is_resumed(squares: Path, run_dir: Path) -> None:
    assert run_distributed(resumed_step, 2, squares, run_dir) == [3, 3]


def _flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def _truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


@pytest.mark.distributed
@pytest.mark.parametrize("damage", [_flip, _truncate, Path.unlink], ids=["flipped", "truncated", "missing"])
def test_a_damaged_checkpoint_is_passed_over(squares: Path, run_dir: Path, damage: Any) -> None:
    newest = run_dir / "checkpoints" / "step_00000003"
    damage(newest / "state" / "rank_00001.safetensors")
    assert run_distributed(resumed_step, 2, squares, run_dir) == [2, 2]


@pytest.mark.distributed
def test_every_file_of_a_checkpoint_is_checked(run_dir: Path) -> None:
    from git_scale.checkpoint import layout

    newest = run_dir / "checkpoints" / "step_00000003"
    files = layout.read_manifest(newest)
    on_disk = {str(path.relative_to(newest)) for path in newest.rglob("*") if path.is_file()}
    assert {item.name for item in files} == on_disk - {layout.MANIFEST}
    for item in files:
        original = (newest / item.name).read_bytes()
        _flip(newest / item.name)
        assert item.name in str(layout.first_damage(newest, files))
        (newest / item.name).write_bytes(original)
    assert layout.first_damage(newest, files) is None


@pytest.mark.distributed
def test_all_damaged_is_an_error_on_every_rank(squares: Path, run_dir: Path) -> None:
    for name in ("step_00000002", "step_00000003"):
        (run_dir / "checkpoints" / name / "manifest.json").write_text("{")
    for answer in run_distributed(resumed_step, 2, squares, run_dir):
        assert "all 2 checkpoints" in answer and "damaged" in answer


def rewrite_progress(run_dir: Path, **values: str) -> None:
    """Puts other values into step 3's progress.json, of which the manifest knows."""
    progress = run_dir / "checkpoints" / "step_00000003" / "progress.json"
    rewrite(progress, json.dumps(json.loads(progress.read_text()) | values, indent=1))


def rewrite(file: Path, text: str) -> None:
    """Gives a checkpoint's file another content, of which its manifest knows."""
    file.write_text(text)
    manifest = file.with_name("manifest.json")
    entries = json.loads(manifest.read_text())
    for entry in entries["files"]:
        if entry["name"] == file.name:
            entry |= {"xxh3": digest(file).xxh3, "size": file.stat().st_size}
    manifest.write_text(json.dumps(entries))


@pytest.mark.distributed
def test_another_tokenizer_or_other_data_is_refused_in_words(squares: Path, run_dir: Path) -> None:
    rewrite_progress(run_dir, tokenizer_fingerprint="0" * 16, data_fingerprint="0" * 16)
    for answer in run_distributed(resumed_step, 2, squares, run_dir):
        assert "training data: other shards" in answer and "cannot be resumed" in answer
        assert "tokenizer: 000" in answer


@pytest.mark.distributed
def test_another_runs_checkpoint_is_refused_though_its_shapes_fit(squares: Path, run_dir: Path) -> None:
    config = run_dir / "checkpoints" / "step_00000003" / "config.yaml"
    tree = yaml.safe_load(config.read_text())
    tree["seed"] = 5
    tree["model"]["decoder"]["heads"] *= 2
    rewrite(config, yaml.safe_dump(tree))
    for answer in run_distributed(resumed_step, 2, squares, run_dir):
        assert "seed: 5 there, 0 here" in answer and "model.decoder.heads: 4 there, 2 here" in answer
        assert "put there by somebody" in answer


@pytest.mark.distributed
def test_a_checkpoint_with_a_fingerprint_of_the_older_form_is_resumed(squares: Path, run_dir: Path) -> None:
    progress = json.loads((run_dir / "checkpoints" / "step_00000003" / "progress.json").read_text())
    rewrite_progress(run_dir, data_fingerprint=progress["data_fingerprint"].split(":")[1])
    assert run_distributed(resumed_step, 2, squares, run_dir) == [3, 3]


@pytest.mark.distributed
def test_full_disk_on_one_rank_costs_the_checkpoint_only(squares: Path, tmp_path: Path) -> None:
    for saved, loss, published in run_distributed(save_on_a_full_disk, 2, squares, tmp_path / "run"):
        assert not saved
        assert 0 < loss < 10
        assert published == ["step_00000001"]


@pytest.mark.distributed
def test_a_rank_killed_while_saving_leaves_the_older_checkpoint(squares: Path, tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match=r"died with exit code 9|failed"):
        run_distributed(die_while_saving, 2, squares, tmp_path / "run")
    assert [name for name in names(tmp_path / "run") if not name.startswith(".")] == ["step_00000001"]
    assert run_distributed(resumed_step, 2, squares, tmp_path / "run") == [1, 1]


@pytest.mark.distributed
def test_checkpoint_files_hold_no_code(two_checkpoints: Path) -> None:
    """Tensors and text alone: nothing that a reader could be made to execute."""
    suffixes = {path.suffix for path in two_checkpoints.rglob("checkpoints/*/**/*") if path.is_file()}
    assert suffixes == {".safetensors", ".json", ".yaml", ".model"}
