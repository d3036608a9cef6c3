"""Paths as users write them."""

from __future__ import annotations

import os
import re
from pathlib import Path


def expanded(text: str) -> str:
    """The path with `~`, `~user`, `$NAME` and `${NAME}` in the places of what they stand for.

    A shell does this for plain arguments, but not behind `key=`, within quotes or in a recipe. Raises ValueError for
    a user or a variable that is not there: it would become a folder of that name.
    """
    found = os.path.expandvars(os.path.expanduser(text))  # noqa: PTH111 - Path's drops a leading ./
    if found.startswith("~"):
        raise ValueError(f"{found.split('/')[0]} is nobody's home here; ./{found} is a file of that name")
    missing = re.search(r"\$(\w+|\{[^}]*\})", found)
    if missing and not Path(found).exists():
        raise ValueError(f"the variable {missing[0]} is not set")
    return found
