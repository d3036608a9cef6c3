"""What a section of a run's tree is: pydantic's model with unknown keys, switches for numbers and giants refused."""

from __future__ import annotations

import math
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationInfo, field_validator

from git_scale.paths import expanded

MAX_IMAGE_SIZE = 4096
"""Pixels of a side: four times what any published image encoder takes; a table of positions grows with its square."""
MAX_SEED = 2**32 - 1
LARGEST = 10**12
"""Of all whole numbers: what is computed from them stays within 64 bits."""

NonEmptyText = Annotated[str, Field(min_length=1)]
UserPath = Annotated[NonEmptyText, AfterValidator(expanded)]
"""A path; `~` and `$NAME` are taken for what they stand for."""


class Section(BaseModel):
    """A part of the tree: unknown keys are refused, and each key's docstring is its description."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _no_switch_and_no_giant_for_a_number(cls, value: Any, info: ValidationInfo) -> Any:
        """`train.steps=yes` would pass as 1."""
        given = value if isinstance(value, list | tuple) else [value]
        is_switch = cls.model_fields[str(info.field_name)].annotation is bool
        if not is_switch and any(isinstance(item, bool) for item in given):
            raise ValueError("a switch was given where none is asked for")
        if any(isinstance(item, int | float) and LARGEST < abs(item) < math.inf for item in given):
            raise ValueError(f"more than {LARGEST:g}, the largest number that a run can have")
        return value
