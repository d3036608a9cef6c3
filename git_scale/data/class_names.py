"""The file of data.class_names, which tools/prepare_data.py classes writes beside the shards: a class per line.

n01440764<TAB>tench     its key, by which a server knows it, and its name, which a model learns to say
goldfish                a name alone
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from git_scale.data.captions import clean_caption
from git_scale.errors import DataError
from git_scale.text_files import read_text

NAMES_FILE = "class_names.txt"


@dataclass(frozen=True)
class ClassKeys:
    """What a server calls the classes."""

    of_name: Mapping[str, str]

    @cached_property
    def known(self) -> frozenset[str]:
        return frozenset(self.of_name.values())


NO_KEYS = ClassKeys({})


def read_named_classes(path: Path) -> list[tuple[str, str]]:
    """(key, name) of each line with a name; the key is empty where the line has none.

    Raises OSError, or ValueError for a file that is no text.
    """
    pairs = []
    for line in read_text(path).splitlines():
        key, tab, name = line.partition("\t")
        if cleaned := clean_caption(name if tab else line):
            pairs.append((key.strip() if tab else "", cleaned))
    return pairs


def class_names_text(names: Mapping[str, str]) -> str:
    """The content of the file for names by their keys; line ends and tabs within a key become blanks."""
    return "".join(f"{' '.join(key.split())}\t{name}\n" for key, name in names.items())


def read_class_keys(path: Path | None) -> ClassKeys:
    """The keys by the names. Raises DataError where a name has none, or one that is no word or another name's too."""
    if path is None:
        raise DataError(
            "the server knows classes by their keys: set data.class_names=FILE, lines CLASS<TAB>NAME"
        )
    remedy = "build it with tools/prepare_data.py classes --names FILE, or write lines CLASS<TAB>NAME"
    try:
        pairs = read_named_classes(path)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise DataError(f"{path}: {reason}: the server knows classes by their keys; {remedy}") from None
    if not pairs:
        raise DataError(f"{path}: no class in it; {remedy}")
    names: dict[str, str] = {}
    for key, name in pairs:
        if len(key.split()) != 1:
            raise DataError(
                f"{path}: the server knows {name!r:.200} by one word, and its key is {key!r:.200}; {remedy}"
            )
        if (other := names.setdefault(key, name)) != name:
            raise DataError(f"{path}: {other!r:.200} and {name!r:.200} have one key, {key!r:.200}; {remedy}")
    return ClassKeys({name: key for key, name in pairs})
