"""Values of a config.json of transformers, checked."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from git_scale.checkpoint.vit import VitSizes
from git_scale.errors import CheckpointError

Fixed = tuple[tuple[str, tuple[Any, ...], Any], ...]
"""(key, what git_scale computes with, transformers' default where a file leaves the key out)"""


def check_fixed(config: dict[str, Any], fixed: Fixed, path: Path) -> None:
    """Raises CheckpointError for a value that git_scale does not compute with; a key may be `section.key`."""
    for key, allowed, default in fixed:
        section, _, last = key.rpartition(".")
        table = (config.get(section) or {}) if section else config
        if (value := table.get(last, default)) not in allowed:
            one_of = " or ".join(map(repr, allowed))
            raise CheckpointError(
                f"{path}: {key}={value!r} cannot be imported: git_scale computes with {one_of}"
            )


def whole_number(table: dict[str, Any], key: str, defaults: dict[str, int], path: Path) -> int:
    """A number above 0; a pair of equal ones counts as one. Raises CheckpointError."""
    value = table.get(key, defaults[key])
    if isinstance(value, list) and len(value) == 2 and value[0] == value[1]:
        value = value[0]
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise CheckpointError(f"{path}: {key}={value!r} cannot be imported: a whole number is needed")
    return value


# transformers' defaults of a vision_config that leaves a key out; CLIP's own patches are of 32
VISION_DEFAULTS = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "image_size": 224,
    "patch_size": 16,
}


def vision_sizes(vision: dict[str, Any], defaults: dict[str, int], path: Path) -> tuple[VitSizes, int]:
    """The sizes of a ViT and the side of its images. Raises CheckpointError."""
    number = {key: whole_number(vision, key, defaults, path) for key in defaults}
    sizes = VitSizes(
        patch=number["patch_size"],
        width=number["hidden_size"],
        layers=number["num_hidden_layers"],
        heads=number["num_attention_heads"],
        hidden=number["intermediate_size"],
    )
    return sizes, number["image_size"]
