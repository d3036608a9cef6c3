"""How a run ended; the values are the exit codes of the training tools."""

from __future__ import annotations

from enum import IntEnum


class Outcome(IntEnum):
    """What tools/pretrain.py and tools/finetune.py end with; slurm/run.sh acts on it."""

    DONE = 0
    FAILED = 1
    REFUSED = 2  # something that the user gave, or a device that is too small: a message says what
    STOPPED = 75  # EX_TEMPFAIL: the same command goes on
    DATA_UNUSABLE = 76  # too many samples cannot be used: the same command goes on once the data is mended
