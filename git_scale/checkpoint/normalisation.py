"""Image encoders that were trained with images normalised otherwise: the difference goes into their first layer.

git_scale normalises every image with CLIP's mean and deviation (git_scale/data/images.py). Of a channel
with the value p, ours is x = (p - M) / S and theirs y = (p - m) / s = x S / s + (M - m) / s. A convolution without
padding sees the same sum for y as one with weights w S / s sees for x, but for the constant sum of w (M - m) / s,
which goes to its bias; of a ViT without that bias, to the positions of its patches.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from git_scale.checkpoint.names import ENCODER
from git_scale.checkpoint.weights import Weights
from git_scale.config import EncoderConfig
from git_scale.data.images import MEAN, STD
from git_scale.errors import CheckpointError
from git_scale.models.build import build_encoder

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Normalisation:
    """Holds mean and deviation per channel of the images that a model was trained with, values from 0 to 1."""

    mean: tuple[float, ...]
    std: tuple[float, ...]

    def equals(self, other: Normalisation) -> bool:
        mine, theirs = (*self.mean, *self.std), (*other.mean, *other.std)
        return all(abs(a - b) < 1e-4 for a, b in zip(mine, theirs, strict=True))


CLIP = Normalisation(tuple(MEAN), tuple(STD))
SIGLIP = Normalisation((0.5,) * 3, (0.5,) * 3)


def read_normalisation(mean: Any, std: Any, default: Normalisation, path: Path) -> Normalisation:
    """From a configuration's values, which may be absent. Raises CheckpointError."""
    found = Normalisation(*(_triple(v, d, path) for v, d in ((mean, default.mean), (std, default.std))))
    if min(found.std) <= 0:
        raise CheckpointError(
            f"{path}: a standard deviation of {min(found.std)} of the images; it must be above 0"
        )
    return found


def _triple(value: Any, default: tuple[float, ...], path: Path) -> tuple[float, ...]:
    if value is None:
        return default
    values = value if isinstance(value, list | tuple) else [value] * 3
    if len(values) != 3 or not all(isinstance(x, int | float) for x in values):
        raise CheckpointError(f"{path}: {value!r} is no mean or deviation of three channels")
    return tuple(map(float, values))


def fold_normalisation(
    weights: Weights, encoder: EncoderConfig, theirs: Normalisation, path: Path
) -> Weights:
    """The weights for images as git_scale normalises them; the same features as theirs for theirs.

    Where that cannot be had exactly, because the first convolution pads or is not alone, the weights stay as they are
    and a warning says so.
    """
    if theirs.equals(CLIP):
        return weights
    with torch.device("meta"):
        backbone = build_encoder(encoder).backbone
    target = _first_convolution(backbone)
    what = f"{path}: trained with images of mean {_short(theirs.mean)} and deviation {_short(theirs.std)}"
    if target is None:
        log.warning(
            "%s, not CLIP's: this encoder's first layer cannot take the difference; its features start off as those"
            " of other colours, which training has to mend",
            what,
        )
        return weights
    log.warning("%s, not CLIP's: the difference was folded into %s", what, " and ".join(target))
    prefix_tokens = (
        0 if getattr(backbone, "no_embed_class", False) else getattr(backbone, "num_prefix_tokens", 0)
    )
    return FoldedWeights(weights, theirs, *target, prefix_tokens)


def _short(values: Sequence[float]) -> str:
    return ", ".join(f"{value:.4g}" for value in values)


def _first_convolution(backbone: nn.Module) -> tuple[str, str] | None:
    """Names of its weight and of what takes a constant; None: the first layer is no convolution without padding."""
    first = [(n, m) for n, m in backbone.named_modules() if isinstance(m, nn.Conv2d) and m.in_channels == 3]
    if len(first) != 1 or not _is_plain(first[0][1]):
        return None
    name, convolution = first[0]
    positions = getattr(backbone, "pos_embed", None)
    if convolution.bias is not None:
        return f"{ENCODER}{name}.weight", f"{ENCODER}{name}.bias"
    is_table = isinstance(positions, nn.Parameter) and name == "patch_embed.proj" and positions.ndim == 3
    return (f"{ENCODER}{name}.weight", f"{ENCODER}pos_embed") if is_table else None


def _is_plain(convolution: nn.Conv2d) -> bool:
    """Not one of timm's that pad or standardise as they go."""
    padding = convolution.padding
    return (
        type(convolution) is nn.Conv2d
        and convolution.groups == 1
        and not isinstance(padding, str)
        and not any(padding)
    )


class FoldedWeights:
    """Gives weights whose first convolution takes images in git_scale's normalisation."""

    def __init__(
        self, weights: Weights, theirs: Normalisation, kernel: str, constant: str, prefix_tokens: int
    ) -> None:
        self.shapes, self.dropped = weights.shapes, weights.dropped
        self._weights, self._kernel, self._constant = weights, kernel, constant
        self._prefix_tokens = prefix_tokens
        our_mean, our_std, mean, std = (
            torch.tensor(values, dtype=torch.float64) for values in (MEAN, STD, theirs.mean, theirs.std)
        )
        self._scale, self._shift = our_std / std, (our_mean - mean) / std

    def read(self, name: str) -> Tensor:
        tensor = self._weights.read(name)
        if name == self._kernel:
            return (tensor.double() * self._scale[:, None, None]).float()
        if name == self._constant:
            added = (self._weights.read(self._kernel).double().sum((2, 3)) @ self._shift).float()
            if tensor.ndim == 1:
                return tensor + added
            return torch.cat([tensor[:, : self._prefix_tokens], tensor[:, self._prefix_tokens :] + added], 1)
        return tensor
