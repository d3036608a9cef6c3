"""What lies where in a run's folder, and when a checkpoint counts as one.

    RUN_DIR/config.yaml                       the resolved recipe
    RUN_DIR/lease.json                        who trains here at the moment (git_scale/training/lease.py)
    RUN_DIR/checkpoints/best.json             step, metric and value of the best evaluation (checkpoint.best)
    RUN_DIR/checkpoints/best                  link to that step's checkpoint, where there are links
    RUN_DIR/checkpoints/set_aside_step_...    what lay in the place of a checkpoint and was none
    RUN_DIR/checkpoints/step_00000100/
        manifest.json                         every file below with size and xxh3; written last
        config.yaml                           the resolved recipe at that step
        progress.json                         step, samples, tokens, data fingerprint, ranks, ZeRO stage
        tokenizer.model | vocab.txt
        rank_00000.safetensors ...            random state of each data-parallel rank
        state/                                weights and optimizer state (git_scale/checkpoint/state.py)

A checkpoint is written under a hidden name and renamed once every rank has written: a folder with a visible
name is complete. A manifest that does not match its files makes it damaged, and the one before is used.
"""

from __future__ import annotations

import json
import logging
import math
import os
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml

from git_scale.errors import CheckpointError
from git_scale.files import FileDigest, digest, replaced_atomically
from git_scale.upgrades import read_upgraded

log = logging.getLogger(__name__)

FORMAT_VERSION = 1
MANIFEST = "manifest.json"
PROGRESS = "progress.json"
CONFIG = "config.yaml"
STATE_FOLDER = "state"
STATE_INDEX = f"{STATE_FOLDER}/index.json"
MARKS = (MANIFEST, PROGRESS, STATE_FOLDER)
"""One of them is in what is left of any damaged checkpoint: a folder without them is somebody else's."""
RANK_FILES = "rank_*.safetensors"
BEST, BEST_FILE = "best", "best.json"


class RefusedError(CheckpointError):
    """It is not damaged, but not to be read either: somebody must see to it, no older checkpoint takes its place."""


@dataclass(frozen=True)
class BestEvaluation:
    """Names the evaluation whose checkpoint is kept beside the newest ones."""

    step: int
    metric: str
    value: float
    loss: float | None = None
    """Held-out loss of the same evaluation; None where there was none."""

    def beats(self, other: BestEvaluation | None, lower_is_better: bool = False) -> bool:
        """Whether this later evaluation takes the other's place: among equal values the lower held-out loss does.

        So does the later step when the loss is the same as well. A value that is not finite never does.
        """
        if not math.isfinite(self.value):
            return False
        if other is None or other.metric != self.metric:
            return True
        return self._rank(lower_is_better) >= other._rank(lower_is_better)

    def _rank(self, lower_is_better: bool) -> tuple[float, float]:
        return self.value * (-1 if lower_is_better else 1), -(math.inf if self.loss is None else self.loss)


@dataclass(frozen=True)
class RunProgress:
    """Says where a run stands: with weights, optimizer state and random state all that is needed to go on."""

    step: int
    samples: int
    """Images seen, which is the position in the endless stream of samples."""
    tokens: int
    skipped_steps: int
    skipped_samples: int
    data_fingerprint: str
    tokenizer_fingerprint: str
    world_size: int
    """Ranks that wrote the checkpoint; any other number may go on from it, as with the next two."""
    zero_stage: int
    tp: int = 1
    recent_samples: int = 0
    """The latest ones, whose share of unusable samples counts (training/bad_samples.py)."""
    recent_bad: int = 0

    @property
    def dp(self) -> int:
        return self.world_size // self.tp


def checkpoints_folder(run_dir: Path) -> Path:
    return run_dir / "checkpoints"


def step_name(step: int) -> str:
    return f"step_{step:08d}"


def rank_file(rank: int) -> str:
    """The file of a rank's part of the state, or of a data-parallel rank's random state."""
    return f"rank_{rank:05d}.safetensors"


def published(run_dir: Path) -> list[Path]:
    """The folders of a run that hold a checkpoint, or what is left of one, newest first."""
    found = checkpoints_folder(run_dir).glob("step_" + "[0-9]" * 8)
    return sorted((path for path in found if any((path / mark).exists() for mark in MARKS)), reverse=True)


def manifest_text(digests: Iterable[FileDigest]) -> str:
    return json.dumps({"version": FORMAT_VERSION, "files": [asdict(item) for item in digests]}, indent=1)


def has_manifest(folder: Path) -> bool:
    """Whether a manifest of ours lies there, sound or not; other programs have files of that name as well."""
    try:
        tree = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(tree, dict) and {"version", "files"} <= tree.keys()


def read_manifest(checkpoint: Path) -> list[FileDigest]:
    """Raises CheckpointError when the folder is no checkpoint or its manifest is unreadable."""
    path = checkpoint / MANIFEST
    try:
        tree = json.loads(path.read_text(encoding="utf-8"))
        if tree["version"] != FORMAT_VERSION:
            found = f"format {tree['version']}, this git_scale reads {FORMAT_VERSION}"
            raise RefusedError(f"{checkpoint}: {found}: update it")
        files = [FileDigest(**item) for item in tree["files"]]
        _check_entries(files)
    except FileNotFoundError:
        raise CheckpointError(f"{checkpoint}: no checkpoint here ({MANIFEST} is missing)") from None
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise CheckpointError(f"{path}: damaged: {error}") from None
    return files


def _check_entries(files: list[FileDigest]) -> None:
    """Raises ValueError for what no writer of a manifest writes: a path that leaves the folder, above all."""
    for item in files:
        if not (isinstance(item.name, str) and isinstance(item.size, int) and isinstance(item.xxh3, str)):
            raise ValueError(f"{item.name!r} is no entry with a name, a size and a digest")
        parts = item.name.split("/")
        if any(part in ("", ".", "..") or "\\" in part or "\0" in part for part in parts) or item.size < 0:
            raise ValueError(f"{item.name!r} of {item.size} bytes is no file inside of the folder")
    if len({item.name for item in files}) < len(files):
        raise ValueError("a file is listed twice")


def first_damage(checkpoint: Path, files: Iterable[FileDigest]) -> str | None:
    """The first file that is missing, of another size or of another content than its manifest entry."""
    for expected in files:
        path = checkpoint / expected.name
        if not path.is_file():
            return f"{expected.name} is missing"
        if path.stat().st_size != expected.size:
            return f"{expected.name} has {path.stat().st_size} bytes instead of {expected.size}"
        if digest(path).xxh3 != expected.xxh3:
            return f"{expected.name} has another content than was written"
    return None


def stranger(checkpoint: Path, files: Iterable[FileDigest]) -> str | None:
    """The first file of the state that the manifest does not list: nobody may take its numbers. Hidden ones aside."""
    listed = {item.name for item in files}
    names = (f"{STATE_FOLDER}/{path.name}" for path in sorted((checkpoint / STATE_FOLDER).glob("[!.]*")))
    return next((name for name in names if name not in listed), None)


def refuse_stranger(checkpoint: Path, files: Iterable[FileDigest]) -> None:
    """Raises CheckpointError naming it."""
    if name := stranger(checkpoint, files):
        raise RefusedError(
            f"{checkpoint}: {name} is not in {MANIFEST}, so no part of this checkpoint: move it away"
        )


def shortfall(checkpoint: Path, files: Iterable[FileDigest]) -> str | None:
    """What the manifest of a run's checkpoint has to list and does not: one that lists too little is none.

    Whether the files of the state hold all numbers is seen from their headers (TrainingState). The files that are
    listed have been compared. Raises CheckpointError.
    """
    listed = {item.name for item in files}

    def first_not_listed(names: Iterable[str]) -> str | None:
        return next((f"{MANIFEST} does not list {name}" for name in names if name not in listed), None)

    if found := first_not_listed((PROGRESS, CONFIG, STATE_INDEX)):
        return found
    ranks = map(rank_file, range(read_progress(checkpoint).dp))
    return first_not_listed((read_tokenizer_name(checkpoint), *ranks))


def read_progress(checkpoint: Path) -> RunProgress:
    """Raises CheckpointError."""
    path = checkpoint / PROGRESS
    try:
        progress = RunProgress(**json.loads(path.read_text(encoding="utf-8")))
        if progress.tp < 1 or progress.dp * progress.tp != progress.world_size or progress.dp < 1:
            raise ValueError(f"{progress.world_size} ranks in groups of {progress.tp}")
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise CheckpointError(f"{path}: damaged: {error}") from None
    return progress


def misnamed(checkpoint: Path) -> str:
    """Why it is no checkpoint of the step that its name says; empty when it is, or does not tell."""
    try:
        step = read_progress(checkpoint).step
    except CheckpointError:
        return ""
    return "" if checkpoint.name == step_name(step) else f"it holds step {step}: somebody put it there"


def read_config(checkpoint: Path) -> Any:
    """The recipe's tree, in the present version. Raises ConfigError for one of a later git_scale."""
    return read_upgraded(checkpoint / CONFIG)


def read_tokenizer_name(checkpoint: Path) -> str:
    """The file beside config.yaml. Raises CheckpointError."""
    try:
        return Path(read_config(checkpoint)["data"]["tokenizer"]).name
    except (OSError, yaml.YAMLError, KeyError, TypeError, RecursionError) as error:
        raise CheckpointError(f"{checkpoint / CONFIG}: damaged: {error}") from None


def read_best(run_dir: Path) -> BestEvaluation | None:
    """None where none was marked, or where its checkpoint is gone."""
    folder = checkpoints_folder(run_dir)
    try:
        best = BestEvaluation(**json.loads((folder / BEST_FILE).read_text(encoding="utf-8")))
        return best if (folder / step_name(best.step)).is_dir() else None
    except (OSError, ValueError, TypeError):
        return None


def write_best(run_dir: Path, best: BestEvaluation) -> None:
    """best.json says which one it is; the link is for people, and a file system may not have any. Raises OSError."""
    with replaced_atomically(checkpoints_folder(run_dir) / BEST_FILE) as temporary:
        temporary.write_text(json.dumps(asdict(best)), encoding="utf-8")
    link_best(run_dir)


def link_best(run_dir: Path) -> None:
    """Makes checkpoints/best a link to what best.json names, where that is not so and can be done."""
    folder = checkpoints_folder(run_dir)
    best = read_best(run_dir)
    if best is None:
        return
    target, temporary = step_name(best.step), folder / f".{BEST}.tmp"
    try:
        if (folder / BEST).is_symlink() and os.readlink(folder / BEST) == target:  # noqa: PTH115
            return
        temporary.unlink(missing_ok=True)
        temporary.symlink_to(target, target_is_directory=True)
        temporary.replace(folder / BEST)
    except OSError as error:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        log.info("%s: no link to %s (%s); this path means it all the same", folder / BEST, target, error)


def best_of(path: Path) -> Path:
    """RUN/checkpoints/best as the checkpoint that best.json names, link or no link; any other path as it is."""
    folder = Path(os.path.abspath(path)).parent  # noqa: PTH100 - a link is not to be followed
    if path.name == BEST and folder == checkpoints_folder(folder.parent):
        best = read_best(folder.parent)
        return path.with_name(step_name(best.step)) if best is not None else path
    return path


def find_checkpoint(path: Path) -> Path:
    """A checkpoint folder from itself, or the newest one of a run's folder. Raises CheckpointError."""
    path = best_of(path)
    if (path / MANIFEST).is_file():
        return path
    for candidate in published(path):
        if not (reason := misnamed(candidate)):
            return candidate
        log.warning("%s is passed over: %s", candidate, reason)
    raise CheckpointError(f"{path}: neither a checkpoint nor the folder of a run with one")
