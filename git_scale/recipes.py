"""A run from a recipe (YAML) and `section.key=value` on top, with every mistake reported at once.

Layers: the defaults of `git_scale/config.py`, the model of a checkpoint that the run starts from, a recipe from
`git_scale/configs/` (or any YAML file), overrides.
"""

from __future__ import annotations

import copy
import logging
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from git_scale.config import RunConfig
from git_scale.contradictions import contradictions
from git_scale.errors import ConfigError, UserError
from git_scale.paths import expanded
from git_scale.recipe_files import WHOLE, laid_over, read_recipe
from git_scale.registry import did_you_mean, import_plugins, nearest
from git_scale.upgrades import FORMER_KEYS, upgraded
from git_scale.yaml_tree import NoValueError, read_text, read_tree, text_kind, type_of

log = logging.getLogger(__name__)

SHOWN = 200  # characters of an override, in a message
A_LIST, A_MAPPING = "a list is wanted: [a, b]", "a mapping is wanted: {key: value}"
WANTED = {"list_type": A_LIST, "tuple_type": A_LIST, "dict_type": A_MAPPING, "model_type": A_MAPPING}

Start = Callable[[str, str], dict[str, Any]]
"""(init_from or continue_from, run_dir) -> the part of the tree that a checkpoint decides: model and tokenizer."""


def load_run(recipe: str, overrides: Iterable[str] = (), start: Start | None = None) -> RunConfig:
    """The run of a recipe name (`git_base`) or YAML path, with `section.key=value` overrides.

    `start` is asked for what lies below the recipe when the run has an `init_from` or a `continue_from`.
    Raises ConfigError with every problem at once; an unknown key is answered with the nearest known one.
    """
    run, problems = draft_run(recipe, overrides, start)
    if problems:
        raise ConfigError(problems)
    return run


def draft_run(
    recipe: str, overrides: Iterable[str] = (), start: Start | None = None
) -> tuple[RunConfig, list[str]]:
    """As load_run, and what is wrong with it: the run then has defaults in the places of what cannot be used.

    Raises ConfigError for a recipe that cannot be read at all.
    """
    tree, problems = read_recipe(recipe)
    before, given = copy.deepcopy(tree), dict[str, str]()
    for text in overrides:
        problems += _apply(tree, text, given)
    _say_what_is_dropped(before, tree)
    problems += _left_behind(before, tree, given)
    # What a run goes on from has in it what it began from.
    key = "continue_from" if tree.get("continue_from") else "init_from"
    try:
        if start and isinstance(source := tree.get(key), str):
            run_dir = str(tree.get("run_dir", RunConfig().run_dir))
            tree = laid_over(start(expanded(source), expanded(run_dir)), tree)
    except UserError as error:
        problems.append(f"{key}: {error}")
    except ValueError:
        pass  # a path that cannot be expanded, which the tree says better
    return _validated(tree, problems, plugins=tree.get("plugins"))


def adjusted(run: RunConfig, overrides: Iterable[str]) -> RunConfig:
    """The run with `section.key=value` overrides. Raises ConfigError with every problem at once."""
    before, tree = run.model_dump(mode="json"), run.model_dump(mode="json")
    problems: list[str] = []
    given: dict[str, str] = {}
    for text in overrides:
        problems += _apply(tree, text, given)
    _say_what_is_dropped(before, tree)
    # Those that the run brings along are a checkpoint's, perhaps a stranger's: only what is given here is imported.
    run, problems = _validated(tree, problems, plugins=tree.get("plugins") if "plugins" in given else None)
    if problems and run.plugins and "plugins" not in given:
        problems.append(
            f"plugins={list(run.plugins)} stand in the checkpoint's recipe and are not imported from there, as it may"
            f" be a stranger's: if you trust them, give plugins=[{','.join(run.plugins)}]"
        )
    if problems:
        raise ConfigError(problems)
    return run


def _validated(tree: dict[str, Any], problems: list[str], plugins: Any) -> tuple[RunConfig, list[str]]:
    """The tree as a run, and `problems` with everything else that is wrong with it.

    `plugins`: modules to import first, which add to the tables of names.
    """
    if isinstance(plugins, list):  # else the tree says what is wrong with it
        problems = problems + list(import_plugins(name for name in plugins if isinstance(name, str) and name))
    wrong: list[tuple[int | str, ...]] = []
    try:
        run = RunConfig.model_validate(tree)
    except ValidationError as error:
        problems = problems + [_explain(item) for item in error.errors()]
        # The rest, with defaults in the place of what is wrong, may hold contradictions to report as well.
        wrong = [item["loc"] for item in error.errors()]
        run = RunConfig.model_validate(_without(tree, wrong))
    of_defaults = tuple(".".join(map(str, place[:2])) + "=" for place in wrong)
    return run, problems + [problem for problem in contradictions(run) if not problem.startswith(of_defaults)]


def _apply(tree: dict[str, Any], override: str, given: dict[str, str]) -> list[str]:
    """Writes one `section.key=value` into the tree and `given` (key -> override); returns the problems."""
    key, equals, text = override.partition("=")
    if not equals or not key:
        return [f"{override!r}: an override is written section.key=value"]
    wanted = type_of(RunConfig, key)
    problems: list[str] = []
    try:
        if (kind := text_kind(wanted)) == "other":
            value, problems = read_tree(text, wanted)
        else:
            value = read_text(text, is_optional=kind == "optional")
    except NoValueError as error:
        return [f"{override}: {error}"]
    except yaml.YAMLError as error:
        hint = "; a word with * or : in it stands in quotes" if "*" in text else ""
        reason = "" if isinstance(error, yaml.MarkedYAMLError) else f": {error}"
        return [f"{_shortened(override)!r}: the value is not valid YAML{reason}{hint}"]
    if given.setdefault(key, override) != override:
        log.warning("%s: takes the place of %s, given before it", override, given[key])
    given[key] = override
    for name, new in _in_this_version(override, key, value).items():
        *sections, last = name.split(".")
        node = tree
        for section in sections:
            node = node.setdefault(section, {})
            if not isinstance(node, dict):
                return [f"{override!r}: {section} is a value, not a section"]
        above = {last: new}
        node.update(laid_over(node, above))
    return [f"{override!r}: {problem}" for problem in problems]


def _in_this_version(override: str, key: str, value: Any) -> dict[str, Any]:
    """Keys and values of an override, with keys of earlier versions under their present names."""
    above = value
    for section in reversed(key.split(".")):
        above = {section: above}
    tree, changes = upgraded(above)
    for change in changes:
        log.warning("%s: %s", override, change)
    return (
        {name: _get(tree, name) for name in _leaves(tree) if name != "version"} if changes else {key: value}
    )


def _shortened(text: str) -> str:
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}..."


def _say_what_is_dropped(before: dict[str, Any], tree: dict[str, Any]) -> None:
    """Options behind `model.encoder.options=` are all that hold, since another encoder has others."""
    old, new = (_get(side, "model.encoder.options") for side in (before, tree))
    same_encoder = _get(before, "model.encoder.name") == _get(tree, "model.encoder.name")
    if (
        same_encoder
        and isinstance(old, dict)
        and isinstance(new, dict)
        and (dropped := old.keys() - new.keys())
    ):
        log.warning(
            "model.encoder.options: those of the recipe are dropped: %s; model.encoder.options.NAME=VALUE changes one"
            " and leaves the others",
            ", ".join(f"{name}={old[name]}" for name in sorted(dropped)),
        )


def _left_behind(before: dict[str, Any], tree: dict[str, Any], given: Iterable[str]) -> Iterator[str]:
    """Values of the recipe that go with one which an override has changed."""
    size, sizes = "model.encoder.image_size", "data.image_sizes"
    old, new, stay = _get(before, size), _get(tree, size), _get(tree, sizes)
    if sizes in given or not (
        isinstance(old, int) and isinstance(new, int) and isinstance(stay, list) and stay
    ):
        return
    if old != new and stay == _get(before, sizes) and all(isinstance(side, int) for side in stay):
        step = math.gcd(*stay)
        scaled = sorted({max(step, round(side * new / old / step) * step) for side in stay})
        yield (
            f"{size}={new}, but the recipe trains at {sizes}={stay}, made for {old} pixels: set {sizes}={scaled}"
            f" as well, or {sizes}=[] for the one size"
        )


def _get(tree: Any, dotted: str) -> Any:
    for name in dotted.split("."):
        tree = tree.get(name) if isinstance(tree, dict) else None
    return tree


def _without(tree: dict[str, Any], locations: list[tuple[int | str, ...]]) -> dict[str, Any]:
    """A copy of the tree without the sections or keys at these locations."""
    tree = copy.deepcopy(tree)
    for location in locations:
        node: Any = tree
        *path, last = location[: next((i for i, part in enumerate(location) if isinstance(part, int)), None)]
        for part in path:
            node = node.get(part) if isinstance(node, dict) else None
        if isinstance(node, dict):
            node.pop(last, None)
    return tree


def _explain(error: Mapping[str, Any]) -> str:
    """One line for one pydantic error, naming the dotted key, the value and the remedy."""
    location = [str(part) for part in error["loc"]]
    key = ".".join(location)
    if error["type"] == "extra_forbidden" and key in known_keys() and "." in location[-1]:
        *sections, last = key.split(".")
        above = " and ".join(f"`{section}:`" for section in sections)
        return f"{key}: in a recipe sections stand in lines of their own: {above}, and `{last}:` below, further in"
    if error["type"] == "extra_forbidden":
        section = ".".join(location[:-1])
        beside = [f"{section}.{name}" for name in getattr(type_of(RunConfig, section), "model_fields", ())]
        return f"{key}={error['input']!r}: unknown key{_nearest(key, [*beside, *known_keys()])}"
    message = WANTED.get(error["type"], error["msg"].removeprefix("Value error, "))
    return f"{key}={error['input']!r}: {message[0].lower()}{message[1:]}"


def keys_given(override: str) -> list[str]:
    """The dotted keys that an override sets: several where a section stands behind its key."""
    tree: dict[str, Any] = {}
    _apply(tree, override, {})
    return list(_leaves(tree))


def _leaves(tree: dict[str, Any], prefix: str = "") -> Iterator[str]:
    for name, value in tree.items():
        if isinstance(value, dict) and name not in WHOLE:
            yield from _leaves(value, f"{prefix}{name}.")
        else:
            yield prefix + name


def known_keys(section: type[BaseModel] = RunConfig, prefix: str = "") -> Iterator[str]:
    """Every dotted key of the tree, sections included."""
    for name, field in section.model_fields.items():
        yield prefix + name
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from known_keys(field.annotation, f"{prefix}{name}.")


def _nearest(word: str, known: list[str]) -> str:
    by_last = {key.rpartition(".")[2]: key for key in reversed(known)}  # a bare `taks` finds data.task
    return did_you_mean(
        FORMER_KEYS.get(word) or nearest(word, known) or by_last.get(nearest(word, by_last), word), known
    )
