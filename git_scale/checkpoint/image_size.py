"""The same model for images of another size: its table of positions, where it has one, is interpolated."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from git_scale.checkpoint.names import ENCODER
from git_scale.checkpoint.opened_checkpoint import OpenedCheckpoint
from git_scale.checkpoint.weights import Weights
from git_scale.config import EncoderConfig
from git_scale.errors import CheckpointError
from git_scale.models.build import build_encoder
from git_scale.models.encoders import resize_positions
from git_scale.section import MAX_IMAGE_SIZE

POSITIONS = f"{ENCODER}pos_embed"


class ResizedWeights:
    """Gives weights whose table of image positions is brought to another grid."""

    def __init__(
        self, weights: Weights, old: tuple[int, int], new: tuple[int, int], prefix_tokens: int
    ) -> None:
        self.shapes = dict(weights.shapes)
        width = self.shapes[POSITIONS][2]
        self.shapes[POSITIONS] = torch.Size([1, new[0] * new[1] + prefix_tokens, width])
        self.dropped = weights.dropped
        self._weights, self._grids, self._prefix_tokens = weights, (old, new), prefix_tokens

    def read(self, name: str) -> Tensor:
        tensor = self._weights.read(name)
        return resize_positions(tensor, *self._grids, self._prefix_tokens) if name == POSITIONS else tensor


def with_image_size(opened: OpenedCheckpoint, image_size: int) -> OpenedCheckpoint:
    """The same model for images of another size: its table of positions, where it has one, is interpolated.

    Raises CheckpointError for a size of which the encoder would see a part, or that no model is for.
    """
    encoder = opened.run.model.encoder
    if image_size == encoder.image_size:
        return opened
    with torch.device("meta"):
        built = build_encoder(encoder)
    too_large = f"at most {MAX_IMAGE_SIZE} pixels are possible" if image_size > MAX_IMAGE_SIZE else ""
    if problem := too_large or built.problem_of_size(image_size):
        raise CheckpointError(f"image size {image_size}: {problem}")
    vit = built.backbone
    if POSITIONS not in opened.weights.shapes or not hasattr(vit, "num_prefix_tokens"):
        return _resized(opened, encoder.model_copy(update={"image_size": image_size}), opened.weights)
    patch = vit.patch_embed.patch_size
    old, new = vit.patch_embed.grid_size, (image_size // patch[0], image_size // patch[1])
    options = {key: value for key, value in encoder.options.items() if key != "dynamic_img_size"}
    if image_size % patch[0] == image_size % patch[1] == 0:
        options["dynamic_img_size"] = True
    prefix_tokens = 0 if vit.no_embed_class else vit.num_prefix_tokens
    weights = ResizedWeights(opened.weights, old, new, prefix_tokens)
    return _resized(
        opened, encoder.model_copy(update={"image_size": image_size, "options": options}), weights
    )


def _resized(opened: OpenedCheckpoint, encoder: EncoderConfig, weights: Weights) -> OpenedCheckpoint:
    model = opened.run.model.model_copy(update={"encoder": encoder})
    return replace(opened, run=opened.run.model_copy(update={"model": model}), weights=weights)
