"""A run that is killed at any file operation of a save, and loses what no fsync had forced to the disk, goes on."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from git_scale.checkpoint import layout
from git_scale.errors import CheckpointError
from git_scale.parallel.topology import Topology
from git_scale.testing.distributed import run_distributed
from git_scale.testing.tiny import load_weights, tiny_run

CHANGES = {"os.rename", "os.mkdir", "os.remove", "os.rmdir", "os.symlink", "os.truncate", "shutil.rmtree"}


class Killed(BaseException):
    """The process is gone: nothing that it would have done after this reaches the disk."""


class Disk:
    """Watches every file operation under a folder; kills at the n-th, and takes away what was not forced out."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.kill_at: int | None = None
        self.count = 0
        self.operations: list[str] = []
        self._watches = self._dead = False
        self._open: dict[int, None] = {}  # inodes that were written to since their last fsync
        self._fsync = os.fsync
        os.fsync = self.fsync  # type: ignore[assignment]
        sys.addaudithook(self._on_event)

    def _on_event(self, event: str, args: tuple[Any, ...]) -> None:
        if not self._watches or not args or not str(args[0]).startswith(str(self.folder)):
            return
        writes = event == "open" and (args[2] or 0) & (os.O_WRONLY | os.O_RDWR)
        if event in CHANGES or writes:
            self._operation(f"{event} {Path(args[0]).relative_to(self.folder)}")
        if writes and (args[2] or 0) & os.O_CREAT:
            self._created = Path(args[0])

    def _operation(self, name: str) -> None:
        self._note_created()
        if self._dead:
            raise Killed
        self.count += 1
        self.operations.append(name)
        if self.count == self.kill_at:
            self._dead = True
            raise Killed

    _created: Path | None = None

    def _note_created(self) -> None:
        """A file has its inode once the call that opens it has returned."""
        path, self._created = self._created, None
        if path is not None and path.exists():
            self._open[path.stat().st_ino] = None

    def fsync(self, handle: int) -> None:
        if self._watches:
            self._operation(f"fsync {Path(f'/proc/self/fd/{handle}').readlink()}")
            self._open.pop(os.fstat(handle).st_ino, None)
        self._fsync(handle)

    @contextmanager
    def killing(self, at: int | None) -> Iterator[None]:
        self.kill_at, self.count, self._dead, self._watches = at, 0, False, True
        self.operations, self._open = [], {}
        try:
            yield
        except Killed:
            pass
        finally:
            self._note_created()
            self._watches = False
        for path in self.folder.rglob("*"):
            if path.is_file() and path.stat().st_ino in self._open:
                path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def kill_everywhere(
    topology: Topology, device: torch.device, squares: Path, folder: Path, prepare: Callable[[Path], None]
) -> tuple[list[str], list[int], list[str]]:
    """The operations of one save, the step that was found after a kill at each of them, and what went wrong."""
    from git_scale.training.build import build_trainer

    run_dir = folder / "run"
    run = tiny_run(squares, run_dir, train={"micro_batch": 4, "steps": 100}, checkpoint={"keep": 2})
    trainer = build_trainer(run, {"zero_optimization": {"stage": 1}}, topology, device)
    weights: dict[int, dict[str, torch.Tensor]] = {}
    for _ in range(2):
        trainer.train_step()
        trainer.step += 1
        assert trainer.save()
        weights[trainer.step] = load_weights(
            layout.checkpoints_folder(run_dir) / layout.step_name(trainer.step)
        )
    trainer.train_step()
    trainer.step += 1
    prepare(run_dir)
    shutil.copytree(run_dir, folder / "before", symlinks=True)
    disk = Disk(run_dir)
    found: list[int] = []
    wrong: list[str] = []
    operations: list[str] = []
    at = 0
    while not operations or at < len(operations):
        at += 1
        shutil.rmtree(run_dir)
        shutil.copytree(folder / "before", run_dir, symlinks=True)
        if not operations:
            with disk.killing(None):
                assert trainer.save()
            operations, at = list(disk.operations), 0
            path = layout.checkpoints_folder(run_dir) / layout.step_name(trainer.step)
            weights[trainer.step] = load_weights(path)
            continue
        with disk.killing(at):
            trainer.save()
        step, problem = newest(run_dir, weights)
        found.append(step)
        wrong += [f"killed at {at}, {operations[at - 1]}: {problem}"] if problem else []
        if not trainer.save() or newest(run_dir, weights)[0] != trainer.step:
            wrong.append(f"killed at {at}, {operations[at - 1]}: the next save did not go well")
    return operations, found, wrong


def newest(run_dir: Path, weights: dict[int, dict[str, torch.Tensor]]) -> tuple[int, str]:
    """The newest step that is whole, and what is wrong with it."""
    for checkpoint in layout.published(run_dir):
        try:
            read, step = load_weights(checkpoint), layout.read_progress(checkpoint).step
        except CheckpointError as error:
            if checkpoint.name != layout.step_name(3) or "manifest.json: damaged" not in str(error):
                return 0, str(error)
            continue  # what `damaged_in_the_way` has put there
        same = all(torch.equal(read[name], tensor) for name, tensor in weights[step].items())
        return step, "" if same else "other weights"
    return 0, "no checkpoint"


def nothing(_: Path) -> None:
    pass


def damaged_in_the_way(run_dir: Path) -> None:
    folder = layout.checkpoints_folder(run_dir)
    shutil.copytree(folder / layout.step_name(2), folder / layout.step_name(3))
    (folder / layout.step_name(3) / layout.MANIFEST).write_text("{is not JSON")


@pytest.mark.distributed
@pytest.mark.parametrize("prepare", [nothing, damaged_in_the_way])
def test_a_save_that_is_killed_at_any_file_operation_leaves_a_whole_checkpoint(
    squares: Path, tmp_path: Path, prepare: Callable[[Path], None]
) -> None:
    ((operations, found, wrong),) = run_distributed(kill_everywhere, 1, squares, tmp_path, prepare)
    assert wrong == []
    assert len(operations) > 20, operations
    assert set(found) <= {2, 3} and found == sorted(found), "the older one until the new one is there"
    assert {2, 3} <= set(found)
    forced = {Path(item.split(" ", 1)[1]).name for item in operations if item.startswith("fsync")}
    assert {"index.json", "config.yaml", "progress.json", "tokenizer.model", "manifest.json"} <= forced
