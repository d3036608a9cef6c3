"""Paths as users write them, what lies there, and whether it can be written to."""

from __future__ import annotations

import errno
import os
import re
import stat
import tempfile
from pathlib import Path

ADDRESS = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://([^/]*)(.*)", re.DOTALL)
"""Scheme, machine and path of an address."""

_SPECIAL = {
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}
_OF_SHELLS = Path("/dev/fd")  # <(zcat captions.json.gz): a pipe with a writer


def expanded(text: str) -> str:
    """The path with `~`, `~user`, `$NAME` and `${NAME}` in the places of what they stand for.

    A shell does this for plain arguments, but not behind `key=`, within quotes or in a recipe. Raises ValueError for
    a user or a variable that is not there and for an address, which would become folders of that name, and for a
    link to itself.
    """
    if address := ADDRESS.fullmatch(text):
        raise ValueError(
            f"an address of {address[1]}://, where a path of this machine is needed{_mounted(address)}"
        )
    found = os.path.expandvars(os.path.expanduser(text))  # noqa: PTH111 - Path's drops a leading ./
    if found.startswith("~") and not Path(found).exists():
        raise ValueError(f"{found.split('/')[0]} is nobody's home here; ./{found} is a file of that name")
    missing = re.search(r"\$(\w+|\{[^}]*\})", found)
    if missing and not Path(found).exists():
        raise ValueError(f"the variable {missing[0]} is not set")
    if _leads_nowhere(found):
        raise ValueError("a link that leads to itself; remove it or give another path")
    return found


def _leads_nowhere(text: str) -> bool:
    try:
        Path(text).stat()
    except (OSError, ValueError) as error:
        return getattr(error, "errno", None) == errno.ELOOP
    return False


def special_kind(path: Path) -> str:
    """`a named pipe`, on which a read would wait without an end, `a device` or `a socket`, links followed.

    Empty for a file, a folder, what is not there, and a pipe that a shell has made of `<(command)`.
    """
    try:
        kind = _SPECIAL.get(stat.S_IFMT(path.stat().st_mode), "")
    except (OSError, ValueError):
        return ""
    return "" if path.parent == _OF_SHELLS else kind


def problem_of_file(place: Path) -> str:
    """Why no file can be written at `place`, with the remedy; empty when one can. One that is there is replaced."""
    if place.is_dir():
        return "is a folder: name a file in it"
    if kind := special_kind(place):
        return f"is {kind}, which a file would take the place of: name a file"
    return _problem_within(place.absolute().parent)


def problem_of_folder(place: Path) -> str:
    """Why nothing can be written in a folder at `place`, with the remedy; empty when it can."""
    if place.exists() and not place.is_dir():
        return "is a file: name a folder"
    return _problem_within(place.absolute())


def _problem_within(folder: Path) -> str:
    """Tried in the nearest folder that is there, with a file that has no name and leaves nothing."""
    try:
        while not folder.exists():
            folder = folder.parent
        with tempfile.TemporaryFile(dir=folder, buffering=0) as probe:
            probe.write(b"x")
    except OSError as error:
        return f"cannot be written: {folder}: {error.strerror}; choose another place"
    return ""


def _mounted(address: re.Match[str]) -> str:
    if address[1].lower() == "file" and address[2] in ("", "localhost"):
        return f": write {address[3]}"
    return ": copy it here, or mount it and name the folder"
