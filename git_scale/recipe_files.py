"""The file of a recipe, laid over the recipe that it begins with.

    base: finetune_vqav2
    run_dir: runs/finetune_textvqa

`base` is a name of `git_scale/configs/`: all that the file does not say is as there.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import yaml

from git_scale import text_files
from git_scale.config import RunConfig
from git_scale.errors import ConfigError
from git_scale.paths import expanded
from git_scale.registry import did_you_mean
from git_scale.upgrades import upgraded
from git_scale.yaml_tree import read_tree

log = logging.getLogger(__name__)

WHOLE = ("options", "objectives")  # mappings that an override replaces, names and all
RECIPES = Path(__file__).parent / "configs"


def read_recipe(recipe: str) -> tuple[dict[str, Any], list[str]]:
    """The tree of a recipe (`git_base`, or the path of a YAML file), and what is wrong with how it is written.

    Raises ConfigError for one that cannot be read at all.
    """
    path = _recipe_path(recipe)
    if not path.is_file():
        raise ConfigError([f"--config {recipe}: no such recipe or file{_known(recipe)}"])
    try:
        tree, problems = read_tree(text_files.read_text(path), RunConfig)
    except (yaml.YAMLError, ValueError) as error:
        raise ConfigError([f"{path}: not valid YAML: {error}"]) from None
    except OSError as error:
        raise ConfigError([f"--config {path}: {error.strerror}"]) from None
    if not isinstance(tree, dict):
        raise ConfigError([f"{path}: a recipe is a mapping of sections, found {type(tree).__name__}"])
    below = _base_of(path, tree.pop("base", None))
    tree, changes = upgraded(tree, str(path))
    for change in changes:
        log.warning("%s: %s", path, change)
    return laid_over(below, tree), [f"{path}: {problem}" for problem in problems]


def _base_of(path: Path, name: object) -> dict[str, Any]:
    """The tree of the recipe of that name; an empty one where there is none to begin with."""
    if name is None:
        return {}
    if name not in _names():
        raise ConfigError([f"{path}: base={name!r}: no recipe of that name{_known(str(name))}"])
    return read_recipe(str(name))[0]


def _known(recipe: str) -> str:
    return f"{did_you_mean(recipe, _names())}; recipes: {', '.join(_names())}"


def _names() -> list[str]:
    return sorted(file.stem for file in RECIPES.glob("*.yaml"))


def _recipe_path(recipe: str) -> Path:
    if not recipe.endswith((".yaml", ".yml")):
        return RECIPES / f"{recipe}.yaml"
    try:
        return Path(expanded(recipe))
    except ValueError as error:
        raise ConfigError([f"--config {recipe}: {error}"]) from None


def laid_over(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    """Both trees in one; `above` wins key by key."""
    merged = dict(below)
    for key, value in above.items():
        both = isinstance(value, dict) and isinstance(merged.get(key), dict) and key not in WHOLE
        merged[key] = laid_over(merged[key], value) if both else value
    return merged
