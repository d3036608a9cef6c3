"""Tables of what a run names: its task, its objectives, ... A module under `plugins` of a recipe adds to them.

TASKS = Registry("data.task", {"caption": "git_scale.tasks.caption:CaptionTask"})
TASKS["caption"]                   the class, imported when it is asked for
TASKS.add("counting", Counting)    what a plugin does when it is imported
"""

from __future__ import annotations

import difflib
import importlib
import sys
import traceback
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Generic, TypeVar

from git_scale.errors import ConfigError

Entry = TypeVar("Entry")


class Registry(Generic[Entry]):
    """Finds entries by name. Those of the package stand as "module:attribute": a table imports none of them."""

    def __init__(self, key: str, places: Mapping[str, str], flaw_of: str = "") -> None:
        """`key`: of the configuration, under which a run gives a name; `flaw_of`: "module:function" that says what is
        wrong with an entry that was added, empty where it is sound."""
        self.key = key
        self._places = dict(places)
        self._flaw_of = flaw_of
        self._added: dict[str, Entry] = {}

    def __iter__(self) -> Iterator[str]:
        return iter([*self._places, *self._added])

    def __contains__(self, name: object) -> bool:
        return name in self._places or name in self._added

    def __getitem__(self, name: str) -> Entry:
        """Raises ConfigError, naming the nearest, for a name that is not there, and for an entry with a flaw."""
        if problem := self.problem_of(name):
            raise ConfigError([problem])
        if name in self._added:
            return self._added[name]
        entry: Entry = _attribute(self._places[name])
        return entry

    def add(self, name: str, entry: Entry) -> None:
        """Raises ValueError for a name that is taken."""
        if name in self:
            raise ValueError(f"{self.key}={name} is there already: give {entry!r} another name")
        self._added[name] = entry

    def problem_of(self, name: str) -> str:
        """Why `name` cannot be used; empty for one that is there."""
        if name in self._added and self._flaw_of:
            flaw = _attribute(self._flaw_of)(self._added[name])
            return f"{self.key}={name}: {flaw}" if flaw else ""
        if name in self:
            return ""
        return (
            f"{self.key}={name!r}: there is none of that name{did_you_mean(name, self)}; there are"
            f" {', '.join(self)}, and those of your own modules: plugins=[MODULE]"
        )


def _attribute(place: str) -> Any:
    module, _, name = place.partition(":")
    return getattr(importlib.import_module(module), name)


def lacks(entry: object, base: type, attributes: Iterable[str] = ()) -> str:
    """What a class that was added to a table lacks to be one of `base`; empty where it lacks nothing."""
    if not (isinstance(entry, type) and issubclass(entry, base)):
        return f"{entry!r} is no subclass of {base.__module__}.{base.__name__}"
    missing = [*sorted(base.__abstractmethods__ & entry.__abstractmethods__)]  # type: ignore[attr-defined]
    missing += [name for name in attributes if not hasattr(entry, name)]
    return f"{entry.__module__}.{entry.__name__} does not say {', '.join(missing)}" if missing else ""


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """The nearest of the known words as a question; empty where none is near."""
    match = nearest(word, known)
    return f"; did you mean {match}?" if match else ""


def nearest(word: str, known: Iterable[str]) -> str:
    """Of the known words; empty where none is near."""
    return next(iter(difflib.get_close_matches(word, list(known), n=1, cutoff=0.6)), "")


def import_plugins(modules: Iterable[str]) -> Iterator[str]:
    """Imports modules from PYTHONPATH or the working directory; what is wrong with them, each with its file."""
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.append(here)
    for name in modules:
        if not all(part.isidentifier() for part in name.split(".")) or name.endswith(".py"):
            yield (
                f"plugins: {name!r} is no module's name: mine stands for mine.py on PYTHONPATH or in {here},"
                " folder.mine for folder/mine.py there"
            )
            continue
        try:
            importlib.import_module(name)
        except (Exception, SystemExit) as error:  # whatever a user's module raises
            yield f"plugins: {name}: {type(error).__name__}: {_said_by(error, name)}"
            continue
        own = Path.cwd() / f"{name}.py"
        found = getattr(sys.modules[name], "__file__", None)
        if own.is_file() and (found is None or not own.samefile(found)):
            yield (
                f"plugins: {name} is {found or 'a module of Python itself'}, and {own} was not imported:"
                " give your file another name"
            )


def _said_by(error: BaseException, name: str) -> str:
    if isinstance(error, ModuleNotFoundError) and error.name == name.partition(".")[0]:
        nearest = did_you_mean(name, (file.stem for file in Path.cwd().glob("*.py")))
        return f"{error}: it lies neither on PYTHONPATH nor in {Path.cwd()}{nearest}"
    if isinstance(error, SyntaxError):
        return f"{error.msg} ({error.filename or f'{name}.py'}, line {error.lineno})"
    libraries = ("<frozen", sys.prefix, sys.base_prefix, str(Path(__file__).parent))
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if not frame.filename.startswith(libraries)]
    last = (own or frames)[-1]  # a plugin that is installed is a library itself
    return f"{error} ({last.filename}, line {last.lineno})"
