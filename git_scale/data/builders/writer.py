"""From samples to a folder of indexed tar shards, whole or not at all.

    read_coco(...) -> rows -> samples_of(rows) -> SampleToWrite | Skipped -> write_shards -> BuildReport

The bytes depend on the samples alone: no clock, user or process leaves a trace in a tar.
"""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from xxhash import xxh3_64_intdigest

from git_scale.data import index
from git_scale.data.builders.new_folder import new_shard_folder
from git_scale.data.indexing import scan
from git_scale.errors import DataError
from git_scale.files import replaced_atomically
from git_scale.progress import progress
from git_scale.stop import check_stop

log = logging.getLogger(__name__)

EXAMPLES = 5  # skipped things that a report names for each reason; the rest is counted
REPORT = "report.json"


@dataclass(frozen=True)
class SampleToWrite:
    """One image (or its clip too) and what is said about it; `text` becomes the sample's json."""

    image: bytes
    extension: str
    """Of the image and of every frame: jpg, png or webp."""
    text: dict[str, Any]
    frames: tuple[bytes, ...] = ()


class Skipped(NamedTuple):
    """Names something of the source that could not be used."""

    name: str
    reason: str
    unit: str = "image"
    """What it is: an image, caption, question, answer, annotation or class."""


class ChangedItem(Skipped):
    """Names something of the source of which a part could not be used; the rest was kept."""


@dataclass
class BuildReport:
    """Counts what a build wrote and what it left out."""

    samples: int = 0
    captions: int = 0
    distinct_captions: int = 0
    questions: int = 0
    answers: int = 0
    shards: int = 0
    bytes: int = 0
    """Of the tar files, their indexes not counted."""
    skipped: Counter[tuple[str, str]] = field(default_factory=Counter)
    """Number of skipped things by (unit, reason)."""
    changed: Counter[tuple[str, str]] = field(default_factory=Counter)
    """Of those that were kept in another form."""
    examples: dict[tuple[str, str], list[str]] = field(default_factory=dict)
    """The names of the first of them."""

    def skip(self, item: Skipped) -> None:
        kind = (item.unit, item.reason)
        counts = self.changed if isinstance(item, ChangedItem) else self.skipped
        counts[kind] += 1
        named = self.examples.setdefault(kind, [])
        if len(named) < EXAMPLES:
            named.append(item.name)

    def by_reason(self, counts: Counter[tuple[str, str]]) -> list[dict[str, Any]]:
        """The most frequent first: unit, reason, count, examples, share of all that came of that unit."""
        came = Counter(
            image=self.samples, caption=self.captions, question=self.questions, answer=self.answers
        )
        for (unit, _), count in self.skipped.items():
            came[unit] += count
        return [
            {
                "unit": unit,
                "reason": reason,
                "count": count,
                "share": count / came[unit],
                "examples": self.examples[unit, reason],
            }
            for (unit, reason), count in counts.most_common()
        ]

    def as_json(self) -> str:
        counts = {name: value for name, value in vars(self).items() if isinstance(value, int)}
        reasons = {"skipped": self.by_reason(self.skipped), "changed": self.by_reason(self.changed)}
        return json.dumps({**counts, **reasons}, indent=1) + "\n"


def describe_skipped(report: BuildReport) -> list[str]:
    """One line per reason for which something was left out, or changed."""
    return [
        f"{what} {row['count']} ({100 * row['share']:.1f} % of the {_plural(row['unit'])}): {row['reason']}:"
        f" {', '.join(map(repr, row['examples']))}"
        for what, counts in (("skipped", report.skipped), ("changed", report.changed))
        for row in report.by_reason(counts)
    ]


def _plural(unit: str) -> str:
    return f"{unit}es" if unit.endswith("s") else f"{unit}s"


def write_shards(
    samples: Iterable[SampleToWrite | Skipped],
    destination: Path,
    samples_per_shard: int = 1000,
    total: int | None = None,
    text_files: Mapping[str, str] | None = None,
) -> BuildReport:
    """Writes `destination`/NAME-000000.tar, ... (NAME is the folder's own) with their indexes; keys count up.

    report.json beside them holds the returned report. `total`: number of items to come, for the estimate of the
    time left. `text_files`: name -> content of others. Raises DataError when `destination` holds anything already,
    when no sample was usable, or when the disk is full, which leaves the complete shards and says where; Stopped
    when a stop was asked for.
    """
    report = BuildReport()
    with new_shard_folder(destination) as folder:
        usable = _usable(progress(samples, total, "sample"), report)
        for shard in _groups(usable, samples_per_shard):
            path = folder / f"{destination.resolve().name}-{report.shards:06d}.tar"
            report.bytes += _write_shard(path, shard, report.samples)
            report.samples += len(shard)
            report.shards += 1
        if not report.samples:
            reasons = "".join(f"\n  {line}" for line in describe_skipped(report))
            raise DataError(f"{destination}: nothing usable to write{reasons}")
        for name, content in (text_files or {}).items():
            with replaced_atomically(folder / name) as temporary:
                temporary.write_text(content, encoding="utf-8")
        _write_report(folder / REPORT, report)
    return report


def _usable(samples: Iterable[SampleToWrite | Skipped], report: BuildReport) -> Iterator[SampleToWrite]:
    """Passes samples on, and takes down the texts that go by and what is skipped."""
    seen: set[int] = set()  # hashes: the captions of a large data set would fill the memory
    for item in samples:
        check_stop()
        if isinstance(item, Skipped):
            report.skip(item)
            continue
        captions = item.text.get("captions", [])
        seen.update(map(hash, captions))
        report.captions += len(captions)
        report.distinct_captions = len(seen)
        questions = item.text.get("questions", [])
        report.questions += len(questions)
        report.answers += sum(len(question.get("answers", [])) for question in questions)
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
    """Writes one tar, and its index from what is read back; returns its size in bytes.

    Keys are numbers of nine digits from `first_key` on. Digests are those of the bytes that were meant.
    """
    import webdataset  # here alone: it takes torch along, which a command line need not wait for

    digests: dict[str, int] = {}
    with (
        replaced_atomically(path) as temporary,
        temporary.open("wb") as file,
    ):  # a full disk leaves no half of one
        with webdataset.TarWriter(file, encoder=False, mtime=0, user="git_scale", group="git_scale") as tar:
            for key, sample in enumerate(samples, start=first_key):
                members = _members(sample)
                tar.write({"__key__": f"{key:09d}", **members})
                digests |= {f"{key:09d}.{name}": xxh3_64_intdigest(data) for name, data in members.items()}
        size = file.tell()
    index.save(path, scan(path, digests))
    return size


def _members(sample: SampleToWrite) -> dict[str, bytes]:
    # backslashreplace: a half surrogate has no bytes, but JSON can spell it; it may stand in a file's name
    text = json.dumps(sample.text, ensure_ascii=False, sort_keys=True)
    frames = {f"{number}.{sample.extension}": frame for number, frame in enumerate(sample.frames)}
    return {sample.extension: sample.image, "json": text.encode("utf-8", "backslashreplace"), **frames}


def _write_report(path: Path, report: BuildReport) -> None:
    try:
        with replaced_atomically(path) as temporary:
            temporary.write_text(report.as_json(), encoding="utf-8")
    except OSError as error:  # the shards are there
        log.warning("%s: cannot be written: %s", path, error)
