"""The paper's model.pt, built key by key, against the same numbers carried into transformers by hand."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from git_scale.checkpoint.detect import open_checkpoint
from git_scale.checkpoint.opened_checkpoint import load_model
from git_scale.errors import CheckpointError

WIDTH, PATCH, SIDE, VISION, TEXT = 64, 8, 32, 2, 2


def microsoft_state(frames: int = 0, seed: int = 0) -> dict[str, Tensor]:
    """The published names and shapes, at a width of one head."""
    torch.manual_seed(seed)
    shapes: dict[str, tuple[int, ...]] = {
        "image_encoder.class_embedding": (WIDTH,),
        "image_encoder.positional_embedding": ((SIDE // PATCH) ** 2 + 1, WIDTH),
        "image_encoder.proj": (WIDTH, 24),
        "image_encoder.conv1.weight": (WIDTH, 3, PATCH, PATCH),
        "textual.visual_projection.0.weight": (WIDTH, WIDTH),
        "textual.visual_projection.0.bias": (WIDTH,),
        "textual.embedding.words.weight": (29, WIDTH),
        "textual.embedding.positions.weight": (16, WIDTH),
        "textual.output.bias": (29,),
    }
    norms = ["image_encoder.ln_pre", "image_encoder.ln_post", "textual.visual_projection.1"]
    norms.append("textual.embedding.layer_norm")
    for layer in range(VISION):
        block = f"image_encoder.transformer.resblocks.{layer}"
        norms += [f"{block}.ln_1", f"{block}.ln_2"]
        shapes |= {
            f"{block}.attn.in_proj_weight": (3 * WIDTH, WIDTH),
            f"{block}.attn.in_proj_bias": (3 * WIDTH,),
        }
        linears = [
            ("attn.out_proj", WIDTH, WIDTH),
            ("mlp.c_fc", 4 * WIDTH, WIDTH),
            ("mlp.c_proj", WIDTH, 4 * WIDTH),
        ]
        for name, out, into in linears:
            shapes |= {f"{block}.{name}.weight": (out, into), f"{block}.{name}.bias": (out,)}
    for layer in range(TEXT):
        block = f"textual.transformer.encoder.layer.{layer}"
        norms += [f"{block}.attention.output.LayerNorm", f"{block}.output.LayerNorm"]
        linears = [(f"attention.self.{part}", WIDTH, WIDTH) for part in ("query", "key", "value")]
        linears += [
            ("attention.output.dense", WIDTH, WIDTH),
            ("intermediate.dense", 80, WIDTH),
            ("output.dense", WIDTH, 80),
        ]
        for name, out, into in linears:
            shapes |= {f"{block}.{name}.weight": (out, into), f"{block}.{name}.bias": (out,)}
    shapes |= {f"img_temperal_embedding.{frame}": (1, 1, WIDTH) for frame in range(frames)}
    state = {name: torch.randn(shape) * 0.12 for name, shape in shapes.items()}
    for norm in norms:
        state |= {f"{norm}.weight": 1 + 0.12 * torch.randn(WIDTH), f"{norm}.bias": 0.12 * torch.randn(WIDTH)}
    return state | {"textual.output.weight": state["textual.embedding.words.weight"]}


def to_transformers(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """By the published table, written out a second time."""
    vision = "git.image_encoder.vision_model."
    out: dict[str, Tensor] = {}
    changes = [
        ("image_encoder.class_embedding", f"{vision}embeddings.class_embedding"),
        ("image_encoder.positional_embedding", f"{vision}embeddings.position_embedding.weight"),
        ("image_encoder.conv1", f"{vision}embeddings.patch_embedding"),
        ("image_encoder.ln_pre", f"{vision}pre_layrnorm"),
        ("image_encoder.ln_post", f"{vision}post_layernorm"),
        ("image_encoder.transformer.resblocks", f"{vision}encoder.layers"),
        (".attn.out_proj", ".self_attn.out_proj"),
        (".ln_1", ".layer_norm1"),
        (".ln_2", ".layer_norm2"),
        (".mlp.c_fc", ".mlp.fc1"),
        (".mlp.c_proj", ".mlp.fc2"),
        ("textual.visual_projection", "git.visual_projection.visual_projection"),
        ("textual.embedding.words", "git.embeddings.word_embeddings"),
        ("textual.embedding.positions", "git.embeddings.position_embeddings"),
        ("textual.embedding.layer_norm", "git.embeddings.LayerNorm"),
        ("textual.transformer.encoder", "git.encoder"),
        ("textual.output", "output"),
        ("img_temperal_embedding", "git.img_temporal_embedding"),
    ]
    for name, tensor in state.items():
        if name == "image_encoder.proj":
            continue
        for old, new in changes:
            name = name.replace(old, new)
        if ".attn.in_proj_" in name:
            before, kind = name.split(".attn.in_proj_")
            for number, part in enumerate("qkv"):
                rows = tensor[number * WIDTH : (number + 1) * WIDTH]
                out[f"{before}.self_attn.{part}_proj.{kind}"] = rows
        else:
            out[name] = tensor
    return out


def transformers_logits(build_git: Callable[..., Any], state: dict[str, Tensor], *inputs: Tensor) -> Tensor:
    frames = sum(name.startswith("img_temperal") for name in state)
    vision = {"hidden_size": WIDTH, "intermediate_size": 4 * WIDTH, "num_attention_heads": 1}
    theirs = build_git(
        vision=vision,
        hidden_size=WIDTH,
        intermediate_size=80,
        num_attention_heads=1,
        num_image_with_embedding=frames or None,
    )
    theirs.load_state_dict(to_transformers(state))
    images, tokens = inputs
    pixels = images if frames else images[:, 0]
    with torch.inference_mode():
        return theirs(input_ids=tokens, pixel_values=pixels).logits[0, -tokens.shape[1] :]


def save(folder: Path, state: dict[str, Tensor], name: str = "model.pt") -> Path:
    folder.mkdir(exist_ok=True)
    path = folder / name
    path.parent.mkdir(exist_ok=True)
    torch.save({"model": state}, path)
    return path


@pytest.mark.parametrize("prefix", ["", "module."])
@pytest.mark.parametrize("frames", [0, 6])
def test_logits_are_those_of_the_published_table(
    build_git: Callable[..., Any], tmp_path: Path, prefix: str, frames: int
) -> None:
    state = microsoft_state(frames)
    path = save(tmp_path / "GIT", {prefix + name: tensor for name, tensor in state.items()})
    opened = open_checkpoint(path.parent)
    assert opened.kind == "microsoft" and opened.run.model.decoder.tied and opened.tokenizer is None
    assert list(opened.weights.dropped) == ["image_encoder.proj"]
    torch.manual_seed(9)
    images, tokens = torch.randn(1, frames or 1, 3, SIDE, SIDE), torch.randint(29, (1, 7))
    expected = transformers_logits(build_git, state, images, tokens)
    with torch.inference_mode():
        found = load_model(opened).eval()(images, tokens[None], torch.arange(7))
    assert expected.std() > 0.3
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)
    logs = found.log_softmax(-1), expected.log_softmax(-1)
    torch.testing.assert_close(*logs, rtol=0, atol=1e-4)


def test_two_tensors_in_each_others_place_show(build_git: Callable[..., Any], tmp_path: Path) -> None:
    state = microsoft_state()
    swapped = dict(state)
    one, other = (f"image_encoder.transformer.resblocks.0.ln_{number}.bias" for number in (1, 2))
    swapped[one], swapped[other] = state[other], state[one]
    torch.manual_seed(9)
    images, tokens = torch.randn(1, 1, 3, SIDE, SIDE), torch.randint(29, (1, 7))
    model = load_model(open_checkpoint(save(tmp_path / "GIT", swapped))).eval()
    with torch.inference_mode():
        found = model(images, tokens[None], torch.arange(7))
    assert (found - transformers_logits(build_git, state, images, tokens)).abs().max() > 1e-2


def test_parameters_beside_it_say_how_images_are_resized(tmp_path: Path) -> None:
    path = save(tmp_path / "GIT", microsoft_state(), "snapshot/model.pt")
    plain = open_checkpoint(tmp_path / "GIT").run
    assert (plain.model.encoder.image_size, plain.data.resize, plain.data.max_side) == (SIDE, "crop", None)
    parameters = tmp_path / "GIT" / "parameter.yaml"
    parameters.write_text("param: {test_crop_size: 38, test_respect_ratio_max: 50}")
    run = open_checkpoint(path).run
    assert (run.model.encoder.image_size, run.data.resize, run.data.max_side) == (38, "fit", 50)
    assert "dynamic_img_size" not in run.model.encoder.options
    for text, words in (
        ("test_crop_size: 48", "17 image positions do not fit test_crop_size=48"),
        ("test_crop_size: big", "test_crop_size='big' is no side"),
        ("[1", "cannot be read"),
    ):
        parameters.write_text(text)
        with pytest.raises(CheckpointError, match=words):
            open_checkpoint(path)


@pytest.mark.parametrize("kind", ["unknown", "missing", "shape", "clip", "other"])
def test_what_is_no_git_of_the_papers_code(tmp_path: Path, kind: str) -> None:
    state = microsoft_state()
    if kind == "unknown":
        state["textual.gate"] = torch.zeros(1)
    elif kind == "missing":
        del state["textual.embedding.layer_norm.bias"]
    elif kind == "shape":
        state["textual.output.weight"] = torch.zeros(30, WIDTH)
    elif kind == "clip":
        state = {name.replace("image_encoder", "visual"): x for name, x in state.items() if "image" in name}
    else:
        state = {"weight": torch.zeros(1)}
    words = {
        "unknown": "textual.gate is unknown",
        "missing": "textual.embedding.layer_norm.bias is missing",
        "shape": r"textual.output.weight has the shape \[30, 64\] instead of \[29, 64\]",
        "clip": "image encoder alone, not a GIT",
        "other": "no GIT of the paper's code",
    }
    with pytest.raises(CheckpointError, match=words[kind]):
        open_checkpoint(save(tmp_path / "GIT", state))
