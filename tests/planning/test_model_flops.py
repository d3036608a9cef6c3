"""FLOPs of a step against torch's own counter on the whole real model."""

from __future__ import annotations

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from git_scale.config import ModelConfig
from git_scale.data.batch import Batch
from git_scale.models.build import build_model
from git_scale.planning.model_flops import ModelFlops
from git_scale.recipes import load_run


def a_batch(B: int, F: int, K: int, T: int, side: int, targets: int) -> Batch:
    """Each text has `targets` targets."""
    rows = torch.arange(B * K * T).view(B, K, T)[..., :targets].flatten()
    return Batch(
        images=torch.zeros(B, F, 3, side, side, dtype=torch.uint8),
        tokens=torch.zeros(B, K, T, dtype=torch.long),
        rows=rows,
        labels=torch.zeros_like(rows),
        keys=[""] * B,
        problems=[],
    )


def counted_forward(config: ModelConfig, batch: Batch) -> int:
    """The products of one real forward pass, attention included; nothing is computed on `meta`."""
    with torch.device("meta"):
        model = build_model(config).eval()
        images = torch.empty(batch.images.shape)
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model(images, batch.tokens.to("meta"), batch.rows.to("meta"))
    return counter.get_total_flops()


@pytest.mark.parametrize("recipe", ["git_base", "demo"])
@pytest.mark.parametrize("attention", ["joint", "cross"])
@pytest.mark.parametrize("texts", [1, 3])
def test_a_step_costs_three_forwards_of_the_real_model(recipe: str, texts: int, attention: str) -> None:
    config = load_run(recipe, [f"model.decoder.attention={attention}"]).model
    batch = a_batch(B=2, F=1, K=texts, T=20, side=config.encoder.image_size, targets=15)
    expected = 3 * counted_forward(config, batch)
    assert ModelFlops(config).of_step([batch]) == pytest.approx(expected, rel=1e-6)


def test_frames_and_other_image_sizes_are_counted_as_they_run() -> None:
    config = load_run("git_base", ["model.frames=3", "model.decoder.layers=2"]).model
    flops = ModelFlops(config)
    for side in (160, 224):
        batch = a_batch(B=1, F=3, K=1, T=12, side=side, targets=10)
        assert flops.of_step([batch]) == pytest.approx(3 * counted_forward(config, batch), rel=1e-6)


def test_micro_batches_and_ranks_add_up() -> None:
    config = load_run("demo").model
    short, long = (a_batch(B=2, F=1, K=1, T=T, side=64, targets=T - 2) for T in (8, 20))
    alone, four = ModelFlops(config), ModelFlops(config, dp=4)
    assert alone.of_step([short]) < alone.of_step([long])
    assert alone.of_step([short, long]) == alone.of_step([short]) + alone.of_step([long])
    assert four.of_step([short]) == 4 * alone.of_step([short])


def test_a_batch_without_targets_still_costs_its_images() -> None:
    config = load_run("demo").model
    flops = ModelFlops(config)
    empty = flops.of_step([a_batch(B=2, F=1, K=1, T=8, side=64, targets=0)])
    full = flops.of_step([a_batch(B=2, F=1, K=1, T=8, side=64, targets=6)])
    head = 3 * 2 * 12 * config.decoder.width * config.vocab_size
    assert full - empty == head
    assert empty > 0
