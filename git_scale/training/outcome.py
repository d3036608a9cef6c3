"""What a step did, and how a run ended."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum


class RunOutcome(IntEnum):
    """Says how a run ended: the exit codes of tools/pretrain.py and tools/finetune.py; slurm/run.sh acts on them."""

    DONE = 0
    FAILED = 1
    REFUSED = 2  # something that the user gave, or a device that is too small: a message says what
    STOPPED = 75  # EX_TEMPFAIL: the same command goes on
    DATA_UNUSABLE = 76  # too many samples cannot be used: the same command goes on once the data is mended


@dataclass(frozen=True)
class StepResult:
    """Holds what one optimizer step did over all ranks."""

    loss: float
    """The weighted sum of the objectives; of a language model the mean over the target tokens of the global batch."""
    terms: dict[str, float]
    """Each objective's part of it."""
    grad_norm: float
    skipped: bool
    targets: int
    bad_samples: int
    stop: bool
    """Some rank was asked to stop, or too many samples cannot be used."""
