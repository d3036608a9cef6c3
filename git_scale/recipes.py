"""A run from a recipe (YAML) and `section.key=value` on top, with every mistake reported at once.

Layers: the defaults of `git_scale/config.py`, the model of a checkpoint that the run starts from, a recipe from
`git_scale/configs/` (or any YAML file), overrides.
"""

from __future__ import annotations

import copy
import difflib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from git_scale.config import RunConfig, contradictions
from git_scale.errors import ConfigError

RECIPES = Path(__file__).parent / "configs"

Start = Callable[[str, str], dict[str, Any]]
"""(init_from, run_dir) -> the part of the tree that a checkpoint settles: its model and its tokenizer."""


def load_run(recipe: str, overrides: Iterable[str] = (), start: Start | None = None) -> RunConfig:
    """The run of a recipe name (`git_base`) or YAML path, with `section.key=value` overrides.

    `start` is asked for what lies below the recipe when the run has an `init_from`.
    Raises ConfigError with every problem at once; an unknown key is answered with the nearest known one.
    """
    tree = _read_recipe(recipe)
    problems = [problem for text in overrides if (problem := _apply(tree, text))]
    if start and isinstance(init_from := tree.get("init_from"), str):
        tree = _laid_over(start(init_from, str(tree.get("run_dir", RunConfig().run_dir))), tree)
    return validated(tree, problems)


def adjusted(run: RunConfig, overrides: Iterable[str]) -> RunConfig:
    """The run with `section.key=value` overrides. Raises ConfigError with every problem at once."""
    tree = run.model_dump(mode="json")
    problems = [problem for text in overrides if (problem := _apply(tree, text))]
    return validated(tree, problems)


def validated(tree: dict[str, Any], problems: list[str]) -> RunConfig:
    """The tree as a run; raises ConfigError with `problems` and everything else that is wrong with it."""
    try:
        run = RunConfig.model_validate(tree)
    except ValidationError as error:
        problems += [_explain(item) for item in error.errors()]
        # The rest, with defaults in the place of what is wrong, may hold contradictions to report as well.
        run = RunConfig.model_validate(_without(tree, [item["loc"] for item in error.errors()]))
    if problems := problems + list(contradictions(run)):
        raise ConfigError(problems)
    return run


def _read_recipe(recipe: str) -> dict[str, Any]:
    path = Path(recipe) if recipe.endswith((".yaml", ".yml")) else RECIPES / f"{recipe}.yaml"
    if not path.is_file():
        known = sorted(file.stem for file in RECIPES.glob("*.yaml"))
        hint = _nearest(recipe, known)
        raise ConfigError([f"--config {recipe}: no such recipe or file{hint}; recipes: {', '.join(known)}"])
    try:
        tree = yaml.load(path.read_text(encoding="utf-8"), _Loader)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError([f"{path}: not valid YAML: {error}"]) from None
    if not isinstance(tree, dict):
        raise ConfigError([f"{path}: a recipe is a mapping of sections, found {type(tree).__name__}"])
    return tree


def _apply(tree: dict[str, Any], override: str) -> str | None:
    """Writes one `section.key=value` into the tree; returns the problem, if any."""
    key, equals, text = override.partition("=")
    if not equals or not key:
        return f"{override!r}: an override is written section.key=value"
    try:
        value = yaml.load(text, _Loader)
    except yaml.YAMLError:
        return f"{override!r}: the value is not valid YAML"
    *sections, last = key.split(".")
    node = tree
    for section in sections:
        node = node.setdefault(section, {})
        if not isinstance(node, dict):
            return f"{override!r}: {section} is a value, not a section"
    node[last] = value
    return None


def _laid_over(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    """Both trees in one; `above` wins key by key."""
    merged = dict(below)
    for key, value in above.items():
        both = isinstance(value, dict) and isinstance(merged.get(key), dict) and key != "options"
        merged[key] = _laid_over(merged[key], value) if both else value
    return merged


class _Loader(yaml.SafeLoader):
    """YAML that reads 1e-4 as a number, as YAML 1.2 does; 1.1 wants 1.0e-4 and makes a string of the other."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?[0-9][0-9_]*(\.[0-9]*)?[eE][-+]?[0-9]+$"),
    list("-+0123456789"),
)


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
    if error["type"] == "extra_forbidden":
        return f"{key}={error['input']!r}: unknown key{_nearest(key, list(known_keys()))}"
    return f"{key}={error['input']!r}: {error['msg'][0].lower()}{error['msg'][1:]}"


def known_keys(section: type[BaseModel] = RunConfig, prefix: str = "") -> Iterator[str]:
    """Every dotted key of the tree, sections included."""
    for name, field in section.model_fields.items():
        yield prefix + name
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from known_keys(field.annotation, f"{prefix}{name}.")


def _nearest(word: str, known: list[str]) -> str:
    match = difflib.get_close_matches(word, known, n=1, cutoff=0.6)
    if not match and "." not in word:  # a bare `lr` still finds a key that ends so
        match = [key for key in known if key.rpartition(".")[2] == word][:1]
    return f"; did you mean {match[0]}?" if match else ""
