"""GIT of transformers, opened as ours: the same numbers, and clear words where that cannot be."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from git_scale.checkpoint.detect import open_checkpoint
from git_scale.checkpoint.image_size import with_image_size
from git_scale.checkpoint.opened_checkpoint import load_model
from git_scale.errors import CheckpointError
from git_scale.inference.generate import Decoding, generate

BuildGit = Callable[..., Any]
SaveGit = Callable[..., Path]
pytest.importorskip("transformers", reason="compares with transformers")

CONFIGS: dict[str, dict[str, Any]] = {
    "plain": {},
    "odd_image_of_six_frames": {"vision": {"image_size": 35, "patch_size": 8}, "num_image_with_embedding": 6},
    "patch14_one_layer": {"vision": {"image_size": 42, "patch_size": 14}, "num_hidden_layers": 1},
    "patch16_gelu_three_layers": {
        "vision": {"image_size": 48, "patch_size": 16, "hidden_act": "gelu", "num_hidden_layers": 3},
        "num_hidden_layers": 3,
    },
    "equal_tables": {"tied": True, "hidden_size": 24, "num_attention_heads": 3},
    "stored_once": {"tied": True, "tie_word_embeddings": True},
    "uneven_widths": {
        "vision": {"hidden_size": 60, "intermediate_size": 100, "num_attention_heads": 5, "image_size": 33},
        "intermediate_size": 77,
    },
}


def draw(model: Any, length: int = 7, seed: int = 1) -> tuple[Tensor, Tensor]:
    """Images [2, F, 3, S, S] and tokens [2, T]."""
    torch.manual_seed(seed)
    config = model.config
    side, frames = config.vision_config.image_size, config.num_image_with_embedding or 1
    return torch.randn(2, frames, 3, side, side), torch.randint(config.vocab_size, (2, length))


@torch.inference_mode()
def their_logits(model: Any, images: Tensor, tokens: Tensor, **options: Any) -> Tensor:
    pixels = images if images.shape[1] > 1 else images[:, 0]
    return model(input_ids=tokens, pixel_values=pixels, **options).logits[:, -tokens.shape[1] :]


@torch.inference_mode()
def our_logits(model: Any, images: Tensor, tokens: Tensor) -> Tensor:
    rows = torch.arange(tokens.numel())
    return model.eval()(images, tokens[:, None], rows).unflatten(0, tokens.shape)


def close(ours: Tensor, theirs: Tensor) -> bool:
    logs = (x.log_softmax(-1) for x in (ours, theirs))
    return torch.allclose(ours, theirs, rtol=0, atol=1e-4) and torch.allclose(*logs, rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", CONFIGS)
def test_logits_are_theirs(build_git: BuildGit, save_git: SaveGit, name: str) -> None:
    theirs = build_git(**CONFIGS[name])
    opened = open_checkpoint(save_git(theirs))
    assert opened.kind == "huggingface" and not opened.holds_encoder_only
    assert opened.run.model.decoder.tied == bool(CONFIGS[name].get("tied"))
    images, tokens = draw(theirs)
    expected = their_logits(theirs, images, tokens)
    assert expected.std() > 0.3  # or a difference would not show
    assert close(our_logits(load_model(opened), images, tokens), expected)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("git.encoder.layer.0.attention.self.key.weight", "git.encoder.layer.0.attention.self.value.weight"),
        ("git.embeddings.LayerNorm.bias", "git.visual_projection.visual_projection.1.bias"),
        ("git.img_temporal_embedding.0", "git.img_temporal_embedding.1"),
        (
            "git.image_encoder.vision_model.encoder.layers.0.self_attn.q_proj.bias",
            "git.image_encoder.vision_model.encoder.layers.0.self_attn.v_proj.bias",
        ),
    ],
)
def test_two_tensors_in_each_others_place_show(
    build_git: BuildGit, save_git: SaveGit, one: str, other: str
) -> None:
    theirs = build_git(num_image_with_embedding=2)
    folder = save_git(theirs)
    state = load_file(folder / "model.safetensors")
    state[one], state[other] = state[other], state[one]
    save_file(state, folder / "model.safetensors", {"format": "pt"})
    images, tokens = draw(theirs)
    ours = our_logits(load_model(open_checkpoint(folder)), images, tokens)
    assert not close(ours, their_logits(theirs, images, tokens))


@pytest.mark.parametrize("form", ["sharded", "bin", "half"])
def test_every_form_of_file(build_git: BuildGit, save_git: SaveGit, form: str) -> None:
    theirs = build_git(seed=3)
    images, tokens = draw(theirs)
    if form == "half":
        theirs = theirs.half().float()
    expected = their_logits(theirs, images, tokens)
    folder = save_git(
        theirs.half() if form == "half" else theirs,
        **({"max_shard_size": 30_000} if form == "sharded" else {}),
    )
    if form == "bin":
        torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
        (folder / "model.safetensors").unlink()
    assert (folder / "model.safetensors").exists() == (form == "half")
    assert close(our_logits(load_model(open_checkpoint(folder)), images, tokens), expected)


def test_the_old_spelling_of_the_temporal_embedding(build_git: BuildGit, save_git: SaveGit) -> None:
    theirs = build_git(num_image_with_embedding=3)
    folder = save_git(theirs)
    state = load_file(folder / "model.safetensors")
    old = {name.replace("img_temporal", "img_temperal"): value for name, value in state.items()}
    old["git.embeddings.position_ids"] = torch.arange(16)[None]
    save_file(old, folder / "model.safetensors", {"format": "pt"})
    opened = open_checkpoint(folder)
    assert list(opened.weights.dropped) == ["git.embeddings.position_ids"]
    images, tokens = draw(theirs)
    assert close(our_logits(load_model(opened), images, tokens), their_logits(theirs, images, tokens))


@pytest.mark.parametrize("size", [(48, 32), (24, 40), (16, 16)])
def test_other_image_sizes_as_theirs(build_git: BuildGit, save_git: SaveGit, size: tuple[int, int]) -> None:
    theirs = build_git()
    images, tokens = torch.randn(2, 1, 3, *size), draw(theirs)[1]
    expected = their_logits(theirs, images, tokens, interpolate_pos_encoding=True)
    ours = load_model(open_checkpoint(save_git(theirs)))
    assert close(our_logits(ours, images, tokens), expected)


@pytest.mark.parametrize("side", [24, 64])
def test_a_table_interpolated_for_good(build_git: BuildGit, save_git: SaveGit, side: int) -> None:
    theirs = build_git()
    opened = with_image_size(open_checkpoint(save_git(theirs)), side)
    images, tokens = torch.randn(2, 1, 3, side, side), draw(theirs)[1]
    expected = their_logits(theirs, images, tokens, interpolate_pos_encoding=True)
    assert opened.run.model.encoder.options["dynamic_img_size"]
    assert close(our_logits(load_model(opened), images, tokens), expected)


def test_greedy_texts_are_theirs(build_git: BuildGit, save_git: SaveGit) -> None:
    theirs = build_git(seed=5)
    images, _ = draw(theirs)
    with torch.inference_mode():
        expected = theirs.generate(pixel_values=images[:, 0], max_new_tokens=10, num_beams=1, do_sample=False)
    ours = load_model(open_checkpoint(save_git(theirs))).eval()
    for row, (texts,) in zip(
        expected.tolist(), generate(ours, images, [[[3]], [[3]]], 4, Decoding(max_new_tokens=10)), strict=True
    ):
        text = row[1:]
        assert texts[0].tokens == (text[: text.index(4)] if 4 in text else text)


def test_names_of_published_shapes(build_git: BuildGit, tmp_path: Path) -> None:
    from git_scale.checkpoint.vit import VitSizes, clip_encoder

    base = clip_encoder(VitSizes(16, 768, 12, 12, 3072), 224, True)
    assert (base.name, base.options) == ("vit_base_patch16_clip_quickgelu_224", {"dynamic_img_size": True})
    large = clip_encoder(VitSizes(14, 1024, 24, 16, 4096), 420, False)
    assert (large.name, large.image_size) == ("vit_large_patch14_clip_224", 420)


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("hidden_act", "gelu_new", "hidden_act='gelu_new' cannot be imported"),
        ("layer_norm_eps", 1e-6, "layer_norm_eps=1e-06 cannot be imported"),
        ("vision_config.hidden_act", "relu", "vision_config.hidden_act='relu' cannot be imported"),
        ("vision_config.num_channels", 1, "vision_config.num_channels=1 cannot be imported"),
        ("vision_config.image_size", [32, 40], "image_size=[32, 40] cannot be imported"),
        ("model_type", "bert", "model_type='bert'"),
        ("hidden_size", "wide", "hidden_size='wide' cannot be imported"),
        (
            "vocab_size",
            40,
            "git.embeddings.word_embeddings.weight has the shape [29, 32] instead of [40, 32]",
        ),
        ("num_hidden_layers", 1, "git.encoder.layer.1."),
        ("num_hidden_layers", 3, "is missing"),
    ],
)
def test_settings_that_cannot_be_followed(
    build_git: BuildGit, save_git: SaveGit, key: str, value: Any, words: str
) -> None:
    folder = save_git(build_git())
    tree = json.loads((folder / "config.json").read_text())
    section, _, last = key.rpartition(".")
    (tree[section] if section else tree)[last] = value
    (folder / "config.json").write_text(json.dumps(tree))
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(folder)
    assert words in str(caught.value) and str(folder) in str(caught.value)


def test_other_means_are_warned_of(
    build_git: BuildGit, save_git: SaveGit, caplog: pytest.LogCaptureFixture
) -> None:
    folder = save_git(build_git())
    settings = {"image_mean": [0.48145466, 0.4578275, 0.40821073], "image_std": [0.5, 0.5, 0.5]}
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))
    with caplog.at_level(logging.WARNING):
        open_checkpoint(folder)
    assert "image_std=[0.5, 0.5, 0.5]" in caplog.text and "image_mean" not in caplog.text


@pytest.mark.parametrize("kind", ["missing", "unknown", "nan", "untied"])
def test_every_tensor_is_accounted_for(build_git: BuildGit, save_git: SaveGit, kind: str) -> None:
    folder = save_git(build_git())
    state = load_file(folder / "model.safetensors")
    name = "git.encoder.layer.1.output.dense.bias"
    if kind == "missing":
        del state[name]
    elif kind == "unknown":
        state["git.encoder.layer.1.output.gate"] = torch.zeros(3)
    elif kind == "untied":
        del state["output.weight"]
    else:
        state[name][3] = float("nan")
    save_file(state, folder / "model.safetensors", {"format": "pt"})
    words = {
        "missing": f"{name} is missing",
        "unknown": "git.encoder.layer.1.output.gate is unknown",
        "nan": "decoder.layers.1.fc2.bias holds numbers that are not finite",
        "untied": "output.weight is missing",
    }
    with pytest.raises(CheckpointError, match=words[kind]):
        load_model(open_checkpoint(folder))


@pytest.mark.parametrize("zero", [False, True])
def test_a_single_temporal_embedding_is_not_dropped_in_silence(
    build_git: BuildGit, save_git: SaveGit, zero: bool
) -> None:
    """transformers adds it to the features of clips of one frame."""
    theirs = build_git(num_image_with_embedding=1)
    if zero:
        torch.nn.init.zeros_(theirs.git.img_temporal_embedding[0])
    folder = save_git(theirs)
    if not zero:
        with pytest.raises(
            CheckpointError, match=r"img_temporal_embedding\.0 is the temporal embedding of clips"
        ):
            open_checkpoint(folder)
        return
    opened = open_checkpoint(folder)
    assert "a temporal embedding of zeros" in opened.weights.dropped.values()
    images, tokens = torch.randn(1, 1, 3, 32, 32), torch.tensor([[3, 6, 7]])
    with torch.inference_mode():
        found = load_model(opened).eval()(images, tokens[:, None], torch.arange(3))
        expected = theirs(input_ids=tokens, pixel_values=images).logits[0, -3:]
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)
