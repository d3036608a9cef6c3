"""The training objectives by name. One is a new file here and a line in this table; plugins use OBJECTIVES.add."""

from __future__ import annotations

from typing import TYPE_CHECKING

from git_scale.registry import Registry

if TYPE_CHECKING:
    from git_scale.objectives.objective import Objective

OBJECTIVES: Registry[type[Objective]] = Registry(
    "train.objectives",
    {
        "lm": "git_scale.objectives.language_model:LanguageModelObjective",
        "masked_lm": "git_scale.objectives.masked_lm:MaskedLanguageModelObjective",
    },
    flaw_of="git_scale.objectives.objective:flaw_of",
)
