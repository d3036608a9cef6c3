"""Batches of random pixels and words: the shapes of training without a loader, the same for every run."""

from __future__ import annotations

import torch

from git_scale.config import ModelConfig
from git_scale.data.batch import Batch


def synthetic_batch(
    model: ModelConfig, images: int, texts: int, text_tokens: int, generator: torch.Generator
) -> Batch:
    """`images` pictures with `texts` texts of full length each: every token but the first is a target."""
    size = model.encoder.image_size
    targets = torch.ones(images, texts, text_tokens, dtype=torch.bool)
    targets[..., 0] = False
    return Batch(
        images=torch.randint(
            256, (images, model.frames, 3, size, size), dtype=torch.uint8, generator=generator
        ),
        tokens=torch.randint(model.vocab_size, targets.shape, generator=generator),
        targets=targets,
        keys=[f"synthetic:{number}" for number in range(images)],
        problems=[],
    )
