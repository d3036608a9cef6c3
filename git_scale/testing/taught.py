"""A tiny model that has learned to speak of coloured squares, in seconds on one core: something to ask."""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch

from git_scale.checkpoint.native import export_native
from git_scale.checkpoint.opened_checkpoint import OpenedCheckpoint
from git_scale.checkpoint.weights import WeightsInMemory
from git_scale.config import RunConfig
from git_scale.data.batch import Batch, Sample, collate
from git_scale.data.images import decode, prepare
from git_scale.data.texts import next_words
from git_scale.data.tokenizer import load_tokenizer
from git_scale.data.train_tokenizer import train_sentencepiece
from git_scale.models.build import build_model
from git_scale.models.git import GitModel
from git_scale.objectives.training_loss import loss_alone
from git_scale.tasks.prompts import Prompts
from git_scale.testing.tiny import (
    COLOUR,
    COLOURS,
    SIDE,
    SIDES,
    SIZE,
    VOCAB_SIZE,
    describe,
    draw_square,
    tiny_run,
)

STEPS = 200


def write_taught(folder: Path, frames: int = 1, attention: str = "joint") -> Path:
    """A model folder that captions the squares of git_scale.testing.tiny and answers COLOUR and SIZE about them.

    With `frames` > 1 it has seen them as clips whose frames are all the same.
    """
    said = [describe(colour, side) for colour in COLOURS for side in SIDES]
    with tempfile.TemporaryDirectory() as scratch:
        tokenizer_path = Path(scratch) / "tokenizer.model"
        train_sentencepiece([*said, COLOUR, SIZE, *COLOURS, *SIDES], tokenizer_path, VOCAB_SIZE)
        run = _recipe(tokenizer_path.parent, frames, attention)
        torch.manual_seed(0)
        model = build_model(run.model)
        _learn(model, run, _everything(Prompts(load_tokenizer(tokenizer_path), run.data), frames))
        export_native(
            OpenedCheckpoint(
                "training", folder, run, tokenizer_path, WeightsInMemory(model.state_dict()), STEPS
            ),
            folder,
        )
    return folder


def _recipe(folder: Path, frames: int, attention: str) -> RunConfig:
    lengths = {"data": {"max_text_tokens": 24}, "eval": {"max_new_tokens": 16}}
    run = tiny_run(folder, folder, train={"label_smoothing": 0.0}, **lengths)
    decoder = run.model.decoder.model_copy(update={"positions": 40, "attention": attention})
    model = run.model.model_copy(update={"decoder": decoder, "vocab_size": VOCAB_SIZE, "frames": frames})
    return run.model_copy(update={"model": model})


def _everything(prompts: Prompts, frames: int) -> Batch:
    """Each square with its caption and the two questions."""
    encode, samples = prompts.tokenizer.encode, []
    for colour in COLOURS:
        for side in SIDES:
            pixels = prepare(decode(draw_square(colour, side)), prompts.data, SIDE)
            texts = [
                prompts.caption(describe(colour, side)),
                prompts.answer(encode(COLOUR), encode(colour)),
                prompts.answer(encode(SIZE), encode(side)),
            ]
            examples = [[next_words(text)] for text in texts]
            samples.append(Sample("", pixels[None].repeat(frames, 0), examples))
    return collate(samples)


def _learn(model: GitModel, run: RunConfig, batch: Batch) -> None:
    optimizer = torch.optim.AdamW(model.parameters(), lr=6e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS)
    for _ in range(STEPS):
        optimizer.zero_grad()
        loss_alone(run, model, batch, torch.float32).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
