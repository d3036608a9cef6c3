"""Batches of random pixels and words: the shapes of training without a loader, the same for every run."""

from __future__ import annotations

import torch

from git_scale.config import ModelConfig
from git_scale.data.batch import Batch


def synthetic_batch(
    model: ModelConfig, images: int, texts: int, text_tokens: int, generator: torch.Generator
) -> Batch:
    """`images` images with `texts` texts of full length each: every token but the first is a target."""
    size = model.encoder.image_size
    pixels = torch.randint(256, (images, model.frames, 3, size, size), dtype=torch.uint8, generator=generator)
    tokens = torch.randint(model.vocab_size, (images, texts, text_tokens), generator=generator)
    rows = torch.arange(tokens.numel()).view_as(tokens)[..., :-1].flatten()
    return Batch(
        images=pixels,
        tokens=tokens,
        rows=rows,
        labels=tokens.flatten()[rows + 1],
        keys=[f"synthetic:{number}" for number in range(images)],
        problems=[],
    )
