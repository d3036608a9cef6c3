"""The first weights of a run out of another checkpoint, which may have seen other pictures."""

from __future__ import annotations

import torch

from git_scale.checkpoint.clip import with_image_size
from git_scale.checkpoint.opened import Opened, check_names
from git_scale.checkpoint.weights import read_finite
from git_scale.config import ModelConfig
from git_scale.models.git import GitModel

TEMPORAL = "temporal.frames"


def initialise(model: GitModel, config: ModelConfig, opened: Opened) -> list[str]:
    """Fills `model`, which was built from `config`; returns a line on everything that was not simply taken.

    The table of image positions follows the picture's size. A model of pictures becomes one of clips: its temporal
    embeddings start at zero, as in the paper. Raises CheckpointError, naming them, when other tensors do not fit.
    """
    size, old_size = config.encoder.image_size, opened.run.model.encoder.image_size
    lines = [] if size == old_size else [f"image positions interpolated from {old_size} to {size} pixels"]
    weights = with_image_size(opened, size).weights
    tensors = model.state_dict()
    expected = {name: tensor.shape for name, tensor in tensors.items()}
    found = dict(weights.shapes)
    if opened.holds_encoder_only:
        expected = {name: shape for name, shape in expected.items() if name.startswith("encoder.")}
        lines.append("an image encoder alone: projection and decoder start at random")
    lines += _settle_frames(expected, found)
    check_names(opened.path, expected, found)
    with torch.no_grad():
        for name, shape in expected.items():
            tensors[name].copy_(
                read_finite(weights, name)[: shape[0]] if shape else read_finite(weights, name)
            )
    return lines


def _settle_frames(expected: dict[str, torch.Size], found: dict[str, torch.Size]) -> list[str]:
    """Takes out of both what need not fit: the temporal embeddings of the first frames serve a shorter clip."""
    ours, theirs = expected.get(TEMPORAL), found.get(TEMPORAL)
    if ours and not theirs:
        del expected[TEMPORAL]
        return [f"the temporal embeddings of {ours[0]} frames start at zero"]
    if theirs and not ours:
        del found[TEMPORAL]
        return [f"its temporal embeddings of {theirs[0]} frames are left out: pictures have none"]
    if ours and theirs and ours[0] < theirs[0]:
        found[TEMPORAL] = ours
        return [f"the temporal embeddings of its first {ours[0]} frames of {theirs[0]}"]
    return []
