"""Image tokens left out in training: an encoder sees a random part of the patches of each image.

FLIP (arXiv 2212.00794) trains image encoders with half or three quarters of the patches left out, several times as
fast. Which ones is a function of a number of each image, that the loader draws from (seed, epoch, sample): it is the
same whatever the ranks, the micro-batches and the device.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from git_scale.errors import ConfigError

MULTIPLIERS = (
    -49064778989728563,
    -4265267296055464877,
)  # of MurmurHash3's 64-bit finaliser, as signed numbers
STEP = -7046029254386353131  # 2**64 over the golden ratio, as a signed number: neighbours fall far apart


class PatchDrop(nn.Module):
    """Stands in a timm ViT between its embedding and its blocks; without `draws` all patches pass.

    The prefix, such as a class token, always passes. At least one patch of each image does.
    """

    def __init__(self, rate: float, prefix_tokens: int) -> None:
        super().__init__()
        self.rate, self.prefix_tokens = rate, prefix_tokens
        self.draws: Tensor | None = None
        """int64 [B]: a number of each image, for the next forward pass."""

    def forward(self, x_BLC: Tensor) -> Tensor:
        if self.draws is None:
            return x_BLC
        prefix, patches = x_BLC[:, : self.prefix_tokens], x_BLC[:, self.prefix_tokens :]
        kept = kept_patches(self.draws, patches.shape[1], self.rate)
        chosen = patches.gather(1, kept[..., None].expand(-1, -1, patches.shape[2]))
        return torch.cat([prefix, chosen], dim=1)


def kept_patches(draws_B: Tensor, patches: int, rate: float) -> Tensor:
    """int64 [B, kept]: the numbers of the patches that stay, in their order; as many of each image."""
    keep = max(1, round(patches * (1 - rate)))
    noise = _hashed(draws_B[:, None] + STEP * torch.arange(1, patches + 1, device=draws_B.device))
    return noise.argsort(dim=1)[:, :keep].sort(dim=1).values


def draws_of_frames(draws_B: Tensor, frames: int) -> Tensor:
    """int64 [B * F]: a number of each frame of each clip; that of the image where there is one frame."""
    return (draws_B[:, None] + torch.arange(frames, device=draws_B.device)).flatten()


def _hashed(numbers: Tensor) -> Tensor:
    """Evenly spread int64 numbers of int64 numbers; sums and products wrap, on any device alike."""
    for multiplier in MULTIPLIERS:
        numbers = (numbers ^ (numbers >> 33)) * multiplier
    return numbers ^ (numbers >> 33)


def with_patch_drop(backbone: Any, name: str, rate: float) -> PatchDrop | None:
    """Puts a PatchDrop into a ViT. Raises ConfigError for an encoder that needs all its patches."""
    import timm

    if rate == 0:
        return None
    if not isinstance(backbone, timm.models.VisionTransformer):
        raise ConfigError(
            [
                f"model.encoder.patch_drop_rate={rate}: {name} computes on the whole grid of patches, only timm's"
                " ViTs go on with a part of them: set model.encoder.patch_drop_rate=0 or take a ViT"
            ]
        )
    backbone.patch_drop = PatchDrop(rate, backbone.num_prefix_tokens)
    return backbone.patch_drop
