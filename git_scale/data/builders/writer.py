"""From samples to a folder of indexed tar shards, whole or not at all.

    read_coco(...) -> rows -> samples_of(rows) -> SampleToWrite | Skipped -> write_shards -> BuildReport

The bytes depend on the samples alone: no clock, user or process leaves a trace in a tar.
"""

from __future__ import annotations

import json
import os
import shutil
import uuid
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import webdataset
from tqdm import tqdm  # deepspeed and timm both bring it

from git_scale.data.shards import open_shards
from git_scale.errors import DataError

EXAMPLES = 10  # skipped things that a report names; the rest is counted


@dataclass(frozen=True)
class SampleToWrite:
    """One picture (or its clip too) and what is said about it; `text` becomes the sample's json."""

    image: bytes
    extension: str
    """Of the image and of every frame: jpg, png or webp."""
    text: dict[str, Any]
    frames: tuple[bytes, ...] = ()


class Skipped(NamedTuple):
    """Something of the source that could not be used."""

    name: str
    reason: str


@dataclass
class BuildReport:
    """What a build wrote and what it left out."""

    samples: int = 0
    captions: int = 0
    distinct_captions: int = 0
    questions: int = 0
    shards: int = 0
    bytes: int = 0
    """Of the tar files, their indexes not counted."""
    skipped: Counter[str] = field(default_factory=Counter)
    """Number of skipped things by reason."""
    examples: list[Skipped] = field(default_factory=list)
    """The first of them."""

    def skip(self, item: Skipped) -> None:
        self.skipped[item.reason] += 1
        if len(self.examples) < EXAMPLES:
            self.examples.append(item)


def write_shards(
    samples: Iterable[SampleToWrite | Skipped],
    destination: Path,
    samples_per_shard: int = 1000,
    total: int | None = None,
) -> BuildReport:
    """Writes `destination`/NAME-000000.tar, ... (NAME is the folder's own) with their indexes; keys count up.

    `total`: number of items to come, for the estimate of the time left.
    Raises DataError when `destination` holds anything already, or when no sample was usable.
    """
    report = BuildReport()
    with new_folder(destination) as folder:
        usable = _usable(tqdm(samples, total=total, unit="sample", mininterval=2), report)
        for shard in _groups(usable, samples_per_shard):
            path = folder / f"{destination.resolve().name}-{report.shards:06d}.tar"
            report.bytes += _write_shard(path, shard, report.samples)
            report.samples += len(shard)
            report.shards += 1
        if not report.samples:
            raise DataError(f"{destination}: nothing usable to write{_first_reasons(report)}")
        open_shards(folder)  # reads every tar back and leaves the indexes
    return report


@contextmanager
def new_folder(destination: Path) -> Iterator[Path]:
    """A folder beside `destination` that takes its name at the end, and vanishes when anything goes wrong.

    Raises DataError when `destination` is a file, holds anything already or cannot be made.
    """
    destination = destination.resolve()  # a link to a scratch disk stays a link
    if destination.is_file() or (destination.is_dir() and any(destination.iterdir())):
        raise DataError(f"{destination}: exists already and is not empty; remove it or choose another folder")
    folder = destination.with_name(f"{destination.name}.tmp-{uuid.uuid4().hex[:12]}")
    try:
        folder.mkdir(parents=True)
    except OSError as error:
        raise DataError(f"{destination}: cannot be made: {error.strerror}; choose another folder") from None
    try:
        yield folder
        folder.replace(destination)  # an empty folder in its place is replaced
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


def _usable(samples: Iterable[SampleToWrite | Skipped], report: BuildReport) -> Iterator[SampleToWrite]:
    """Passes samples on, and takes down the texts that go by and what is skipped."""
    seen: set[int] = set()  # hashes: the captions of a large data set would fill the memory
    for item in samples:
        if isinstance(item, Skipped):
            report.skip(item)
            continue
        captions = item.text.get("captions", [])
        seen.update(map(hash, captions))
        report.captions += len(captions)
        report.distinct_captions = len(seen)
        report.questions += len(item.text.get("questions", []))
        yield item


def _groups(samples: Iterator[SampleToWrite], size: int) -> Iterator[list[SampleToWrite]]:
    group: list[SampleToWrite] = []
    for sample in samples:
        group.append(sample)
        if len(group) == size:
            yield group
            group = []
    if group:
        yield group


def _write_shard(path: Path, samples: list[SampleToWrite], first_key: int) -> int:
    """Writes one tar and returns its size in bytes; keys are numbers of nine digits from `first_key` on."""
    with path.open("wb") as file:
        with webdataset.TarWriter(file, encoder=False, mtime=0, user="git_scale", group="git_scale") as tar:
            for key, sample in enumerate(samples, start=first_key):
                tar.write({"__key__": f"{key:09d}", **_members(sample)})
        file.flush()
        os.fsync(file.fileno())
        return file.tell()


def _members(sample: SampleToWrite) -> dict[str, bytes]:
    # replace: a half surrogate, which JSON sources can smuggle in, has no bytes
    text = json.dumps(sample.text, ensure_ascii=False, sort_keys=True)
    frames = {f"{number}.{sample.extension}": frame for number, frame in enumerate(sample.frames)}
    return {sample.extension: sample.image, "json": text.encode("utf-8", "replace"), **frames}


def _first_reasons(report: BuildReport) -> str:
    return "".join(f"\n  {name!r}: {reason}" for name, reason in report.examples)
