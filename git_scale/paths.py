"""Paths as users write them, and what lies there."""

from __future__ import annotations

import errno
import os
import re
import stat
from pathlib import Path

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
    a user or a variable that is not there, which would become a folder of that name, and for a link to itself.
    """
    found = os.path.expandvars(os.path.expanduser(text))  # noqa: PTH111 - Path's drops a leading ./
    if found.startswith("~"):
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
