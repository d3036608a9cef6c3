"""The first weights of a run out of another checkpoint, which may have seen other images."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from git_scale.checkpoint.image_size import with_image_size
from git_scale.checkpoint.opened_checkpoint import OpenedCheckpoint
from git_scale.checkpoint.weights import Weights, check_names, read_finite
from git_scale.config import ModelConfig
from git_scale.errors import CheckpointError
from git_scale.models.deferred import DeferredModel

TEMPORAL = "temporal.frames"


class InitialWeights:
    """Gives what a model takes from a checkpoint, by the names of its state dict."""

    def __init__(self, weights: Weights, shapes: dict[str, torch.Size]) -> None:
        self.shapes = shapes
        self.dropped = weights.dropped
        self._weights = weights

    def read(self, name: str) -> Tensor:
        """Raises CheckpointError when the tensor is damaged or not finite."""
        tensor, shape = read_finite(self._weights, name), self.shapes[name]
        return tensor[: shape[0]] if shape else tensor  # a clip of fewer frames takes the first ones


def initial_weights(
    model: nn.Module, config: ModelConfig, opened: OpenedCheckpoint
) -> tuple[InitialWeights, list[str]]:
    """The weights that `model`, built from `config` (on meta, it may be), takes from a checkpoint; and a line on
    everything that is not simply taken.

    The table of image positions follows the image's size. A model of images becomes one of clips: its temporal
    embeddings start at zero, as in the paper. Raises CheckpointError, naming them, when other tensors do not fit.
    """
    if not opened.holds_encoder_only:
        _refuse_other_attention(config, opened)
    size, old_size = config.encoder.image_size, opened.run.model.encoder.image_size
    lines = [] if size == old_size else [f"image positions interpolated from {old_size} to {size} pixels"]
    weights = with_image_size(opened, size).weights
    expected = {name: tensor.shape for name, tensor in model.state_dict().items()}
    found = dict(weights.shapes)
    if opened.holds_encoder_only:
        expected = {name: shape for name, shape in expected.items() if name.startswith("encoder.")}
        lines.append("an image encoder alone: projection and decoder start at random")
    lines += _match_frames(expected, found)
    check_names(opened.path, expected, found)
    return InitialWeights(weights, expected), lines


def values_from(
    deferred: DeferredModel, config: ModelConfig, opened: OpenedCheckpoint
) -> tuple[Callable[[str], Tensor], list[str]]:
    """Name -> first value: from the checkpoint where it has that tensor, else as the model starts on its own.

    And the lines of initial_weights. Raises CheckpointError, now or when a damaged tensor is asked for.
    """
    taken, lines = initial_weights(deferred.module, config, opened)
    return lambda name: taken.read(name) if name in taken.shapes else deferred.first_value(name), lines


def _refuse_other_attention(config: ModelConfig, opened: OpenedCheckpoint) -> None:
    ours, theirs = config.decoder.attention, opened.run.model.decoder.attention
    if ours != theirs:
        raise CheckpointError(
            f"{opened.path}: its model.decoder.attention is {theirs}, that of this run {ours}, and neither decoder"
            f" can start from the other: set model.decoder.attention={theirs}, or take its image encoder alone, by"
            f" model.encoder.start={opened.path} in the place of init_from"
        )


def _match_frames(expected: dict[str, torch.Size], found: dict[str, torch.Size]) -> list[str]:
    """Takes out of both what need not fit: the temporal embeddings of the first frames serve a shorter clip."""
    ours, theirs = expected.get(TEMPORAL), found.get(TEMPORAL)
    if ours and not theirs:
        del expected[TEMPORAL]
        return [f"the temporal embeddings of {ours[0]} frames start at zero"]
    if theirs and not ours:
        del found[TEMPORAL]
        return [f"its temporal embeddings of {theirs[0]} frames are left out: images have none"]
    if ours and theirs and ours[0] < theirs[0]:
        found[TEMPORAL] = ours
        return [f"the temporal embeddings of its first {ours[0]} frames of {theirs[0]}"]
    return []
