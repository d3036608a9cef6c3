"""Image encoders that come alone: CLIP's, open_clip's, timm's."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from git_scale.checkpoint.clip import OPENAI_NUMBERS, open_encoder
from git_scale.checkpoint.detect import open_checkpoint
from git_scale.checkpoint.image_size import with_image_size
from git_scale.checkpoint.names import clip_rules, cut
from git_scale.checkpoint.native import export_native
from git_scale.checkpoint.opened_checkpoint import OpenedCheckpoint, load_encoder, load_model
from git_scale.checkpoint.vit import PUBLISHED, VitSizes, clip_encoder, read_sizes
from git_scale.config import EncoderConfig
from git_scale.data.images import MEAN, STD
from git_scale.errors import CheckpointError
from git_scale.models.build import build_encoder

WIDTH, PATCH, SIDE = 64, 8, 32


def clip_model(
    activation: str = "quick_gelu", image_size: int = SIDE, width: int = WIDTH, heads: int = 1
) -> Any:
    """The vision tower of CLIP in transformers: another implementation."""
    pytest.importorskip("transformers", reason="compares with CLIP of transformers")
    from git_scale.models.encoders import declare_torchvision_operators

    declare_torchvision_operators()
    from transformers import CLIPVisionConfig, CLIPVisionModel

    torch.manual_seed(0)
    config = CLIPVisionConfig(
        hidden_size=width,
        intermediate_size=4 * width,
        num_hidden_layers=2,
        num_attention_heads=heads,
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
        "visual.proj": torch.zeros(len(theirs["embeddings.class_embedding"]), 16),
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


def open_clip_state(model: Any) -> dict[str, Tensor]:
    """As open_clip writes it: without the numbers that OpenAI's own file holds."""
    return {name: tensor for name, tensor in clip_state(model).items() if name not in OPENAI_NUMBERS}


def write_open_clip_config(folder: Path, vision: dict[str, Any], **model: Any) -> None:
    config = {"model_cfg": {"embed_dim": 16, "vision_cfg": vision, **model}}
    (folder / "open_clip_config.json").write_text(json.dumps(config))


def features_of(opened: OpenedCheckpoint | None, images: Tensor) -> Tensor:
    assert opened is not None and opened.holds_encoder_only
    with torch.inference_mode():
        found: Tensor = load_encoder(opened).eval()(images)
    return found


@pytest.mark.parametrize("file", ["clip.pt", "open_clip_model.safetensors"])
@pytest.mark.parametrize("activation", ["quick_gelu", "gelu"])
def test_features_are_clips(tmp_path: Path, file: str, activation: str) -> None:
    theirs = clip_model(activation)
    path, state = tmp_path / file, open_clip_state(theirs)
    torch.save(state, path) if path.suffix == ".pt" else save_file(state, path)
    write_open_clip_config(tmp_path, {"width": WIDTH}, quick_gelu=activation == "quick_gelu")
    opened = open_encoder(path, None)
    assert opened is not None and len(opened.weights.dropped) == 7 and "visual.proj" in opened.weights.dropped
    images = torch.randn(2, 3, SIDE, SIDE)
    expected = their_features(theirs, images)
    torch.testing.assert_close(features_of(opened, images), expected, rtol=0, atol=1e-4)
    write_open_clip_config(tmp_path, {"width": WIDTH}, quick_gelu=activation != "quick_gelu")
    other = features_of(open_encoder(path, None), images)
    assert (other - expected).abs().max() > 1e-3  # the activation shows


@pytest.mark.parametrize(("heads", "head_width"), [(2, 80), (2, 88), (1, 104), (4, 32)])
def test_clip_vits_of_every_head_width(tmp_path: Path, heads: int, head_width: int) -> None:
    """80, 88 and 104 are those of ViT-H/14, g/14 and bigG/14; 64 would give other features without an error."""
    width = heads * head_width
    theirs = clip_model("gelu", width=width, heads=heads)
    save_file(open_clip_state(theirs), tmp_path / "open_clip_model.safetensors")
    with pytest.raises(CheckpointError, match=r"number of heads .* open_clip_config.json .* --encoder"):
        open_encoder(tmp_path, None)
    write_open_clip_config(
        tmp_path, {"head_width": head_width, "width": width, "layers": 2, "patch_size": PATCH}
    )
    opened = open_encoder(tmp_path, None)
    assert opened is not None and opened.run.model.encoder.options["num_heads"] == heads
    images = torch.randn(2, 3, SIDE, SIDE)
    expected = their_features(theirs, images)
    torch.testing.assert_close(features_of(opened, images), expected, rtol=0, atol=1e-4)
    wrong = clip_model("gelu", width=width, heads=2 * heads)
    wrong.load_state_dict(theirs.state_dict())
    assert (their_features(wrong, images) - expected).abs().max() > 1e-2  # the head width shows


def on_meta(width: int, layers: int, patch: int, hidden: int) -> dict[str, torch.Size]:
    shapes = {"conv1.weight": (width, 3, patch, patch), "positional_embedding": (257, width)}
    shapes |= {f"transformer.resblocks.{n}.mlp.c_fc.weight": (hidden, width) for n in range(layers)}
    return {f"visual.{name}": torch.Size(shape) for name, shape in shapes.items()}


def test_published_sizes_tell_the_heads_and_are_timms() -> None:
    """Of a bare file; timm's architectures of these names are the other source of the table."""
    for sizes, template in PUBLISHED.items():
        shapes = on_meta(sizes.width, sizes.layers, sizes.patch, sizes.hidden)
        assert read_sizes(shapes, "visual.", Path("bare"), None)[0] == sizes
        encoder = clip_encoder(sizes, 16 * sizes.patch, quick_gelu=False)
        assert encoder.name == template.format("") and set(encoder.options) == {"dynamic_img_size"}
        with torch.device("meta"):
            vit = build_encoder(encoder).backbone
        block = vit.blocks[0]
        assert (vit.patch_embed.patch_size[0], vit.embed_dim, len(vit.blocks)) == sizes[:3]
        assert (block.attn.num_heads, block.mlp.fc1.out_features) == sizes[3:]
    assert {1280 // 80, 1408 // 88, 1664 // 104} == {16}
    with pytest.raises(CheckpointError, match="number of heads"):
        read_sizes(on_meta(1280, 24, 14, 5120), "visual.", Path("bare"), None)


def test_what_tells_the_activation(tmp_path: Path) -> None:
    path = tmp_path / "clip.safetensors"
    save_file(clip_state(clip_model()), path)
    opened = open_encoder(path, None)  # OpenAI's own, by the numbers in it
    assert opened is not None and "quickgelu" in opened.run.model.encoder.name
    with pytest.raises(
        CheckpointError, match=r"--encoder vit_base_patch16_clip_224 is .* but the file holds"
    ):
        open_encoder(path, "vit_base_patch16_clip_224")
    write_open_clip_config(tmp_path, {"width": WIDTH})
    opened = open_encoder(path, None)
    assert opened is not None and "quickgelu" not in opened.run.model.encoder.name
    write_open_clip_config(tmp_path, {"width": 768})
    with pytest.raises(CheckpointError, match=r"says width=768, the file holds 64"):
        open_encoder(path, None)


def test_a_bare_file_of_published_size_asks_for_its_activation(tmp_path: Path) -> None:
    shape = VitSizes(32, 512, 12, 8, 2048)
    small = build_encoder(clip_encoder(shape, 64, quick_gelu=False)).backbone
    foreign = {
        t: p for rule in clip_rules(12, "visual.") for t, p in cut(rule, small.state_dict()[rule.ours[17:]])
    }
    save_file({name: part.contiguous() for name, part in foreign.items()}, tmp_path / "bare.safetensors")
    with pytest.raises(CheckpointError, match=r"--encoder vit_medium_patch32_clip_224 \(GELU\)"):
        open_encoder(tmp_path / "bare.safetensors", None)
    opened = open_encoder(tmp_path / "bare.safetensors", "vit_medium_patch32_clip_224")
    images = torch.randn(1, 3, 64, 64)
    with torch.inference_mode():
        torch.testing.assert_close(features_of(opened, images), small.eval()(images))


@pytest.mark.parametrize("layout", ["training", "compiled", "lightning", "custom_text", "module"])
def test_layouts_of_clip_files(tmp_path: Path, layout: str) -> None:
    theirs = clip_model("gelu")
    state = open_clip_state(theirs)
    if layout == "custom_text":
        state = {n if n.startswith("visual.") else f"text.{n}": x for n, x in state.items()}
    wrapper = {
        "training": "module.",
        "module": "module.module.",
        "compiled": "_orig_mod.",
        "lightning": "model.",
    }
    state = {wrapper.get(layout, "") + name: tensor for name, tensor in state.items()}
    whole: Any = {
        "epoch": 3,
        "name": "run",
        "state_dict": state,
        "optimizer": {"state": {}, "param_groups": []},
    }
    torch.save(whole if layout in ("training", "lightning") else state, tmp_path / "epoch_3.pt")
    write_open_clip_config(tmp_path, {})
    opened = open_encoder(tmp_path / "epoch_3.pt", None)
    images = torch.randn(2, 3, SIDE, SIDE)
    torch.testing.assert_close(features_of(opened, images), their_features(theirs, images), rtol=0, atol=1e-4)
    with pytest.raises(CheckpointError, match=r"image encoder alone.*convert_checkpoint.py import"):
        open_checkpoint(tmp_path / "epoch_3.pt")


def test_a_folder_of_an_encoder_starts_a_training_and_nothing_else(tmp_path: Path) -> None:
    theirs = clip_model()
    torch.save(clip_state(theirs), tmp_path / "clip.pt")
    source = open_encoder(tmp_path / "clip.pt", None)
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
def test_timms_own_files(tmp_path: Path, name: str, caplog: pytest.LogCaptureFixture) -> None:
    import timm

    torch.manual_seed(0)
    theirs = timm.create_model(name, num_classes=7).eval()
    save_file(theirs.state_dict(), tmp_path / "model.safetensors")
    opened = open_encoder(tmp_path / "model.safetensors", name)
    assert opened is not None
    assert set(opened.weights.dropped.values()) == {"timm's classifier"}
    ours = load_encoder(opened).eval()
    pixels = torch.rand(1, 3, 224, 224)
    images = normalised(pixels, MEAN, STD)
    with torch.inference_mode():
        config = theirs.pretrained_cfg
        # a ViT takes the difference into its first layer; the padded convolution of a ResNet cannot
        is_folded = name.startswith("vit")
        features = theirs.forward_features(
            normalised(pixels, config["mean"], config["std"]) if is_folded else images
        )
        expected = features if features.ndim == 3 else features.flatten(2).transpose(1, 2)
        torch.testing.assert_close(ours(images), expected, rtol=0, atol=1e-4)
    assert ("was folded into" if is_folded else "cannot take the difference") in caplog.text
    assert open_encoder(tmp_path / "model.safetensors", None) is None
    if name == "resnet18":
        assert with_image_size(opened, 256).run.model.encoder.image_size == 256
        assert with_image_size(opened, 256).weights is opened.weights, "a convolution takes any size"


def normalised(pixels: Tensor, mean: Any, std: Any) -> Tensor:
    return (pixels - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]


def test_other_colours_go_into_the_positions_of_a_vit_without_bias(tmp_path: Path) -> None:
    """The LAION ViT-L/14 of open_clip was trained with a mean and deviation of 0.5."""
    theirs = clip_model("gelu")
    save_file(open_clip_state(theirs), tmp_path / "open_clip_model.safetensors")
    config = {"model_cfg": {"vision_cfg": {}}, "preprocess_cfg": {"mean": [0.5] * 3, "std": [0.4, 0.5, 0.6]}}
    (tmp_path / "open_clip_config.json").write_text(json.dumps(config))
    pixels = torch.rand(2, 3, SIDE, SIDE)
    expected = their_features(theirs, normalised(pixels, [0.5] * 3, [0.4, 0.5, 0.6]))
    found = features_of(open_encoder(tmp_path, None), normalised(pixels, MEAN, STD))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)


def test_open_clip_with_a_trunk_of_timm(tmp_path: Path) -> None:
    """Its attention pooling, its projection and its text tower are left out."""
    import timm

    torch.manual_seed(0)
    trunk = timm.create_model("test_vit", num_classes=0, global_pool="map").eval()
    assert any(key.startswith("attn_pool.") for key in trunk.state_dict())
    state = {f"module.visual.trunk.{key}": tensor for key, tensor in trunk.state_dict().items()}
    state |= {"module.visual.head.proj.weight": torch.ones(2), "module.text.ln_final.bias": torch.ones(2)}
    torch.save({"state_dict": state}, tmp_path / "open_clip_pytorch_model.bin")
    with pytest.raises(CheckpointError, match=r"open_clip_config.json .*--encoder"):
        open_encoder(tmp_path, None)
    config: dict[str, Any] = {"model_cfg": {"vision_cfg": {"timm_model_name": "test_vit", "image_size": 160}}}
    config["preprocess_cfg"] = {"mean": [0.5] * 3, "std": [0.5] * 3}
    (tmp_path / "open_clip_config.json").write_text(json.dumps(config))
    opened = open_encoder(tmp_path, None)
    assert opened is not None
    reasons = set(opened.weights.dropped.values())
    assert reasons == {"the pooling to one vector; GIT reads all tokens", "CLIP's text tower"}
    pixels = torch.rand(2, 3, 160, 160)
    with torch.inference_mode():
        expected = trunk.forward_features(normalised(pixels, [0.5] * 3, [0.5] * 3))
    found = features_of(opened, normalised(pixels, MEAN, STD))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)


def test_wrong_names_and_tensors(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    state = build_encoder(EncoderConfig(name="vit_tiny_patch16_224")).backbone.state_dict()
    save_file(state | {"extra.weight": torch.zeros(1)}, path)
    with pytest.raises(CheckpointError, match=r"near ones: .*vit_tiny_patch16_224"):
        open_encoder(path, "vit_tinny_patch16_224")
    with pytest.raises(CheckpointError, match=r"extra\.weight is unknown"):
        open_encoder(path, "vit_tiny_patch16_224")
    with pytest.raises(CheckpointError, match=r"cls_token has the shape \[1, 1, 192\] instead of"):
        open_encoder(path, "vit_small_patch16_224")
    for name, shape, words in (("visual.conv1.weight", (8, 3, 3, 3), "no CLIP ViT under 'visual.'"),):
        save_file({name: torch.zeros(shape)}, path)
        with pytest.raises(CheckpointError, match=words):
            open_encoder(path, None)
