"""A checkpoint of any kind, opened: its recipe, its tokenizer and its weights by the names of GitModel."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import yaml
from pydantic import ValidationError

from git_scale.checkpoint import layout
from git_scale.checkpoint.weights import Weights, check_names, read_finite
from git_scale.config import RunConfig
from git_scale.data.tokenizer import Tokenizer, load_tokenizer
from git_scale.errors import CheckpointError
from git_scale.models.build import build_encoder, build_model
from git_scale.models.deferred import DeferredModel
from git_scale.models.encoders import ImageEncoder
from git_scale.models.git import GitModel


@dataclass(frozen=True)
class OpenedCheckpoint:
    """Holds what a checkpoint of any kind is made of; its weights have not been read yet."""

    kind: str
    """training, native, huggingface or microsoft; encoder: the file of an image encoder alone."""
    path: Path
    run: RunConfig
    """The recipe it was trained with; of a foreign one the model section is true, the rest are defaults."""
    tokenizer: Path | None
    """For load_tokenizer; None: the folder has none."""
    weights: Weights
    step: int | None
    average: Weights | None = None
    """The moving average of them (optimizer.ema), where there is one."""
    is_average: bool = False
    """Whether `weights` are that of a run."""

    @property
    def holds_encoder_only(self) -> bool:
        return all(name.startswith("encoder.") for name in self.weights.shapes)


def read_run(checkpoint: Path) -> RunConfig:
    """The recipe in a checkpoint's folder. Raises CheckpointError; ConfigError for one of a later git_scale."""
    try:
        return RunConfig.model_validate(layout.read_config(checkpoint))
    except (OSError, ValidationError, yaml.YAMLError) as error:
        raise CheckpointError(
            f"{checkpoint / layout.CONFIG}: not a recipe of this git_scale: {error}"
        ) from None


def averaged(opened: OpenedCheckpoint) -> OpenedCheckpoint:
    """The checkpoint with its average in the place of its weights. Raises CheckpointError where it has none."""
    if opened.average is None:
        raise CheckpointError(
            f"{opened.path}: holds no average of its weights, which weights=ema asks for: take weights=trained, or a"
            " checkpoint of a run with optimizer.ema"
        )
    return replace(opened, weights=opened.average, average=None, is_average=True)


def load_model(opened: OpenedCheckpoint) -> GitModel:
    """The model in fp32 on CPU. Every tensor is accounted for; raises CheckpointError otherwise."""
    refuse_encoder_alone(opened)
    model: GitModel = _filled(lambda: build_model(opened.run.model), opened, prefix="")
    if opened.run.model.decoder.tied:
        model.decoder.head.weight = model.decoder.embedding.words.weight
    return model


def refuse_encoder_alone(opened: OpenedCheckpoint) -> None:
    """Raises CheckpointError where there is no text decoder to ask."""
    if opened.holds_encoder_only:
        raise CheckpointError(
            f"{opened.path}: holds an image encoder alone, no GIT: train one from it with"
            f" init_from={opened.path}"
        )


def tokenizer_of(opened: OpenedCheckpoint, given: Path | None = None) -> Tokenizer:
    """The model's own, or that of a file. Raises CheckpointError when there is none, or it does not fit."""
    path = given or opened.tokenizer
    if path is None:
        raise CheckpointError(
            f"{opened.path}: no tokenizer beside it; name the vocab.txt or .model that it was trained with (GIT: that"
            " of bert-base-uncased): --tokenizer FILE on a command line, tokenizer=FILE in Python"
        )
    tokenizer = load_tokenizer(path)
    if tokenizer.vocab_size != opened.run.model.vocab_size:
        raise CheckpointError(
            f"{path}: has {tokenizer.vocab_size} pieces, but the word table of {opened.path} has"
            f" {opened.run.model.vocab_size} rows: it is another model's tokenizer"
        )
    return tokenizer


def load_encoder(opened: OpenedCheckpoint) -> ImageEncoder:
    """The image encoder alone, as load_model."""
    encoder: ImageEncoder = _filled(
        lambda: build_encoder(opened.run.model.encoder), opened, prefix="encoder."
    )
    return encoder


def _filled(build: Callable[[], torch.nn.Module], opened: OpenedCheckpoint, prefix: str) -> Any:
    """The module that `build` makes, with the checkpoint's tensors and the buffers that no checkpoint holds."""
    deferred = DeferredModel(build, seed=0)
    expected = {prefix + name: tensor.shape for name, tensor in deferred.module.state_dict().items()}
    found = {name: shape for name, shape in opened.weights.shapes.items() if name.startswith(prefix)}
    check_names(opened.path, expected, found)
    return deferred.filled(lambda name: read_finite(opened.weights, prefix + name))
