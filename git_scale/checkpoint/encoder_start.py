"""Where the image encoder of a new run comes from: model.encoder.start.

GIT starts from a contrastively pretrained encoder, and its recipes name one. What is not there is refused with the
ways to get it: the paper's rates would teach an encoder of random weights next to nothing.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from git_scale.checkpoint.clip import open_encoder
from git_scale.checkpoint.detect import open_checkpoint
from git_scale.checkpoint.normalisation import Normalisation, fold_normalisation
from git_scale.checkpoint.opened_checkpoint import OpenedCheckpoint
from git_scale.checkpoint.weights import Weights, WeightsInMemory
from git_scale.config import EncoderConfig, ModelConfig, RunConfig
from git_scale.errors import CheckpointError, ConfigError
from git_scale.models.build import build_encoder
from git_scale.models.encoders import declare_torchvision_operators

SCRATCH, TIMM = "scratch", "timm"
FROM_SCRATCH = (
    "begin from random weights, at rates for that (CLIP's): model.encoder.start=scratch optimizer.encoder_lr=5e-4"
    " optimizer.decoder_lr=5e-4 optimizer.warmup_steps=2000"
)


def check_encoder_start(encoder: EncoderConfig) -> None:
    """Raises ConfigError, with the ways to get them, when there can be no such weights. Downloads nothing."""
    if encoder.start == SCRATCH:
        return
    if encoder.start != TIMM:
        if not Path(encoder.start).exists():
            raise _missing(encoder, "no such file or folder")
        return
    if not _is_published(encoder.name):
        raise _missing(encoder, f"timm publishes no weights of {encoder.name}")


def open_encoder_start(encoder: EncoderConfig) -> OpenedCheckpoint:
    """The encoder alone that `encoder` starts from. Raises ConfigError or CheckpointError, also where it computes
    otherwise than `encoder` does."""
    check_encoder_start(encoder)
    if encoder.start == TIMM:
        return _published(encoder)
    path = Path(encoder.start)
    opened = open_encoder(path, encoder.name) if path.is_file() else None
    opened = _encoder_of(opened or open_checkpoint(path))
    check_same_computation(opened, encoder)
    return opened


def check_same_computation(opened: OpenedCheckpoint, encoder: EncoderConfig) -> None:
    """Raises CheckpointError when the two are of different kinds of layers: shapes alone do not tell one activation
    or number of heads from another."""
    same_size = opened.run.model.encoder.model_copy(update={"image_size": encoder.image_size})
    with torch.device("meta"):
        theirs, ours = _computation(build_encoder(same_size)), _computation(build_encoder(encoder))
    names = [name for name in ours.keys() | theirs.keys() if ours.get(name) != theirs.get(name)]
    if names:
        first = min(names)
        raise CheckpointError(
            f"model.encoder.start={encoder.start}: its {first} is {_in_words(theirs.get(first))}, that of"
            f" model.encoder.name={encoder.name} {_in_words(ours.get(first))}: set model.encoder.name and .options as"
            f" they are there ({opened.run.model.encoder.name}, {opened.run.model.encoder.options})"
        )


class _EncoderWeights:
    """Gives the encoder's tensors among a whole GIT's."""

    def __init__(self, weights: Weights) -> None:
        self.shapes = {name: shape for name, shape in weights.shapes.items() if name.startswith("encoder.")}
        self.dropped = weights.dropped
        self.read = weights.read


def _encoder_of(opened: OpenedCheckpoint) -> OpenedCheckpoint:
    return opened if opened.holds_encoder_only else replace(opened, weights=_EncoderWeights(opened.weights))


def _is_published(name: str) -> bool:
    declare_torchvision_operators()
    import timm

    published = timm.get_pretrained_cfg(name, allow_unregistered=True) if timm.is_model(name) else None
    return published is not None and bool(published.has_weights)


def _published(encoder: EncoderConfig) -> OpenedCheckpoint:
    """timm's weights at the size that they were trained with, in memory."""
    import timm

    published = timm.get_pretrained_cfg(encoder.name, allow_unregistered=True)
    config = encoder.model_copy(update={"image_size": published.input_size[-1]})
    try:
        tensors = build_encoder(config, published=True).state_dict()
    except ConfigError:
        raise
    except Exception as error:  # the download's own kinds, of three libraries
        raise _missing(encoder, f"{type(error).__name__}: {str(error).partition(chr(10))[0]}") from error
    weights: Weights = WeightsInMemory(
        {f"encoder.{name}": tensor.float() for name, tensor in tensors.items()}
    )
    images = Normalisation(tuple(published.mean), tuple(published.std))
    weights = fold_normalisation(weights, config, images, Path(TIMM))
    run = RunConfig(model=ModelConfig(encoder=config))
    return OpenedCheckpoint(
        kind="encoder", path=Path(TIMM), run=run, tokenizer=None, weights=weights, step=None
    )


def _computation(encoder: nn.Module) -> dict[str, tuple[Any, ...]]:
    return {
        name: (type(part).__name__, getattr(part, "num_heads", None), getattr(part, "eps", None))
        for name, part in encoder.named_modules()
    }


def _in_words(part: tuple[Any, ...] | None) -> str:
    if part is None:
        return "not there"
    kind, heads, eps = part
    details = [f"{word} {value}" for word, value in (("heads", heads), ("eps", eps)) if value is not None]
    return f"{kind} ({', '.join(details)})" if details else kind


def _missing(encoder: EncoderConfig, reason: str) -> ConfigError:
    folder = "models/encoder" if encoder.start == TIMM else encoder.start
    ways = [
        "import a published one: python tools/convert_checkpoint.py import FILE"
        f" {folder} --encoder {encoder.name} (CLIP, open_clip, timm), and model.encoder.start={folder}"
    ]
    if encoder.start != TIMM and _is_published(encoder.name):
        ways.append("take timm's weights of that name, downloaded or cached: model.encoder.start=timm")
    lines = "".join(f"\n      - {way}" for way in [*ways, FROM_SCRATCH])
    return ConfigError(
        [f"model.encoder.start={encoder.start}: {reason}. The image encoder starts from there; either{lines}"]
    )
