"""Where a run's first weights come from, and which of them learn."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import Tensor

from git_scale.checkpoint import layout
from git_scale.checkpoint.detect import open_checkpoint
from git_scale.checkpoint.encoder_start import SCRATCH, open_encoder_start
from git_scale.checkpoint.initial import values_from
from git_scale.checkpoint.opened_checkpoint import read_run
from git_scale.config import RunConfig
from git_scale.errors import ConfigError
from git_scale.models.build import build_model
from git_scale.models.deferred import DeferredModel
from git_scale.models.encoders import has_batch_norm
from git_scale.models.freezing import freeze
from git_scale.models.git import GitModel, count_parameters
from git_scale.training.run_folder import read_recipe

log = logging.getLogger(__name__)

SLOW_FROM_SCRATCH = (
    1e-4  # the paper's 1e-5 is for an encoder that has learned; CLIP's own began at 4e-4 to 5e-4
)


def inherited_from(source: str, run_dir: str) -> dict[str, Any]:
    """The model and tokenizer of the checkpoint that a run starts from, to lie below its recipe.

    A run that has begun keeps what it began with: it goes on where that checkpoint is gone.
    """
    begun = Path(run_dir) / layout.CONFIG
    if begun.is_file() and layout.published(Path(run_dir)):
        run = read_recipe(begun)
        own = Path(run_dir) / Path(run.data.tokenizer).name
        return {"model": run.model.model_dump(mode="json"), "data": {"tokenizer": str(own)}}
    place = Path(source)
    if (place / layout.PROGRESS).is_file():  # of a run, whose numbers are compared when they are read
        run, encoder_only = read_run(place), False
        tokenizer: Path | None = place / Path(run.data.tokenizer).name
    else:
        opened = open_checkpoint(place)
        run, encoder_only, tokenizer = opened.run, opened.holds_encoder_only, opened.tokenizer
    model = run.model.model_dump(mode="json")
    if encoder_only:
        model = {"encoder": model["encoder"]}
    del model["encoder"]["start"]  # it went into these weights
    return {"model": model} | ({"data": {"tokenizer": str(tokenizer)}} if tokenizer else {})


def deferred_model(run: RunConfig) -> DeferredModel:
    """The model on meta; its first values are a function of (seed, name), the same on any number of ranks."""
    deferred = DeferredModel(lambda: build_model(run.model), run.seed)
    model = deferred.module
    if run.train.precision == "bf16" and has_batch_norm(model):
        raise ConfigError(
            [
                f"model.encoder.name={run.model.encoder.name!r} holds batch norms, whose statistics DeepSpeed"
                " leaves in fp32 and torch does not mix with bf16 weights: set train.precision=fp32, or take an"
                " encoder with layer norms"
            ]
        )
    freeze(model, run.train.freeze)
    model.set_activation_checkpointing(run.train.activation_checkpointing)
    return deferred


def first_values(deferred: DeferredModel, run: RunConfig) -> Callable[[str], Tensor]:
    """Name -> first value: from `init_from`, else for the encoder from model.encoder.start, where these have it,
    which is logged; else the random start.

    Raises CheckpointError when the source does not fit.
    """
    if run.continue_from is not None or layout.published(Path(run.run_dir)):
        return deferred.blank_value  # a checkpoint of the run follows
    encoder, origin = run.model.encoder, f"init_from={run.init_from}"
    if run.init_from is not None:
        values, lines = values_from(deferred, run.model, open_checkpoint(Path(run.init_from)))
    elif encoder.start == SCRATCH:
        if encoder_learns(deferred.module) and run.optimizer.encoder_lr < SLOW_FROM_SCRATCH:
            log.warning(
                "model.encoder.start=scratch at optimizer.encoder_lr=%g: a rate for an encoder that has learned;"
                " from scratch CLIP's were 4e-4 to 5e-4, for both parts, with optimizer.warmup_steps=2000",
                run.optimizer.encoder_lr,
            )
        return deferred.first_value
    else:
        origin = f"model.encoder.start={encoder.start}"
        values, lines = values_from(deferred, run.model, open_encoder_start(encoder))
    for line in lines:
        log.info("%s: %s", origin, line)
    return values


def parameter_counts(model: GitModel) -> list[tuple[str, int]]:
    """(part, numbers) of each part, of all, and of what learns; a tied table counts once."""
    learning = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    parts = [(name, count_parameters(part)) for name, part in model.named_children()]
    return [*parts, ("all, unique", count_parameters(model)), ("of these learn", learning)]


def parameters_in_words(model: GitModel) -> str:
    return ", ".join(f"{name} {count:,}" for name, count in parameter_counts(model))


def encoder_learns(model: GitModel) -> bool:
    """Without, nothing runs backward through the image encoder."""
    return any(parameter.requires_grad for parameter in model.encoder.parameters())
