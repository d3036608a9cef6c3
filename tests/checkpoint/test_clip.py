"""Image encoders that come alone: CLIP's, open_clip's, timm's."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from git_scale.checkpoint.clip import open_encoder, with_image_size
from git_scale.checkpoint.native import export_native
from git_scale.checkpoint.opened import load_encoder, load_model, open_checkpoint
from git_scale.config import EncoderConfig
from git_scale.errors import CheckpointError
from git_scale.models.encoders import ImageEncoder

WIDTH, PATCH, SIDE = 64, 8, 32


def clip_model(activation: str = "quick_gelu", image_size: int = SIDE) -> Any:
    """The vision tower of CLIP in transformers: another implementation."""
    pytest.importorskip("transformers", reason="compares with CLIP of transformers")
    from git_scale.models.encoders import declare_torchvision_operators

    declare_torchvision_operators()
    from transformers import CLIPVisionConfig, CLIPVisionModel

    torch.manual_seed(0)
    config = CLIPVisionConfig(
        hidden_size=WIDTH,
        intermediate_size=4 * WIDTH,
        num_hidden_layers=2,
        num_attention_heads=1,
        image_size=image_size,
        patch_size=PATCH,
        hidden_act=activation,
    )
    model = CLIPVisionModel(config).eval()
    for name, parameter in model.named_parameters():
        is_scale = "norm" in name and name.endswith("weight")
        torch.nn.init.normal_(parameter, 1.0 if is_scale else 0.0, std=0.15)
    return model


def clip_state(model: Any) -> dict[str, Tensor]:
    """In OpenAI's names, with the rest of its file."""
    theirs = {name.removeprefix("vision_model."): tensor for name, tensor in model.state_dict().items()}
    state = {
        "visual.class_embedding": theirs["embeddings.class_embedding"],
        "visual.positional_embedding": theirs["embeddings.position_embedding.weight"],
        "visual.conv1.weight": theirs["embeddings.patch_embedding.weight"],
        "visual.proj": torch.zeros(WIDTH, 16),
    }
    for kind in ("weight", "bias"):
        state[f"visual.ln_pre.{kind}"] = theirs[f"pre_layrnorm.{kind}"]
        state[f"visual.ln_post.{kind}"] = theirs[f"post_layernorm.{kind}"]
        for layer in range(2):
            old, new = f"encoder.layers.{layer}", f"visual.transformer.resblocks.{layer}"
            parts = [theirs[f"{old}.self_attn.{part}_proj.{kind}"] for part in "qkv"]
            state[f"{new}.attn.in_proj_{kind}"] = torch.cat(parts)
            state[f"{new}.attn.out_proj.{kind}"] = theirs[f"{old}.self_attn.out_proj.{kind}"]
            for ours, name in (("ln_1", "layer_norm1"), ("ln_2", "layer_norm2")):
                state[f"{new}.{ours}.{kind}"] = theirs[f"{old}.{name}.{kind}"]
            for ours, name in (("c_fc", "fc1"), ("c_proj", "fc2")):
                state[f"{new}.mlp.{ours}.{kind}"] = theirs[f"{old}.mlp.{name}.{kind}"]
    text = [
        "transformer.resblocks.0.ln_1.weight",
        "token_embedding.weight",
        "positional_embedding",
        "ln_final.bias",
    ]
    text += ["text_projection", "logit_scale"]
    numbers = {name: torch.tensor(3) for name in ("input_resolution", "context_length", "vocab_size")}
    return {n: x.contiguous().clone() for n, x in state.items()} | {n: torch.ones(2) for n in text} | numbers


@torch.inference_mode()
def their_features(model: Any, images: Tensor) -> Tensor:
    """All tokens after the last norm, which CLIP itself applies to the first one only."""
    vision = getattr(model, "vision_model", model)
    return vision.post_layernorm(model(pixel_values=images).last_hidden_state)


@pytest.mark.parametrize("file", ["clip.pt", "open_clip_model.safetensors"])
@pytest.mark.parametrize("activation", ["quick_gelu", "gelu"])
def test_features_are_clips(tmp_path: Path, file: str, activation: str) -> None:
    theirs = clip_model(activation)
    path = tmp_path / file
    torch.save(clip_state(theirs), path) if path.suffix == ".pt" else save_file(clip_state(theirs), path)
    name = (
        "vit_base_patch16_clip_quickgelu_224" if activation == "quick_gelu" else "vit_base_patch16_clip_224"
    )
    opened = open_encoder(path, name)
    assert opened is not None and opened.holds_encoder_only
    assert len(opened.weights.dropped) == 10 and "visual.proj" in opened.weights.dropped
    images = torch.randn(2, 3, SIDE, SIDE)
    expected = their_features(theirs, images)
    with torch.inference_mode():
        found = load_encoder(opened).eval()(images)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)
    other = open_encoder(path, "vit_base_patch16_clip_224" if activation == "quick_gelu" else "a_quickgelu")
    assert other is not None
    with torch.inference_mode():
        assert (load_encoder(other).eval()(images) - expected).abs().max() > 1e-3  # the activation shows


def test_what_tells_the_activation(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "clip.safetensors"
    save_file(clip_state(clip_model()), path)
    with caplog.at_level(logging.WARNING):
        opened = open_encoder(path, None)
    assert opened is not None and "quickgelu" in opened.run.model.encoder.name
    assert "--encoder vit_base_patch16_clip_224" in caplog.text
    (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": {"vision_cfg": {}}}))
    opened = open_encoder(path, None)
    assert opened is not None and "quickgelu" not in opened.run.model.encoder.name


def test_a_folder_of_an_encoder_starts_a_training_and_nothing_else(tmp_path: Path) -> None:
    theirs = clip_model()
    torch.save(clip_state(theirs), tmp_path / "clip.pt")
    source = open_encoder(tmp_path / "clip.pt", "quickgelu")
    assert source is not None
    report = export_native(with_image_size(source, 48), tmp_path / "out")
    assert report.verified_with == "git_scale" and report.max_abs_diff == 0
    opened = open_checkpoint(tmp_path / "out")
    assert (opened.kind, opened.holds_encoder_only, opened.tokenizer) == ("native", True, None)
    assert all(name.startswith("encoder.") for name in opened.weights.shapes)
    with pytest.raises(CheckpointError, match="an image encoder alone, no GIT"):
        load_model(opened)
    images = torch.randn(1, 3, 48, 48)
    with torch.inference_mode():
        expected = theirs(pixel_values=images, interpolate_pos_encoding=True).last_hidden_state
        expected = getattr(theirs, "vision_model", theirs).post_layernorm(expected)
        torch.testing.assert_close(load_encoder(opened).eval()(images), expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", ["resnet18", "vit_tiny_patch16_224"])
def test_timms_own_files(tmp_path: Path, name: str) -> None:
    import timm

    torch.manual_seed(0)
    theirs = timm.create_model(name, num_classes=7).eval()
    save_file(theirs.state_dict(), tmp_path / "model.safetensors")
    opened = open_encoder(tmp_path / "model.safetensors", name)
    assert opened is not None
    assert set(opened.weights.dropped.values()) == {"timm's classifier"}
    ours = load_encoder(opened).eval()
    images = torch.randn(1, 3, 224, 224)
    with torch.inference_mode():
        features = theirs.forward_features(images)
        expected = features if features.ndim == 3 else features.flatten(2).transpose(1, 2)
        torch.testing.assert_close(ours(images), expected)
    assert open_encoder(tmp_path / "model.safetensors", None) is None
    if name == "resnet18":
        assert with_image_size(opened, 256).run.model.encoder.image_size == 256
        assert with_image_size(opened, 256).weights is opened.weights, "a convolution takes any size"


def test_wrong_names_and_tensors(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    state = ImageEncoder(EncoderConfig(name="vit_tiny_patch16_224")).backbone.state_dict()
    save_file(state | {"extra.weight": torch.zeros(1)}, path)
    with pytest.raises(CheckpointError, match=r"near ones: .*vit_tiny_patch16_224"):
        open_encoder(path, "vit_tinny_patch16_224")
    with pytest.raises(CheckpointError, match=r"extra\.weight is unknown"):
        open_encoder(path, "vit_tiny_patch16_224")
    with pytest.raises(CheckpointError, match=r"cls_token has the shape \[1, 1, 192\] instead of"):
        open_encoder(path, "vit_small_patch16_224")
    for name, shape, words in (
        ("visual.conv1.weight", (8, 3, 3, 3), "no CLIP ViT under 'visual.'"),
        ("visual.trunk.x", (3,), "no CLIP ViT"),
    ):
        save_file({name: torch.zeros(shape)}, path)
        with pytest.raises(CheckpointError, match=words):
            open_encoder(path, None)
