"""Recipes of earlier versions, brought to the present one step by step.

A recipe may say at its top which version of the format it is written in, as every config.yaml that a run writes does:

    version: 2
    model: {encoder: {start: timm}}

One without a version is of the first. A change of the format is a step more in STEPS. A step renames: what a recipe
holds under the new name already stays as it is, so that a recipe without a version may be of any. A key that is to
mean something else gets another name.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import yaml

from git_scale.errors import ConfigError

Tree = dict[str, Any]


def _start_for_pretrained(tree: Tree) -> Iterator[str]:
    """The encoder had a switch before it had places to start from."""
    model = tree.get("model")
    encoder = model.get("encoder") if isinstance(model, dict) else None
    if not isinstance(encoder, dict) or not isinstance(encoder.get("pretrained"), bool) or "start" in encoder:
        return
    encoder["start"] = "timm" if encoder.pop("pretrained") else "scratch"
    yield f"model.encoder.pretrained is read as model.encoder.start={encoder['start']}"


STEPS: tuple[Callable[[Tree], Iterator[str]], ...] = (_start_for_pretrained,)
"""The first brings a tree of version 1 to version 2, and so on: in place, yielding what it changed."""
VERSION = 1 + len(STEPS)
FORMER_KEYS = {"model.encoder.pretrained": "model.encoder.start"}
"""Keys of earlier versions, and what stands in their place now."""


def upgraded(tree: Tree, source: str = "") -> tuple[Tree, list[str]]:
    """The tree in the present version, and what was changed. `tree` itself stays as it is.

    Raises ConfigError, naming the `source`, for a version that there is not, or not yet.
    """
    where = f"{source}: " if source else ""
    version = tree.get("version", 1)
    if not isinstance(version, int) or isinstance(version, bool) or version < 1:
        raise ConfigError([f"{where}version={version!r}: a whole number from 1 to {VERSION} is needed"])
    if version > VERSION:
        ours = f"this one reads recipes up to version {VERSION}: update it"
        raise ConfigError([f"{where}version={version}: written by a later git_scale, {ours}"])
    tree = copy.deepcopy(tree) | {"version": VERSION}
    return tree, [change for step in STEPS[version - 1 :] for change in step(tree)]


def read_upgraded(path: Path) -> Any:
    """What a config.yaml holds, in the present version where it is a tree.

    Raises OSError, yaml.YAMLError, and ConfigError as `upgraded` does.
    """
    tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    return upgraded(tree, str(path))[0] if isinstance(tree, dict) else tree
