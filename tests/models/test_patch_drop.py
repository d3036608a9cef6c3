"""Left-out patches: which ones, what becomes of the others, and what it costs."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from git_scale.config import EncoderConfig
from git_scale.errors import ConfigError
from git_scale.models.build import build_encoder
from git_scale.models.encoders import ImageEncoder
from git_scale.models.patch_drop import draws_of_frames, kept_patches
from git_scale.planning.model_flops import encoder_pass

OPTIONS = {"patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2, "dynamic_img_size": True}


def encoder_of(rate: float, **options: Any) -> ImageEncoder:
    torch.manual_seed(0)
    return build_encoder(
        EncoderConfig(
            name="vit_tiny_patch16_224",
            image_size=32,
            patch_drop_rate=rate,
            options=OPTIONS | options,
        )
    ).eval()


def numbers(count: int) -> torch.Tensor:
    return torch.randint(2**62, (count,), generator=torch.Generator().manual_seed(0))


def test_as_many_of_each_image_in_their_order_and_each_as_often() -> None:
    kept = kept_patches(numbers(4000), 16, 0.75)
    assert kept.shape == (4000, 4) and kept.dtype == torch.int64
    assert (kept.diff(dim=1) > 0).all(), "in order, none twice"
    counts = kept.flatten().bincount(minlength=16)
    # 1000 of each; three standard deviations of a binomial of 4000 draws of 1 in 4 are 82
    assert counts.min() > 900 and counts.max() < 1100
    pairs = torch.zeros(16, 16).index_put_((kept[:, 0], kept[:, 1]), torch.ones(4000), accumulate=True)
    assert (pairs.triu(1) > 0).sum() > 80, "not the same neighbours together"


@pytest.mark.parametrize(
    ("patches", "rate", "left"), [(196, 0.5, 98), (196, 0.75, 49), (16, 0.99, 1), (49, 0.3, 34)]
)
def test_how_many_stay(patches: int, rate: float, left: int) -> None:
    assert kept_patches(numbers(3), patches, rate).shape == (3, left)


def test_of_a_number_always_the_same_and_of_each_frame_others() -> None:
    draws = draws_of_frames(numbers(2), 3)
    assert draws.shape == (6,) and len(set(draws.tolist())) == 6
    kept = kept_patches(draws, 64, 0.5)
    assert torch.equal(kept[3:4], kept_patches(draws[3:4], 64, 0.5)), "whatever stands beside it"
    assert len({tuple(row) for row in kept.tolist()}) == 6
    assert torch.equal(draws_of_frames(numbers(5), 1), numbers(5))


@torch.no_grad()
def test_the_blocks_see_the_kept_patches_with_their_positions() -> None:
    """Against timm's own layers, run one by one."""
    encoder, images, draws = encoder_of(0.5), torch.randn(3, 3, 32, 32), numbers(3)
    vit = encoder.backbone
    tokens = vit._pos_embed(vit.patch_embed(images))
    kept = kept_patches(draws, 16, 0.5)
    rows = [torch.cat([tokens[b, :1], tokens[b, 1:][kept[b]]]) for b in range(3)]
    expected = vit.norm(vit.blocks(torch.stack(rows)))
    found = encoder(images, draws)
    assert found.shape == (3, 9, 32), "the class token stays"
    torch.testing.assert_close(found, expected, rtol=0, atol=0)
    assert encoder(images).shape == (3, 17, 32), "without numbers all of them"
    torch.testing.assert_close(encoder(images), encoder_of(0.0)(images), rtol=0, atol=0)
    torch.testing.assert_close(encoder_of(0.0)(images, draws), encoder(images), rtol=0, atol=0)


def test_gradients_reach_the_patches_that_stay_alone() -> None:
    encoder, draws = encoder_of(0.5), numbers(1)
    images = torch.randn(1, 3, 32, 32, requires_grad=True)
    encoder(images, draws).square().sum().backward()
    assert images.grad is not None
    of_patches = images.grad.unfold(2, 8, 8).unfold(3, 8, 8).abs().sum((0, 1, 4, 5)).flatten()
    assert torch.equal(of_patches.nonzero().flatten(), kept_patches(draws, 16, 0.5)[0])


def test_flops_and_tokens_follow_the_rate() -> None:
    whole, half = (encoder_pass(encoder_of(rate).to("meta"), "vit", 32, 32) for rate in (0.0, 0.5))
    assert (whole.tokens, half.tokens) == (17, 9)
    embedding, width = 2 * 16 * 3 * 64 * 32, 32
    for found in (whole, half):
        blocks = 2 * (24 * found.tokens * width**2 + 4 * found.tokens**2 * width)
        assert found.flops == embedding + blocks


@pytest.mark.parametrize("name", ["resnet10t", "swin_tiny_patch4_window7_224"])
def test_an_encoder_that_computes_on_a_grid_is_refused(name: str) -> None:
    with pytest.raises(
        ConfigError, match=f"model.encoder.patch_drop_rate=0.5: {name} computes on the whole grid"
    ):
        build_encoder(EncoderConfig(name=name, patch_drop_rate=0.5))


def test_timms_own_rate_is_refused_which_would_differ_over_ranks() -> None:
    with pytest.raises(ConfigError, match=r"patch_drop_rate: set model\.encoder\.patch_drop_rate"):
        encoder_of(0.0, patch_drop_rate=0.5)
