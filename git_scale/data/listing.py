"""Which tar shards lie in a folder and in the folders below, by their names.

    data/train/cc12m/00000.tar       ->  names: cc12m/00000.tar
    data/train/coco-000000.tar                  coco-000000.tar

A name is the path below the folder, with `/` between its parts. Hidden folders are not entered; links are followed.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from git_scale.data.index import SUFFIX
from git_scale.errors import DataError
from git_scale.paths import special_kind

PARTIAL = ".partial"  # the name of a folder that a build still writes to ends so
MAKER = "tools/prepare_data.py makes"
_OTHER_ARCHIVE = re.compile(r"\.(TAR|tar\.\w+|tgz|tbz2?|txz|zip|parquet)$")


class ShardListing(NamedTuple):
    """Lists shards. `names`: in their order. `indexed`: those of them that have a file of an index beside them."""

    root: Path
    """What was listed: a folder, or a shard alone."""
    folder: Path
    """Which the names are below."""
    names: list[str]
    indexed: set[str]
    unread: str
    """What looks like data and is not read, and what to do; empty for nothing."""

    @property
    def is_folder(self) -> bool:
        return self.root == self.folder

    def path(self, number: int) -> Path:
        return self.folder / self.names[number]

    @property
    def paths(self) -> list[Path]:
        return [self.folder / name for name in self.names]


def problem_of_shards(path: Path) -> str:
    """Why there are no shards to open, and what to do; empty when there are."""
    if path.is_file() and path.suffix == ".tar":
        return ""
    if not path.is_dir():
        return f"{special_kind(path) or 'no such folder of tar shards'}; {MAKER} one"
    others, unfinished = list[str](), ""
    for below, entry in walk(path):
        if entry.name.endswith(".tar"):
            return ""
        if _OTHER_ARCHIVE.search(entry.name):
            others.append(below + entry.name)
        if _is_unfinished(entry.name):
            unfinished = below + entry.name
    if unfinished:
        return _wait_for(unfinished)
    return f"no *.tar inside; {_other_archives(others) or f'{MAKER} them'}"


def list_shards(path: Path) -> ShardListing:
    """The .tar files below a folder, or the one that `path` is. Raises DataError when there is none."""
    if problem := problem_of_shards(path):
        raise DataError(f"{path}: {problem}")
    if path.is_file():
        has_index = Path(f"{path}{SUFFIX}").exists()
        return ShardListing(path, path.parent, [path.name], {path.name} if has_index else set(), "")
    names, indexed, others, special = list[str](), set[str](), list[str](), list[str]()
    for below, entry in walk(path):
        name = below + entry.name
        if name.endswith(".tar"):
            names.append(name)
            if not entry.is_file() and (kind := special_kind(path / name)):
                special.append(f"{name} is {kind}")
        elif name.endswith(".tar" + SUFFIX):
            indexed.add(name.removesuffix(SUFFIX))
        elif _is_unfinished(entry.name):
            raise DataError(f"{path}: {_wait_for(name)}")
        elif _OTHER_ARCHIVE.search(name):
            others.append(name)
    if special:
        raise DataError(f"{path}: {', '.join(sorted(special))}; move it away, shards are files")
    return ShardListing(path, path, sorted(names), indexed, _other_archives(others))


def walk(folder: Path) -> Iterator[tuple[str, os.DirEntry[str]]]:
    """Every entry below a folder, with the path to it (`a/b/`); links that lead back up are not followed."""
    top = folder.stat()
    waiting: list[tuple[str, frozenset[tuple[int, int]]]] = [("", frozenset({(top.st_dev, top.st_ino)}))]
    while waiting:
        below, above = waiting.pop()
        try:
            with os.scandir(folder / below) as entries:
                for entry in entries:
                    yield below, entry
                    if not entry.name.startswith(".") and not entry.name.endswith(".tar") and _is_dir(entry):
                        found = entry.stat()
                        place = found.st_dev, found.st_ino
                        if place not in above:
                            waiting.append((f"{below}{entry.name}/", above | {place}))
        except OSError as error:
            raise DataError(f"{folder / below}: cannot be read: {error.strerror}") from None


def _is_dir(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link that leads to itself
        return False


def _is_unfinished(name: str) -> bool:
    return name.startswith(".") and name.endswith(PARTIAL)


def _wait_for(unfinished: str) -> str:
    return f"a build into it is running or was cut off ({unfinished}); wait, or build it anew"


def _other_archives(names: list[str]) -> str:
    if not names:
        return ""
    return f"{len(names)} other archives are not read (e.g. {min(names)}): unpack them to .tar"
