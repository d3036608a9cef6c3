"""Two evaluations side by side: which is better, by how much, and how sure that is (paired bootstrap over images).

    compare_results(Path("results/a"), Path("results/b"))   ->  one row per metric, b - a with its 95 % interval

Both are folders that tools/evaluate.py wrote of the same samples. What was asked about one image is drawn together.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from git_scale.data.store import SampleStore, open_store
from git_scale.errors import DataError
from git_scale.evaluation.page import Card, write_page
from git_scale.formatting import format_table
from git_scale.metrics.intervals import intervals
from git_scale.text_files import read_json, read_json_lines

Said = dict[str, Any]
"""A line of predictions.jsonl."""
LARGEST = 1e100
"""No metric comes near it, and sums of such are finite."""
LAST_INDEX = 1 << 53
COUNTS = {"images", "texts"}
"""What every evaluation has, and what judges nothing."""


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and -LARGEST < value < LARGEST


FIELDS: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "index": ("the number of a sample", lambda value: type(value) is int and 0 <= value < LAST_INDEX),
    "key": ("a text", _is_text),
    "question": ("a text", _is_text),
    "generated": ("a text", _is_text),
    "references": ("a list of texts", lambda value: isinstance(value, list) and all(map(_is_text, value))),
    "values": (
        "an object of finite numbers",
        lambda value: isinstance(value, dict) and all(map(_is_number, value.values())),
    ),
}
"""What a line has at the least, and what each is."""


@dataclass(frozen=True)
class MetricDifference:
    """Says how two evaluations differ in one metric; the last four are None for one that is no mean of texts."""

    metric: str
    first: float
    second: float
    low: float | None = None
    high: float | None = None
    """The 95 % interval of second - first."""
    raised: int | None = None
    """Texts of which the second one's value is larger."""
    lowered: int | None = None

    @property
    def difference(self) -> float:
        return self.second - self.first

    @property
    def is_clear(self) -> bool:
        """Whether 0 lies outside the interval."""
        return self.low is not None and self.high is not None and not self.low <= 0 <= self.high


def compare_results(first: Path, second: Path) -> list[MetricDifference]:
    """One for each metric that both have, in the order of the first.

    Raises DataError for folders without results, for results of other samples, and for no metric in common.
    """
    return _differences(first, second, paired(first, second))


def _differences(first: Path, second: Path, pairs: list[tuple[Said, Said]]) -> list[MetricDifference]:
    ours, theirs = _metrics(first), _metrics(second)
    metrics = [name for name in ours if name in theirs]
    if not set(metrics) - COUNTS and (ours.keys() | theirs.keys()) - COUNTS:
        raise DataError(
            f"{second}: it has no metric of {first}: {_listed(theirs)} are other than {_listed(ours)}; compare"
            " evaluations of one task"
        )
    of_each = {metric: [_raise(metric, *pair) for pair in pairs] for metric in metrics}
    bounds = intervals(of_each, [said["index"] for said, _ in pairs])
    found = []
    for metric in metrics:
        both = MetricDifference(metric, ours[metric], theirs[metric])
        if metric in bounds:
            known = [value for value in of_each[metric] if value is not None]
            raised, lowered = sum(value > 0 for value in known), sum(value < 0 for value in known)
            both = MetricDifference(metric, both.first, both.second, *bounds[metric], raised, lowered)
        found.append(both)
    return found


def _raise(metric: str, first: Said, second: Said) -> float | None:
    """By how much the second's value of a text is higher; None where one of them has none."""
    values = first["values"].get(metric), second["values"].get(metric)
    return None if None in values else values[1] - values[0]


def paired(first: Path, second: Path) -> list[tuple[Said, Said]]:
    """What both said of each text. Raises DataError where one of them has other texts than the other."""
    sides = [
        {_name(said): said for said in _numbered(read_predictions(folder))} for folder in (first, second)
    ]
    if missing := [name for name in sides[0] if name not in sides[1]]:
        raise DataError(
            f"{second}: {len(missing)} of {len(sides[0])} texts of {first} are not in it, as {missing[0][0]!r}:"
            " compare evaluations of the same data"
        )
    if more := len(sides[1]) - len(sides[0]):
        raise DataError(
            f"{second}: it has {more} texts that {first} has not: compare evaluations of the same data"
        )
    pairs = [(said, sides[1][name]) for name, said in sides[0].items()]
    if other := [said["key"] for said, its in pairs if said["references"] != its["references"]]:
        raise DataError(
            f"{second}: {len(other)} of {len(pairs)} texts have other references than in {first}, as of {other[0]!r}:"
            " compare evaluations of the same data"
        )
    return pairs


def read_predictions(folder: Path) -> list[Said]:
    """The lines of predictions.jsonl, all that FIELDS say.

    Raises DataError for a folder without them, for an earlier form, and for a line that is damaged.
    """
    path = folder / "predictions.jsonl"
    try:
        lines = [line for _, line in read_json_lines(path)]
    except OSError as error:
        raise DataError(
            f"{path}: {error.strerror}: a folder that tools/evaluate.py wrote is needed"
        ) from None
    except ValueError as error:
        raise DataError(f"{path}: not readable: {error}") from None
    if not lines:
        raise DataError(f"{path}: no text in it, so that there is nothing to compare")
    if not all(isinstance(line, dict) and line.keys() >= FIELDS.keys() for line in lines):
        raise DataError(
            f"{path}: no values of metrics in it: evaluate again, it was written by an earlier version"
        )
    for number, line in enumerate(lines, start=1):
        for name, (what, is_such) in FIELDS.items():
            if not is_such(line[name]):
                raise DataError(
                    f"{path}: line {number}: its {name} is {json.dumps(line[name])[:80]}, and {what} is wanted:"
                    " evaluate again"
                )
    return lines


def describe_differences(first: Path, second: Path, found: list[MetricDifference]) -> str:
    """A table, and what of it is clear."""
    header, *rows = table_of(first, second, found)
    clear = ", ".join(item.metric for item in found if item.is_clear)
    return f"{format_table(rows, header)}\n\nbeyond chance at 95 %: {clear or 'nothing'}"


def table_of(first: Path, second: Path, found: list[MetricDifference]) -> list[tuple[str, ...]]:
    """The header and a row for each metric."""
    header = ("metric", str(first), str(second), "difference", "95 % interval", "texts higher / lower")
    rows = [
        (
            item.metric,
            f"{item.first:.4g}",
            f"{item.second:.4g}",
            f"{item.difference:+.4g}",
            "" if item.low is None else f"{item.low:+.4g} to {item.high:+.4g}",
            "" if item.raised is None else f"{item.raised} / {item.lowered}",
        )
        for item in found
    ]
    return [header, *rows]


def write_comparison(path: Path, first: Path, second: Path, data: Path | None) -> list[MetricDifference]:
    """compare_results, and a page of the texts in which they differ. `data`: shards of their images.

    Raises DataError for what compare_results does, for shards of others, and for a `path` that is a
    file of these folders.
    """
    _refuse_files_of(path, first, second, *([] if data is None else [data]))
    pairs = paired(first, second)
    found = _differences(first, second, pairs)
    store = None if data is None else _store_of(data, first, [said for said, _ in pairs])
    cards = [
        Card(
            a["index"],
            a["key"],
            a["question"],
            a["generated"],
            a["references"],
            {name: b["values"][name] - value for name, value in a["values"].items() if name in b["values"]},
            float(a["generated"] != b["generated"]),
            b["generated"],
        )
        for a, b in pairs
    ]
    write_page(path, f"{first} and {second}", cards, table_of(first, second, found), "they differ", store)
    return found


def _numbered(lines: list[Said]) -> list[Said]:
    """With the number of each among the texts of its key and question."""
    seen = Counter[tuple[str, str]]()
    numbered = []
    for line in lines:
        asked = (line["key"], line["question"])
        numbered.append({**line, "number": seen[asked]})
        seen[asked] += 1
    return numbered


def _name(said: Said) -> tuple[str, str, int]:
    return said["key"], said["question"], said["number"]


def _refuse_files_of(path: Path, *folders: Path) -> None:
    """A page of an earlier comparison may lie there, and be replaced."""
    is_page = path.suffix == ".html" and path.name != "page.html"
    if not is_page and path.exists():
        for folder in filter(Path.is_dir, folders):
            if any(file.exists() and path.samefile(file) for file in folder.iterdir()):
                raise DataError(f"--out {path}: it is a file of {folder}, which is compared: choose another")


def _store_of(data: Path, folder: Path, lines: Sequence[Said]) -> SampleStore:
    """The samples that the lines of an evaluation are about. Raises DataError where the shards hold others."""
    store = open_store(data)
    for said in lines:
        index = said["index"]
        there = repr(store.key(index)) if index < len(store) else f"none, there are {len(store)}"
        if there != repr(said["key"]):
            raise DataError(
                f"--data {data}: sample {index} is {there}, where {folder} has {said['key']!r}: give the shards"
                " that were evaluated"
            )
    return store


def _metrics(folder: Path) -> dict[str, float]:
    """Name -> value, all finite."""
    path = folder / "metrics.json"
    try:
        found = read_json(path)
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: not readable: {error}") from None
    if not isinstance(found, dict) or not found:
        raise DataError(f"{path}: no metrics in it: evaluate again")
    for name, value in found.items():
        if not name.startswith("eval/") or not _is_number(value):
            raise DataError(
                f"{path}: {name} is {json.dumps(value)[:80]}, and eval/NAME with a finite number is wanted"
            )
    return {name.removeprefix("eval/"): value for name, value in found.items()}


def _listed(metrics: dict[str, float]) -> str:
    return ", ".join(name for name in metrics if name not in COUNTS) or "none"
