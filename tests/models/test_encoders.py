"""timm architectures of every output format, seen as token sequences in reading order."""

from __future__ import annotations

import copy
import subprocess
import sys
from typing import Any

import pytest
import torch

from git_scale.config import EncoderConfig
from git_scale.errors import ConfigError
from git_scale.models import encoders
from git_scale.models.build import build_encoder
from git_scale.models.encoders import ImageEncoder

VIT = {"patch_size": 8, "embed_dim": 32, "depth": 1, "num_heads": 2}
SWIN = {"embed_dim": 16, "depths": [1, 1], "num_heads": [1, 2], "window_size": 4}
CONVNEXT = {"patch_size": 2, "depths": [1, 1, 1, 1], "dims": [8, 8, 16, 24]}
DAVIT = {"depths": [1, 1], "embed_dims": [16, 32], "num_heads": [1, 2]}


def build(name: str, image_size: int = 32, **options: Any) -> ImageEncoder:
    torch.manual_seed(0)
    return build_encoder(EncoderConfig(name=name, image_size=image_size, options=options)).eval()


@pytest.mark.parametrize(
    ("name", "options", "side", "tokens", "width"),
    [
        ("vit_tiny_patch16_224", VIT, 32, 17, 32),  # 4 x 4 patches and the class token
        ("swin_tiny_patch4_window7_224", SWIN, 32, 16, 32),  # patches of 4, merged once
        ("convnext_atto", CONVNEXT, 64, 4, 24),  # stride 32 whatever the stem: 2, then four halvings
        ("davit_tiny", DAVIT, 32, 16, 32),  # stem 4, one halving
    ],
)
def test_images_become_tokens(name: str, options: dict, side: int, tokens: int, width: int) -> None:
    encoder = build(name, side, **options)
    features = encoder(torch.randn(2, 3, side, side))
    assert features.shape == (2, tokens, width)
    assert encoder.width == width


@pytest.mark.parametrize(
    ("name", "options", "channels_last"),
    [
        ("swin_tiny_patch4_window7_224", SWIN, True),
        ("convnext_atto", CONVNEXT, False),
        ("davit_tiny", DAVIT, False),
    ],
)
def test_a_grid_is_read_row_by_row(name: str, options: dict, channels_last: bool) -> None:
    encoder = build(name, 64, **options)
    images = torch.randn(2, 3, 64, 64)
    grid = encoder.backbone(images)
    if not channels_last:
        grid = grid.permute(0, 2, 3, 1)
    _, height, width, _ = grid.shape
    assert height == width > 1
    tokens = encoder(images)
    for y in range(height):
        for x in range(width):
            assert torch.equal(tokens[:, y * width + x], grid[:, y, x])
    assert not torch.equal(tokens[:, 1], grid[:, 1, 0])  # column by column would be wrong


def test_a_vit_keeps_all_tokens_after_its_last_norm() -> None:
    encoder = build("vit_tiny_patch16_224", **VIT)
    images = torch.randn(1, 3, 32, 32)
    tokens = encoder(images)
    assert torch.equal(tokens, encoder.backbone.forward_features(images))
    # A fresh LayerNorm leaves mean 0 and variance 1 in every token, the class token (the first) included.
    assert tokens.mean(-1).abs().max() < 1e-5
    torch.testing.assert_close(tokens.var(-1, unbiased=False), torch.ones(1, 17), rtol=1e-2, atol=0)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({**VIT, "patch_sise": 16}, "did you mean patch_size for patch_sise?"),
        ({**VIT, "no_such_thing": 1}, "no_such_thing"),
        ({**VIT, "img_size": 64}, "options.img_size: set model.encoder.image_size"),
        ({**VIT, "pretrained": True}, "options.pretrained: first weights come from model.encoder.start"),
        ({**VIT, "checkpoint_path": "x.pt"}, "options.checkpoint_path: first weights come from"),
        ({**VIT, "in_chans": 1}, "options.in_chans: images have three channels"),
    ],
)
def test_an_option_that_the_encoder_does_not_know_is_refused(options: dict, words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        build("vit_tiny_patch16_224", **options)
    assert words in str(caught.value)


@pytest.mark.parametrize("word", ["false", "true", "no"])
def test_a_word_is_no_switch(word: str) -> None:
    with pytest.raises(ConfigError) as caught:
        build("vit_tiny_patch16_224", **VIT, class_token=word)
    assert caught.value.problems == [
        f"model.encoder.options.class_token={word!r}: a switch, true or false without quotes, is needed"
    ]
    assert build("vit_tiny_patch16_224", **VIT, weight_init="skip")


@pytest.mark.parametrize("name", ["resnet18", "convnext_atto", "davit_tiny", "mobilevit_s"])
def test_no_family_swallows_an_option(name: str) -> None:
    with pytest.raises(ConfigError, match="no_such_option"), torch.device("meta"):
        build(name, no_such_option=1)


@pytest.mark.parametrize(("side", "tokens"), [(16, 5), (24, 10), (32, 17), (48, 37)])
def test_a_vit_takes_other_sizes_when_asked_to(side: int, tokens: int) -> None:
    encoder = build("vit_tiny_patch16_224", dynamic_img_size=True, **VIT)
    assert encoder(torch.randn(1, 3, side, side)).shape == (1, tokens, 32)


def test_positions_of_a_ramp_stay_a_ramp() -> None:
    """Halfway between two values bicubic weights are symmetric, so that a linear function is kept there."""
    rows, columns = torch.meshgrid(torch.arange(8.0), torch.arange(8.0), indexing="ij")
    grid = torch.stack([rows, columns], dim=-1).flatten(0, 1)
    table = torch.cat([torch.tensor([[-7.0, 9.0]]), grid])[None]
    resized = encoders.resize_positions(table, (8, 8), (4, 8), 1)
    assert resized.shape == (1, 33, 2)
    assert torch.equal(resized[:, 0], table[:, 0])  # the class token
    found = resized[0, 1:].unflatten(0, (4, 8))
    # align_corners=False: row r of 4 lies at (r + 0.5) * 2 - 0.5 of 8
    torch.testing.assert_close(found[1:3, 3], torch.tensor([[2.5, 3.0], [4.5, 3.0]]))
    torch.testing.assert_close(found[2, :, 1], torch.arange(8.0))
    assert encoders.resize_positions(table, (8, 8), (8, 8), 1) is table


def test_smaller_images_meet_positions_without_a_filter() -> None:
    """As GIT's own code; timm itself would filter the table."""
    from timm.layers import resample_abs_pos_embed

    torch.manual_seed(0)
    table = torch.randn(1, 17, 6)
    options = {"old_size": [4, 4], "num_prefix_tokens": 1}
    plain = resample_abs_pos_embed(table, [2, 3], antialias=False, **options)
    filtered = resample_abs_pos_embed(table, [2, 3], **options)
    found = encoders.resize_positions(table, (4, 4), (2, 3), 1)
    torch.testing.assert_close(found, plain)
    assert (found - filtered).abs().max() > 0.1


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "deit3_small_patch16_224"])
def test_the_vit_itself_uses_them(name: str) -> None:
    """deit3 adds positions before the class token, without one for it."""
    encoder = build(name, dynamic_img_size=True, **VIT)
    vit, images = encoder.backbone, torch.randn(2, 3, 16, 40)
    with torch.no_grad():
        vit.pos_embed.normal_()
    found = encoder(images)
    prefix = 0 if vit.no_embed_class else 1
    fixed = build(name, **VIT)
    fixed.load_state_dict(encoder.state_dict())
    fixed.backbone.patch_embed.strict_img_size = False
    table = encoders.resize_positions(vit.pos_embed, (4, 4), (2, 5), prefix)
    fixed.backbone.pos_embed = torch.nn.Parameter(table.detach())
    torch.testing.assert_close(found, fixed(images))
    clone = copy.deepcopy(encoder)
    with torch.no_grad():
        encoder.backbone.pos_embed.zero_()
    torch.testing.assert_close(clone(images), found)  # a copy has positions of its own


@pytest.mark.parametrize(
    ("name", "options"), [("convnext_atto", CONVNEXT), ("davit_tiny", DAVIT)], ids=["convnext", "davit"]
)
def test_a_grid_grows_with_the_image(name: str, options: dict) -> None:
    encoder = build(name, 64, **options)
    small, large = (encoder(torch.randn(1, 3, side, side)).shape[1] for side in (64, 128))
    assert large == 4 * small


def test_the_shipped_encoders_have_no_classifier() -> None:
    with torch.device("meta"):
        encoder = build_encoder(EncoderConfig())
    assert [name for name, _ in encoder.named_parameters() if "head" in name or "fc." in name[-12:-6]] == []


def test_activation_checkpointing_reaches_the_backbone() -> None:
    encoder = build("vit_tiny_patch16_224", **VIT)
    encoder.set_activation_checkpointing(True)
    assert encoder.backbone.grad_checkpointing


def test_checkpointed_blocks_run_twice_and_not_once_more_for_their_stage() -> None:
    encoder = build("davit_tiny", depths=(1, 1), embed_dims=(8, 16), num_heads=(1, 2)).train()
    encoder.set_activation_checkpointing(True)
    runs = [0] * 2
    for number, stage in enumerate(encoder.backbone.stages):
        stage.blocks[0].register_forward_pre_hook(
            lambda *_, number=number: runs.__setitem__(number, runs[number] + 1)
        )
    encoder(torch.randn(1, 3, 64, 64)).sum().backward()
    assert runs == [2, 2]


def test_an_unknown_name_is_answered_with_near_ones() -> None:
    with pytest.raises(ConfigError) as caught:
        build("vit_base_patch16_clipp_224")
    (problem,) = caught.value.problems
    assert problem.startswith("model.encoder.name='vit_base_patch16_clipp_224': timm has no such model")
    assert "vit_base_patch16_clip_224" in problem


def test_a_name_like_no_other_is_refused_without_a_guess() -> None:
    with pytest.raises(ConfigError) as caught:
        build("xyzzy")
    assert caught.value.problems == ["model.encoder.name='xyzzy': timm has no such model"]


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("vit_tiny_patch16_224", {"depht": 2}),
        ("vit_tiny_patch16_224", {"num_heads": 5}),
        ("convnext_atto", {"dims": [8]}),
        ("davit_tiny", {"depths": "deep"}),
        ("vit_tiny_patch16_224", {"num_heads": 0}),
        ("vit_tiny_patch16_224", {"patch_size": 0}),
        ("vit_tiny_patch16_224", {"patch_size": -8}),
        ("vit_tiny_patch16_224", {"embed_dim": -8}),
        ("vit_tiny_patch16_224", {"norm_layer": 3}),
    ],
)
def test_options_that_timm_refuses_are_named(name: str, options: dict) -> None:
    with pytest.raises(ConfigError) as caught:
        build(name, **options)
    (problem,) = caught.value.problems
    assert problem.startswith(f"model.encoder: timm refuses {name!r} with options ")
    assert all(f"{key!r}: {value!r}" in problem for key, value in options.items())


def test_torchvisions_operators_are_declared_once_and_only_where_they_are_missing() -> None:
    encoders.declare_torchvision_operators()
    declared = len(encoders._TORCHVISION_STAND_IN)
    encoders.declare_torchvision_operators()
    assert len(encoders._TORCHVISION_STAND_IN) == declared <= 1
    assert hasattr(torch.ops.torchvision, "nms")
    import torchvision

    assert torchvision.extension._has_ops() == (declared == 0)


def test_real_operators_are_left_alone() -> None:
    """Operators declared beside real ones would keep torchvision's library from loading: timm would not start."""
    code = (
        "import sys, types;"
        "sys.modules['torchvision'] = types.ModuleType('torchvision');"  # imports well, as a fitting build does
        "import git_scale.models.encoders as e; sys.exit(len(e._TORCHVISION_STAND_IN))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_plugin_may_import_timm_before_a_model_is_built() -> None:
    code = "import git_scale.models.encoders, timm"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_clips_activation_is_the_lean_one_with_the_same_values_and_gradients() -> None:
    with torch.device("meta"):
        clip = build_encoder(EncoderConfig())
    assert sum(isinstance(module, encoders.QuickGelu) for module in clip.modules()) == 12  # one per block
    x = torch.linspace(-8, 8, 101, dtype=torch.float64, requires_grad=True)
    ours, plain = encoders.QuickGelu()(x), x * torch.sigmoid(1.702 * x)
    torch.testing.assert_close(ours, plain, rtol=1e-12, atol=1e-12)
    (our_gradient,), (gradient,) = (torch.autograd.grad(y.sum(), x) for y in (ours, plain))
    torch.testing.assert_close(our_gradient, gradient, rtol=1e-12, atol=1e-12)


def test_first_positions_as_wide_as_asked_for() -> None:
    config = EncoderConfig(name="vit_tiny_patch16_224", image_size=224, position_std=0.5)
    assert float(build_encoder(config).backbone.pos_embed.detach().std()) == pytest.approx(0.5, rel=0.05)
    with pytest.raises(ConfigError, match="resnet18 has no table of positions"):
        build_encoder(EncoderConfig(name="resnet18", position_std=0.5))


def test_pixels_beyond_the_last_whole_patch_are_not_seen() -> None:
    options = {"patch_size": 8, "embed_dim": 32, "depth": 1, "num_heads": 2, "dynamic_img_size": True}
    encoder = build_encoder(EncoderConfig(name="vit_tiny_patch16_224", image_size=32, options=options)).eval()
    images = torch.randn(2, 3, 37, 47)
    with torch.no_grad():
        whole = encoder(images)
        assert whole.shape == (2, 1 + 4 * 5, 32)
        assert torch.equal(whole, encoder(images[..., :32, :40]))
        assert not torch.equal(whole, encoder(images[..., 5:, 7:]))
