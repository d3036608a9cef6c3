"""A GIT of ours in transformers: the same logits, tensors, texts and pixels."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from git_scale.checkpoint import huggingface_export, probe
from git_scale.checkpoint.detect import open_checkpoint
from git_scale.checkpoint.huggingface_export import export_huggingface
from git_scale.checkpoint.native import export_native
from git_scale.checkpoint.opened_checkpoint import OpenedCheckpoint, load_model
from git_scale.config import ModelConfig, RunConfig
from git_scale.data.images import normalise, resize_center_crop
from git_scale.data.tokenizer import load_tokenizer
from git_scale.errors import CheckpointError
from git_scale.inference.generate import Decoding, generate
from git_scale.models.build import build_model
from git_scale.models.git import GitModel

BuildGit = Callable[..., Any]
SaveGit = Callable[..., Path]
VIT = {"patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2}


class ModelWeights:
    """A model's tensors as they are."""

    def __init__(self, model: GitModel) -> None:
        self.state = model.state_dict()
        self.shapes = {name: tensor.shape for name, tensor in self.state.items()}
        self.dropped: dict[str, str] = {}

    def read(self, name: str) -> torch.Tensor:
        return self.state[name]


def open_ours(vocab_file: Path, seed: int = 0, resize: str = "crop", **model: Any) -> OpenedCheckpoint:
    """A random model of ours."""
    tree: dict[str, Any] = {
        "encoder": {"name": "vit_base_patch16_clip_quickgelu_224", "image_size": 32, "options": VIT},
        "decoder": {"layers": 2, "width": 32, "heads": 4, "ffn": 48, "positions": 16, "init_std": 0.15},
        "vocab_size": 29,
        **model,
    }
    config = ModelConfig.model_validate(tree)
    torch.manual_seed(seed)
    ours = build_model(config).eval()
    for name, parameter in ours.named_parameters():
        is_scale = "norm" in name and name.endswith("weight")
        torch.nn.init.normal_(parameter, 1.0 if is_scale else 0.0, std=0.15)
    run = RunConfig.model_validate(
        {"model": config, "data": {"resize": resize}, "eval": {"max_new_tokens": 9}}
    )
    return OpenedCheckpoint("native", vocab_file.parent / "made", run, vocab_file, ModelWeights(ours), 12)


@pytest.mark.parametrize(
    "model",
    [
        {},
        {"frames": 6},
        {"encoder": {"name": "vit_base_patch16_clip_224", "image_size": 35, "options": VIT}},
        {"decoder": {"layers": 1, "width": 24, "heads": 3, "ffn": 50, "positions": 12, "tied": False}},
    ],
    ids=["plain", "six_frames", "odd_gelu", "untied"],
)
def test_logits_are_ours(vocab_file: Path, tmp_path: Path, model: dict[str, Any]) -> None:
    transformers = pytest.importorskip("transformers", reason="reads the folder with transformers")
    opened = open_ours(vocab_file, **model)
    report = export_huggingface(opened, tmp_path / "out")
    assert report.verified_with == f"transformers {transformers.__version__}"
    assert 0 < report.max_abs_diff < 1e-4
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    torch.manual_seed(4)
    config = opened.run.model
    side = config.encoder.image_size
    images, tokens = torch.randn(2, config.frames, 3, side, side), torch.randint(29, (2, 7))
    with torch.inference_mode():
        expected = load_model(opened).eval()(images, tokens[:, None], torch.arange(14))
        pixels = images if config.frames > 1 else images[:, 0]
        found = theirs(input_ids=tokens, pixel_values=pixels).logits[:, -7:].flatten(0, 1)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("frames", [None, 2])
def test_there_and_back_is_bit_identical(
    build_git: BuildGit, save_git: SaveGit, tmp_path: Path, tied: bool, frames: int | None
) -> None:
    theirs = build_git(tied=tied, num_image_with_embedding=frames)
    folder = save_git(theirs)
    export_native(open_checkpoint(folder), tmp_path / "ours")
    export_huggingface(open_checkpoint(tmp_path / "ours"), tmp_path / "back")
    before, after = (load_file(path / "model.safetensors") for path in (folder, tmp_path / "back"))
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    for file in ("config.json", "generation_config.json"):
        old, new = (json.loads((path / file).read_text()) for path in (folder, tmp_path / "back"))
        same = {key for key in old.keys() & new.keys() if key not in ("tie_word_embeddings", "vision_config")}
        assert {key: new[key] for key in same} == {key: old[key] for key in same}
    assert new["bos_token_id"] == 3


def test_captions_from_image_to_text_are_the_same(vocab_file: Path, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers", reason="captions with transformers")
    opened = open_ours(vocab_file, seed=2)
    opened.weights.read("decoder.head.bias")[
        2
    ] = -9.0  # [UNK], which transformers' decode() drops and ours shows
    export_huggingface(opened, tmp_path / "out")
    processor = transformers.AutoProcessor.from_pretrained(tmp_path / "out")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    noise = np.random.default_rng(0).integers(0, 255, (6, 9, 3), np.uint8)
    image = Image.fromarray(noise).resize((90, 64), Image.Resampling.BICUBIC)
    pixels = processor(images=image, return_tensors="pt").pixel_values
    ours = normalise(torch.from_numpy(resize_center_crop(image, 32))[None, None], torch.float32)
    assert pixels.shape == (1, 3, 32, 32)
    # one step of 255 per channel is 0.0146 after division by the deviation
    assert (pixels - ours[:, 0]).abs().max() < 0.016
    with torch.inference_mode():
        ids = theirs.generate(pixel_values=ours[:, 0])
    ((text,),) = generate(load_model(opened).eval(), ours, [[[3]]], 4, Decoding(max_new_tokens=9))[0]
    expected = load_tokenizer(vocab_file).decode(text.tokens)
    assert expected and processor.batch_decode(ids, skip_special_tokens=True)[0] == expected
    asked = processor(text="a red dog", add_special_tokens=False).input_ids
    assert asked == [6, 7, 8] and processor.tokenizer.cls_token_id == 3


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("vit_tiny_patch16_224", VIT),  # its patches have a bias, its norms another epsilon
        ("vit_base_patch16_clip_224", VIT | {"init_values": 0.1}),
        ("convnext_atto", {"patch_size": 2, "depths": [1, 1, 1, 1], "dims": [8, 8, 16, 24]}),
    ],
)
def test_other_encoders_are_refused(
    vocab_file: Path, tmp_path: Path, name: str, options: dict[str, Any]
) -> None:
    opened = open_ours(vocab_file, encoder={"name": name, "image_size": 32, "options": options})
    with pytest.raises(CheckpointError, match=f"'{name}' is no CLIP ViT.*--format native"):
        export_huggingface(opened, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_images_that_are_not_cropped_are_refused(vocab_file: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"data\.resize=pad .*--format native"):
        export_huggingface(open_ours(vocab_file, resize="pad"), tmp_path / "out")


def test_cross_attention_is_refused_before_any_work(vocab_file: Path, tmp_path: Path) -> None:
    decoder = {"layers": 1, "width": 32, "heads": 4, "ffn": 48, "positions": 16, "attention": "cross"}
    opened = replace(open_ours(vocab_file, decoder=decoder), tokenizer=tmp_path / "not even looked for")
    with pytest.raises(CheckpointError, match=r"model\.decoder\.attention=cross .*--format native"):
        export_huggingface(opened, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_wrong_tensor_is_found_before_anything_appears(
    vocab_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = huggingface_export.write_tensors

    def write_swapped(folder: Path, shapes: Any, tensors: Any) -> None:
        pieces = dict(tensors(list(shapes)))
        names = [f"git.encoder.layer.0.attention.self.{part}.weight" for part in ("key", "value")]
        pieces[names[0]], pieces[names[1]] = pieces[names[1]], pieces[names[0]]
        write(folder, shapes, lambda chosen: ((name, pieces[name]) for name in chosen))

    monkeypatch.setattr(huggingface_export, "write_tensors", write_swapped)
    with pytest.raises(CheckpointError, match=r"a logit differs by .* nothing was published"):
        export_huggingface(open_ours(vocab_file), tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["vocab.txt"]


def test_without_transformers_git_scale_reads_it_back(
    vocab_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(huggingface_export, "transformers_version", lambda: None)
    report = export_huggingface(open_ours(vocab_file, frames=2), tmp_path / "out")
    assert (report.verified_with, report.max_abs_diff) == ("git_scale", 0.0)


def test_numbers_that_are_not_finite_are_refused(vocab_file: Path, tmp_path: Path) -> None:
    opened = open_ours(vocab_file)
    opened.weights.read("projection.0.weight")[1, 2] = float("inf")
    with pytest.raises(CheckpointError, match=r"projection\.0\.weight holds numbers that are not finite"):
        export_huggingface(opened, tmp_path / "out")


def test_a_difference_is_judged_relative_to_its_logit() -> None:
    expected = torch.tensor([[1000.0, 0.5]])
    assert probe.compare(Path(), expected, lambda: expected + torch.tensor([[0.05, 0.0]])) > 0.04
    for wrong in (expected + torch.tensor([[0.0, 2e-4]]), expected * float("nan")):
        with pytest.raises(CheckpointError):
            probe.compare(Path(), expected, lambda wrong=wrong: wrong)


@pytest.mark.parametrize("frames", [1, 2])
def test_an_export_can_be_prompted_as_users_do(vocab_file: Path, tmp_path: Path, frames: int) -> None:
    transformers = pytest.importorskip("transformers", reason="prompts with transformers")
    export_huggingface(open_ours(vocab_file, frames=frames), tmp_path / "out")
    assert "pipeline_tag: image-text-to-text\n" in (tmp_path / "out" / "README.md").read_text()
    processor = transformers.AutoProcessor.from_pretrained(tmp_path / "out")
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 50, 3), np.uint8))
    inputs = processor(images=[image] * frames, text="a red dog", return_tensors="pt")
    assert set(inputs) == {"input_ids", "attention_mask", "pixel_values"}
    if frames > 1:
        inputs["pixel_values"] = inputs["pixel_values"][None]
    model.generation_config.eos_token_id = None  # lengths show
    asked = inputs["input_ids"].shape[1]
    for limit, length in (({"max_length": 7}, 7), ({"max_new_tokens": 3}, asked + 3), ({}, 10)):
        assert model.generate(**inputs, **limit, num_beams=1).shape[1] == length, limit
    if frames == 1:
        run = transformers.pipeline("image-text-to-text", model=model, processor=processor)
        assert isinstance(run(images=image, text="a", max_new_tokens=2)[0]["generated_text"], str)


@pytest.mark.parametrize(
    ("file", "change", "words"),
    [
        ("tokenizer_config.json", {"model_input_names": None}, "token_type_ids"),
        ("preprocessor_config.json", {"crop_size": {"height": 8, "width": 8}}, "generate"),
        ("generation_config.json", {"bos_token_id": 7}, "begin with token 7 instead of 3"),
    ],
)
def test_an_export_that_does_not_work_for_users_is_not_published(
    vocab_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, file: str, change: Any, words: str
) -> None:
    pytest.importorskip("transformers", reason="checks with transformers")
    check = huggingface_export.check_as_a_user

    def check_changed(folder: Path, opened: OpenedCheckpoint) -> None:
        tree = {**json.loads((folder / file).read_text()), **change}
        tree = {key: value for key, value in tree.items() if value is not None}
        (folder / file).write_text(json.dumps(tree))
        check(folder, opened)

    monkeypatch.setattr(huggingface_export, "check_as_a_user", check_changed)
    with pytest.raises(CheckpointError, match=rf"({words}).*nothing was published"):
        export_huggingface(open_ours(vocab_file), tmp_path / "out")
    assert not (tmp_path / "out").exists()
