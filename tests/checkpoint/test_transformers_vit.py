"""CLIP and SigLIP as transformers keeps them: whole models and vision models alone, folders and files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from git_scale.checkpoint.clip import open_encoder
from git_scale.checkpoint.detect import open_checkpoint
from git_scale.checkpoint.native import export_native
from git_scale.checkpoint.opened_checkpoint import load_encoder
from git_scale.data.images import MEAN, STD
from git_scale.errors import CheckpointError
from git_scale.models.encoders import declare_torchvision_operators

VISION = {
    "hidden_size": 48,
    "intermediate_size": 70,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "image_size": 32,
    "patch_size": 8,
}
TEXT = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 2}
TEXT |= {"vocab_size": 40, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}


def build(kind: str, **vision: Any) -> Any:
    """A model of transformers with weights that let every part show."""
    declare_torchvision_operators()
    transformers = pytest.importorskip("transformers", reason="compares with transformers")
    family = "Siglip" if "siglip" in kind else "CLIP"
    torch.manual_seed(0)
    if kind.endswith("vision"):
        config = getattr(transformers, f"{family}VisionConfig")(**VISION | vision)
        model = getattr(transformers, f"{family}VisionModel")(config)
    else:
        config = getattr(transformers, f"{family}Config")(text_config=TEXT, vision_config=VISION | vision)
        model = getattr(transformers, f"{family}Model")(config)
    for name, parameter in model.named_parameters():
        is_scale = "norm" in name and name.endswith("weight")
        torch.nn.init.normal_(parameter, 1.0 if is_scale else 0.0, std=0.15)
    return model.eval()


@torch.inference_mode()
def their_features(model: Any, pixels: Tensor) -> Tensor:
    """All tokens after the last norm; SigLIP applies it to all, CLIP to the first one only."""
    vision = getattr(model, "vision_model", model)
    hidden: Tensor = vision(pixel_values=pixels).last_hidden_state
    if type(vision).__name__.startswith("CLIP"):
        hidden = vision.post_layernorm(hidden)
    return hidden


def normalised(pixels: Tensor, mean: Any, std: Any) -> Tensor:
    return (pixels - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]


@pytest.mark.parametrize("as_file", [False, True], ids=["folder", "file"])
@pytest.mark.parametrize("kind", ["clip", "clip_vision", "siglip", "siglip_vision"])
def test_features_are_theirs(tmp_path: Path, kind: str, as_file: bool) -> None:
    """With images as each of them normalises these: SigLIP's mean and deviation are 0.5."""
    theirs = build(kind)
    theirs.save_pretrained(tmp_path / "hf")
    opened = open_encoder(tmp_path / "hf" / "model.safetensors" if as_file else tmp_path / "hf", None)
    assert opened is not None and opened.holds_encoder_only
    pixels = torch.rand(2, 3, 32, 32)
    half = [0.5] * 3
    mean, std = (half, half) if "siglip" in kind else (MEAN, STD)
    expected = their_features(theirs, normalised(pixels, mean, std))
    images = normalised(pixels, MEAN, STD)
    with torch.inference_mode():
        found = load_encoder(opened).eval()(images)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)
    assert found.shape[1] == 16 + ("siglip" not in kind), "SigLIP has no class token"
    if "siglip" in kind:
        assert "the attention pooling to one vector; GIT reads all tokens" in opened.weights.dropped.values()
        assert (their_features(theirs, images) - expected).abs().max() > 1e-2, "the normalisation shows"
    if not as_file:
        report = export_native(opened, tmp_path / "native")
        assert report.max_abs_diff < 1e-4
        with torch.inference_mode():
            again = load_encoder(open_checkpoint(tmp_path / "native")).eval()(images)
        assert torch.equal(again, found)


def test_what_the_preprocessor_says_of_colours_is_followed(tmp_path: Path) -> None:
    theirs = build("clip_vision", hidden_act="gelu")
    theirs.save_pretrained(tmp_path)
    mean, std = [0.4, 0.5, 0.6], [0.3, 0.2, 0.25]
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({"image_mean": mean, "image_std": std}))
    opened = open_encoder(tmp_path, None)
    assert opened is not None
    pixels = torch.rand(1, 3, 32, 32)
    with torch.inference_mode():
        found = load_encoder(opened).eval()(normalised(pixels, MEAN, STD))
    expected = their_features(theirs, normalised(pixels, mean, std))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)


def test_what_is_refused(tmp_path: Path) -> None:
    theirs = build("siglip_vision")
    theirs.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    with pytest.raises(
        CheckpointError, match=r"image encoder alone, not a GIT.*convert_checkpoint.py import"
    ):
        open_checkpoint(tmp_path)
    with pytest.raises(
        CheckpointError, match=r"--encoder vit_base_patch16_clip_224 is .* but the file holds"
    ):
        open_encoder(tmp_path, "vit_base_patch16_clip_224")
    for change, words in (
        ({"hidden_act": "relu"}, "hidden_act='relu' cannot be imported"),
        ({"layer_norm_eps": 1e-5}, "layer_norm_eps=1e-05"),
        ({"num_attention_heads": 5}, "does not divide into 5 heads"),
        ({"model_type": "siglip2_vision_model"}, "model_type='siglip2_vision_model'"),
    ):
        (tmp_path / "config.json").write_text(json.dumps(config | change))
        with pytest.raises(CheckpointError, match=words):
            open_encoder(tmp_path, None)
    (tmp_path / "config.json").unlink()
    with pytest.raises(CheckpointError, match=r"put its config.json .* beside it"):
        open_encoder(tmp_path, None)
