"""What a measurement and its rehearsal on a CPU differ in: sizes, and nothing else."""

from __future__ import annotations

from dataclasses import dataclass

Overrides = tuple[str, ...]

_TINY_DECODER = (
    "model.decoder={layers: 2, width: 32, heads: 2, ffn: 64, positions: 64, dropout: 0.0}",
    "model.vocab_size=200",
    "optimizer.encoder_lr=1e-3",  # so that two steps lower the loss
    "optimizer.decoder_lr=1e-3",
)
_TINY_VIT = (
    "model.encoder.options={embed_dim: 64, depth: 2, num_heads: 1, dynamic_img_size: true}",
    *_TINY_DECODER,
)


@dataclass(frozen=True)
class BenchmarkShapes:
    """Holds the sizes of a measurement. `recipes`: overrides of each recipe; none: it is measured as published."""

    recipes: dict[str, Overrides]
    text_tokens: int = 40
    accumulation: int = 4
    """Micro-batches per step: as many are the recipes' 4096 images on 8 GPUs, 128 at a time."""
    warm_up: int = 1
    """Steps before those that are timed."""
    timed: int = 2
    micro_batches: tuple[int, ...] = (128, 96, 64, 48, 32, 24, 16, 8)
    """The largest that fits is taken."""
    base_micro_batches: tuple[int, ...] = (128, 256, 512)
    """Of git_base, which leaves most of a GPU's memory free."""
    probes: tuple[int, int] = (4, 8)
    """Images; two points of the straight line memory(images)."""
    heads: int = 16
    """Of git_large's image encoder, which the attention stage takes its shape from."""
    backend: str = "inductor"
    """Of torch.compile."""
    generate_images: int = 64
    new_tokens: int = 20
    budget_s: float = 15
    """Rounds of the comparison with transformers' generation go on for so long."""


FULL = BenchmarkShapes(recipes={})

# Every path of every stage in seconds on a CPU: what fails here would have failed on a GPU.
TINY = BenchmarkShapes(
    recipes={
        "git_base": ("model.encoder.image_size=32", "data.image_sizes=[32]", *_TINY_VIT),
        "git_large": ("model.encoder.image_size=28", "data.image_sizes=[28]", *_TINY_VIT),
        "git2": (
            "model.encoder.image_size=32",
            "model.encoder.options={depths: [1, 1, 1, 1], embed_dims: [16, 16, 32, 32], num_heads: [1, 1, 2, 2]}",
            *_TINY_DECODER,
        ),
    },
    text_tokens=6,
    accumulation=2,
    timed=1,
    micro_batches=(2,),
    base_micro_batches=(1, 2),
    probes=(1, 2),
    heads=2,
    backend="eager",
    generate_images=2,
    new_tokens=4,
    budget_s=0,
)
