"""What lies where in a run's folder, and when a checkpoint counts as one.

    RUN_DIR/config.yaml                       the resolved recipe
    RUN_DIR/checkpoints/best.json             step, metric and value of the best evaluation (checkpoint.best)
    RUN_DIR/checkpoints/best                  link to that step's checkpoint
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
import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml

from git_scale.errors import CheckpointError
from git_scale.files import FileDigest, digest, replaced_atomically

FORMAT_VERSION = 1
MANIFEST = "manifest.json"
PROGRESS = "progress.json"
CONFIG = "config.yaml"
STATE_FOLDER = "state"
RANK_FILES = "rank_*.safetensors"
BEST, BEST_FILE = "best", "best.json"
LOWER_IS_BETTER = ("loss",)  # metrics of checkpoint.best; of all others a higher value is better


@dataclass(frozen=True)
class Best:
    """The evaluation whose checkpoint is kept beside the newest ones."""

    step: int
    metric: str
    value: float
    loss: float | None = None
    """Held-out loss of the same evaluation; None where there was none."""

    def beats(self, other: Best | None) -> bool:
        """Whether this later evaluation takes the other's place: among equal values the lower held-out loss does.

        So does the later step when the loss is the same as well. A value that is not finite never does.
        """
        if not math.isfinite(self.value):
            return False
        return other is None or other.metric != self.metric or self._rank() >= other._rank()

    def _rank(self) -> tuple[float, float]:
        value = -self.value if self.metric in LOWER_IS_BETTER else self.value
        return value, -(math.inf if self.loss is None else self.loss)


@dataclass(frozen=True)
class Progress:
    """Where a run stands; with weights, optimizer state and random state all that is needed to go on."""

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
    """Of a rank's share of the state, or of a data-parallel rank's random state."""
    return f"rank_{rank:05d}.safetensors"


def published(run_dir: Path) -> list[Path]:
    """The complete checkpoints of a run, newest first."""
    return sorted(checkpoints_folder(run_dir).glob("step_????????"), reverse=True)


def manifest_text(digests: Iterable[FileDigest]) -> str:
    return json.dumps({"version": FORMAT_VERSION, "files": [asdict(item) for item in digests]}, indent=1)


def read_manifest(checkpoint: Path) -> list[FileDigest]:
    """Raises CheckpointError when the folder is no checkpoint or its manifest is unreadable."""
    path = checkpoint / MANIFEST
    try:
        tree = json.loads(path.read_text(encoding="utf-8"))
        if tree["version"] != FORMAT_VERSION:
            raise CheckpointError(
                f"{checkpoint}: format {tree['version']}, this git_scale reads {FORMAT_VERSION}"
            )
        return [FileDigest(**item) for item in tree["files"]]
    except FileNotFoundError:
        raise CheckpointError(f"{checkpoint}: no checkpoint here ({MANIFEST} is missing)") from None
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path}: damaged: {error}") from None


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


def read_progress(checkpoint: Path) -> Progress:
    tree: dict[str, Any] = json.loads((checkpoint / PROGRESS).read_text(encoding="utf-8"))
    return Progress(**tree)


def read_config(checkpoint: Path) -> dict[str, Any]:
    tree: dict[str, Any] = yaml.safe_load((checkpoint / CONFIG).read_text(encoding="utf-8"))
    return tree


def read_best(run_dir: Path) -> Best | None:
    """None where none was marked, or where its checkpoint is gone."""
    folder = checkpoints_folder(run_dir)
    try:
        best = Best(**json.loads((folder / BEST_FILE).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None
    return best if (folder / step_name(best.step)).is_dir() else None


def write_best(run_dir: Path, best: Best) -> None:
    folder = checkpoints_folder(run_dir)
    link = folder / f".{BEST}.tmp"
    link.unlink(missing_ok=True)
    link.symlink_to(step_name(best.step), target_is_directory=True)
    link.replace(folder / BEST)
    with replaced_atomically(folder / BEST_FILE) as temporary:
        temporary.write_text(json.dumps(asdict(best)), encoding="utf-8")


def find_checkpoint(path: Path) -> Path:
    """A checkpoint folder from itself, or the newest one of a run's folder. Raises CheckpointError."""
    if (path / MANIFEST).is_file():
        return path
    if candidates := published(path):
        return candidates[0]
    raise CheckpointError(f"{path}: neither a checkpoint nor the folder of a run with one")
