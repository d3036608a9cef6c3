"""GIT image-to-text models: pretrained, fine-tuned, evaluated, and asked: `git_scale.load(folder)`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from git_scale.inference.api import ImageToText, ScoredText, load

__all__ = ["ImageToText", "ScoredText", "load"]


def __getattr__(name: str) -> Any:
    """Imports the API when it is asked for: a login node reads a recipe without torch."""
    if name in __all__:
        from git_scale.inference import api

        return getattr(api, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
