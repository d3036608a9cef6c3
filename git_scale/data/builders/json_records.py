"""Records in other people's JSON: lists of objects whose values are looked at before they are used."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from git_scale.data.captions import HALVES
from git_scale.errors import DataError
from git_scale.text_files import named, read_json

Id = int | str


def read_value(path: Path) -> Any:
    """What a JSON file holds. Raises DataError for one that is none, or of which an object gives a key twice."""
    try:
        return read_json(path)
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: not a readable JSON file: {error}") from None


def read_object(path: Path) -> dict[str, Any]:
    """The JSON object in a file. Raises DataError as `read_value`, MalformedRecordError for another value."""
    tree = read_value(path)
    if not isinstance(tree, dict):
        raise MalformedRecordError(f"it holds {kind_of(tree)}, not an object")
    return tree


def read_list(path: Path, name: str) -> list[tuple[str, dict[str, Any]]]:
    """The objects of the JSON list in a file, each with its place, "questions[3]" where they are called `name`.

    Raises DataError as `read_value`, MalformedRecordError for another value.
    """
    tree = read_value(path)
    if not isinstance(tree, list):
        keys = f" of {named(tree)}" if isinstance(tree, dict) else ""
        raise MalformedRecordError(f"it holds {kind_of(tree)}{keys}, not a list")
    return records_of({name: tree}, name)


class MalformedRecordError(Exception):
    """A record without the form of its format; `expecting` adds the file and what it is to hold."""


@contextmanager
def expecting(path: Path, what: str, form: str) -> Iterator[None]:
    """A malformed record within the block is a DataError: "PATH: not WHAT (no data, but 'x'); expected FORM"."""
    try:
        yield
    except MalformedRecordError as error:
        raise DataError(f"{path}: not {what} ({error}); expected {form}") from None


def records_of(tree: dict[str, Any], key: str, within: str = "") -> list[tuple[str, dict[str, Any]]]:
    """The objects of the list `tree[key]`, each with its place, "annotations[3]". Raises MalformedRecordError.

    `within`: the place of the tree where it is a record itself, "data[7]"; theirs are then "data[7].answers[3]".
    """
    _check_has(tree, key, within)
    name = f"{within}.{key}" if within else key
    if not isinstance(tree[key], list):
        raise MalformedRecordError(f"{name} is {kind_of(tree[key])}, not a list")
    records = [(f"{name}[{number}]", record) for number, record in enumerate(tree[key])]
    for place, record in records:
        if not isinstance(record, dict):
            raise MalformedRecordError(f"{place:.200} is {kind_of(record)}, not an object")
    return records


def object_of(tree: dict[str, Any], key: str) -> dict[str, Any]:
    """The object `tree[key]`. Raises MalformedRecordError."""
    _check_has(tree, key)
    if not isinstance(value := tree[key], dict):
        raise MalformedRecordError(f"{key} is {kind_of(value)}, not an object")
    return value


def _check_has(tree: dict[str, Any], key: str, within: str = "") -> None:
    if key not in tree:
        found = named(map(repr, tree)) or "nothing"
        raise MalformedRecordError(
            f"{within:.200} has no {key}, but {found}" if within else f"no {key}, but {found}"
        )


def value_of(place: str, record: dict[str, Any], key: str) -> Any:
    """`record[key]`, of any kind. Raises MalformedRecordError when it is missing."""
    if key not in record:
        raise MalformedRecordError(f"{place:.200} has no {key}")
    return record[key]


def id_of(place: str, record: dict[str, Any], key: str) -> Id:
    """A number or text that identifies. Raises MalformedRecordError otherwise: 1, 1.0 and true would be one key."""
    value = value_of(place, record, key)
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise MalformedRecordError(f"{place:.200}.{key} is {kind_of(value)}, not an integer or a text")
    if isinstance(value, str) and HALVES.search(value):
        raise MalformedRecordError(
            f"{place:.200}.{key} is {value!r:.200}, with half a character (a lone surrogate)"
        )
    return value


def is_true(place: str, record: dict[str, Any], key: str) -> bool:
    """Whether `record[key]` is true or 1; one that is missing is not. Raises MalformedRecordError for a text."""
    value = record.get(key, False)
    if value not in (True, False):  # 1 and 0 are equal to them
        raise MalformedRecordError(
            f"{place:.200}.{key} is {kind_of(value)}, {value!r:.60}, not true or false"
        )
    return bool(value)


def segment_of(place: str, record: dict[str, Any], key: str) -> tuple[float, float]:
    """A beginning and an end in seconds. Raises MalformedRecordError for anything else."""
    value = value_of(place, record, key)
    numbers = [second for second in value if type(second) in (int, float)] if isinstance(value, list) else []
    if len(numbers) != 2 or len(value) != 2 or not 0 <= numbers[0] <= numbers[1] <= sys.float_info.max:
        raise MalformedRecordError(f"{place:.200}.{key} is {value!r:.60}, not [start, end] in seconds")
    return float(numbers[0]), float(numbers[1])


def not_text(key: str, value: object) -> str:
    """The reason for which a value that should be a text is left out."""
    return f"{key} is not text ({kind_of(value)})"


def kind_of(value: object) -> str:
    """A JSON value's kind, as a user would name it."""
    if value is None:
        return "null"
    kinds = {bool: "true or false", int: "a number", float: "a number", str: "a text", list: "a list"}
    return kinds.get(type(value), "an object")
