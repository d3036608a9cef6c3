"""Where scalars, images and texts of a run go: TensorBoard, JSON lines, the console, a folder, or nowhere.

    RUN_DIR/tensorboard/                    everything
    RUN_DIR/metrics.jsonl                   scalars and texts, one object per line
    RUN_DIR/pictures/step_00000100.png      contact sheets; step_00000100_NAME.png: of a source

`build_writers` gives the writing rank all of them and every other rank a `NullWriter`: the loop asks no rank. No disk
that is full or gone ends a run here: records wait in memory (git_scale/files.py).
"""

from __future__ import annotations

import io
import json
import logging
import math
import os
import socket
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from PIL import Image
from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.summary.writer.record_writer import RecordWriter
from torch.utils.tensorboard import summary

from git_scale.files import AppendedFile, replaced_atomically
from git_scale.monitoring.console import format_progress, format_values

logger = logging.getLogger(__name__)

METRICS = "metrics.jsonl"
EVENT_VERSION = "brain.Event:2"  # what TensorBoard asks the first event of a file for


class LogWriter(Protocol):
    """Takes what a step has to show; names are `section/name`, pictures' `section` or `section/source`."""

    def scalars(self, step: int, values: dict[str, float]) -> None: ...

    def pictures(self, step: int, name: str, sheet: Image.Image) -> None: ...

    def text(self, step: int, name: str, text: str) -> None: ...

    def close(self) -> None: ...


class NullWriter:
    """Writes nothing, and is the base of those that write some things only."""

    def scalars(self, step: int, values: dict[str, float]) -> None:
        pass

    def pictures(self, step: int, name: str, sheet: Image.Image) -> None:
        pass

    def text(self, step: int, name: str, text: str) -> None:
        pass

    def close(self) -> None:
        pass


class TensorBoardWriter(NullWriter):
    """Event files; points of an earlier process at `purge_step` or later disappear from the curves.

    torch's SummaryWriter writes from a thread, which the first full disk ends: the run then waits for it without end.
    """

    def __init__(self, log_dir: Path, purge_step: int) -> None:
        name = f"events.out.tfevents.{time.time():.6f}.{socket.gethostname()}.{os.getpid()}"
        self._file = AppendedFile(log_dir / name)
        start = SessionLog(status=SessionLog.START)
        self._append([Event(file_version=EVENT_VERSION), Event(step=purge_step, session_log=start)])

    def scalars(self, step: int, values: dict[str, float]) -> None:
        self._append([Event(step=step, summary=summary.scalar(*item)) for item in values.items()])

    def pictures(self, step: int, name: str, sheet: Image.Image) -> None:
        picture = summary.image(name, np.array(sheet.convert("RGB")), dataformats="HWC")
        self._append([Event(step=step, summary=picture)])

    def text(self, step: int, name: str, text: str) -> None:
        self._append([Event(step=step, summary=summary.text(name, text))])

    def close(self) -> None:
        self._file.close()

    def _append(self, events: list[Event]) -> None:
        records = io.BytesIO()
        writer = RecordWriter(records)
        for event in events:
            event.wall_time = time.time()
            writer.write(event.SerializeToString())
        self._file.append(records.getvalue())


class JsonlWriter(NullWriter):
    """One JSON object per line with `step` and `time` (Unix seconds); a value that is not finite is null.

    Lines of an earlier process after `resume_step`, and a line that it left unfinished, are dropped first.
    """

    def __init__(self, path: Path, resume_step: int) -> None:
        self._file = AppendedFile(
            path, lambda path: _keep_lines(path, resume_step) if path.exists() else None
        )

    def scalars(self, step: int, values: dict[str, float]) -> None:
        finite = {name: value if math.isfinite(value) else None for name, value in values.items()}
        self._append({"step": step, "time": time.time(), **finite})

    def text(self, step: int, name: str, text: str) -> None:
        self._append({"step": step, "time": time.time(), name: text})

    def close(self) -> None:
        self._file.close()

    def _append(self, line: dict[str, Any]) -> None:
        self._file.append(json.dumps(line, allow_nan=False).encode() + b"\n")


class ConsoleWriter(NullWriter):
    """One readable line per call: progress of training, or the values of anything else."""

    def __init__(self, total_steps: int, emit: Callable[[str], None] = logger.info) -> None:
        self.total_steps = total_steps
        self.emit = emit

    def scalars(self, step: int, values: dict[str, float]) -> None:
        is_training = "train/loss" in values
        line = format_progress(step, self.total_steps, values) if is_training else format_values(step, values)
        self.emit(line)

    def text(self, step: int, name: str, text: str) -> None:
        self.emit(f"step {step:,} {name}: {text}")


class PngWriter(NullWriter):
    """One PNG per step and name, whole or not at all; a second sheet of the same replaces the first.

    The file of `heldout/coco/train` is step_00000100_coco%2Ftrain.png, which no other name has.

    A sheet that cannot be written is lost: the first one is said, and their number at the end.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._lost = 0

    def pictures(self, step: int, name: str, sheet: Image.Image) -> None:
        source = name.partition("/")[2].replace("%", "%25").replace("/", "%2F")
        file = f"step_{step:08d}{'_' if source else ''}{source}.png"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with replaced_atomically(self.folder / file) as temporary:
                sheet.save(temporary, format="PNG")
        except OSError as error:
            if not self._lost:
                logger.warning(
                    "%s: step %d cannot be written: %s; training goes on", self.folder, step, error
                )
            self._lost += 1

    def close(self) -> None:
        if self._lost:
            logger.error("%s: %d sheets could not be written and are lost", self.folder, self._lost)


class WriterGroup:
    """Hands everything to each of its writers; closes all of them even when one fails."""

    def __init__(self, writers: Sequence[LogWriter]) -> None:
        self.writers = writers

    def scalars(self, step: int, values: dict[str, float]) -> None:
        for writer in self.writers:
            writer.scalars(step, values)

    def pictures(self, step: int, name: str, sheet: Image.Image) -> None:
        for writer in self.writers:
            writer.pictures(step, name, sheet)

    def text(self, step: int, name: str, text: str) -> None:
        for writer in self.writers:
            writer.text(step, name, text)

    def close(self) -> None:
        with ExitStack() as stack:
            for writer in self.writers:
                stack.callback(writer.close)


def build_writers(run_dir: Path, total_steps: int, is_writer: bool, resume_step: int) -> LogWriter:
    """All writers on the one rank that writes, a NullWriter elsewhere; resume_step is 0 for a fresh start."""
    if not is_writer:
        return NullWriter()
    return WriterGroup(
        [
            ConsoleWriter(total_steps),
            JsonlWriter(run_dir / METRICS, resume_step),
            TensorBoardWriter(run_dir / "tensorboard", purge_step=resume_step + 1),
            PngWriter(run_dir / "pictures"),
        ]
    )


def read_evaluations(run_dir: Path) -> list[dict[str, Any]]:
    """The lines of all evaluations in metrics.jsonl, oldest first."""
    path = run_dir / METRICS
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines() if path.exists() else []
    found = [json.loads(line) for line in lines if _step_of(line) is not None]
    return [
        line
        for line in found
        if any(name.startswith("eval/") and not isinstance(value, str) for name, value in line.items())
    ]


def _keep_lines(path: Path, last_step: int) -> None:
    """Rewrites the file with its lines up to `last_step`."""
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    steps = [_step_of(line) for line in lines]
    if broken := steps.count(None):
        logger.warning("%s: dropped %d lines that are no JSON objects with a step", path, broken)
    kept = [line for line, step in zip(lines, steps, strict=True) if step is not None and step <= last_step]
    with replaced_atomically(path) as temporary:
        temporary.write_text("".join(f"{line}\n" for line in kept), encoding="utf-8")


def _step_of(line: str) -> int | None:
    try:
        step = json.loads(line)["step"]
    except (ValueError, TypeError, KeyError):
        return None
    return step if isinstance(step, int) else None
