"""Where the image encoder of a new run comes from, and what is said where it cannot."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from git_scale.checkpoint.clip import open_encoder
from git_scale.checkpoint.detect import open_checkpoint
from git_scale.checkpoint.encoder_start import check_encoder_start, open_encoder_start
from git_scale.checkpoint.native import export_native
from git_scale.config import EncoderConfig, RunConfig
from git_scale.errors import CheckpointError, ConfigError
from git_scale.models.encoders import declare_torchvision_operators, resize_positions
from git_scale.recipes import load_run
from git_scale.testing.taught import write_taught
from git_scale.training.init_model import deferred_model, first_values, inherited_from

declare_torchvision_operators()
import timm  # noqa: E402

NAME = "vit_tiny_patch16_224"
POSITIONS = "encoder.backbone.pos_embed"


def encoder_of(start: str | Path, **more: Any) -> EncoderConfig:
    return EncoderConfig.model_validate({"name": NAME, "image_size": 224, "start": str(start), **more})


def run_of(folder: Path, encoder: EncoderConfig, **more: Any) -> RunConfig:
    decoder = {"layers": 1, "width": 32, "heads": 2, "ffn": 64, "positions": 16}
    model = {"encoder": encoder.model_dump(), "decoder": decoder, "vocab_size": 30}
    return RunConfig.model_validate(
        {"run_dir": str(folder / "run"), "model": model, "train": {"precision": "fp32"}, **more}
    )


@pytest.fixture(scope="module")
def weights() -> dict[str, torch.Tensor]:
    """timm's file of an encoder."""
    torch.manual_seed(3)
    return {name: torch.randn_like(t) for name, t in timm.create_model(NAME).state_dict().items()}


@pytest.fixture(scope="module")
def folder(weights: dict[str, torch.Tensor], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same, imported."""
    place = tmp_path_factory.mktemp("imported")
    save_file(weights, place / "vit.safetensors")
    opened = open_encoder(place / "vit.safetensors", NAME)
    assert opened is not None
    export_native(opened, place / "model", False, None)
    return place / "model"


@pytest.mark.parametrize("kind", ["folder", "file"])
def test_the_encoder_is_the_one_named_and_the_rest_is_random(
    kind: str, folder: Path, weights: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    start = folder if kind == "folder" else folder.parent / "vit.safetensors"
    run = run_of(tmp_path, encoder_of(start))
    deferred = deferred_model(run)
    values = first_values(deferred, run)
    for name in ("cls_token", "blocks.11.mlp.fc2.bias", "pos_embed"):
        assert torch.equal(values(f"encoder.backbone.{name}"), weights[name])
    random = [name for name in deferred.module.state_dict() if not name.startswith("encoder.")]
    assert len(random) > 10
    for name in random:
        assert torch.equal(values(name), deferred.first_value(name))


def test_positions_follow_the_size_of_the_images(
    folder: Path, weights: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    run = run_of(tmp_path, encoder_of(folder, image_size=64, options={"dynamic_img_size": True}))
    values = first_values(deferred_model(run), run)
    expected = resize_positions(weights["pos_embed"], (14, 14), (4, 4), 1)
    assert torch.equal(values(POSITIONS), expected)


def test_of_a_whole_git_the_encoder_is_taken(tmp_path: Path) -> None:
    whole = write_taught(tmp_path / "taught")
    theirs = open_checkpoint(whole)
    encoder = theirs.run.model.encoder.model_copy(update={"start": str(whole)})
    run = run_of(tmp_path, encoder)
    deferred = deferred_model(run)
    values = first_values(deferred, run)
    name = "encoder.backbone.patch_embed.proj.weight"
    if name not in theirs.weights.shapes:
        name = next(name for name in theirs.weights.shapes if name.startswith("encoder."))
    assert torch.equal(values(name), theirs.weights.read(name))
    words = "decoder.embedding.words.weight"
    assert torch.equal(values(words), deferred.first_value(words))


def test_from_scratch_nothing_is_read_and_a_slow_rate_is_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    small = {"embed_dim": 32, "depth": 1, "num_heads": 2}
    run = run_of(tmp_path, encoder_of("scratch", options=small))
    deferred = deferred_model(run)
    assert first_values(deferred, run) == deferred.first_value
    assert "model.encoder.start=scratch at optimizer.encoder_lr=1e-05" in caplog.text
    caplog.clear()
    fast = run_of(tmp_path, encoder_of("scratch", options=small), optimizer={"encoder_lr": 5e-4})
    first_values(deferred, fast)
    assert caplog.text == ""


def test_what_is_not_there_is_refused_with_the_ways_to_get_it(tmp_path: Path) -> None:
    missing = tmp_path / "models" / "clip"
    with pytest.raises(ConfigError) as caught:
        check_encoder_start(encoder_of(missing))
    (problem,) = caught.value.problems
    for words in (
        f"model.encoder.start={missing}: no such file or folder",
        f"python tools/convert_checkpoint.py import FILE {missing} --encoder {NAME}",
        "model.encoder.start=timm",
        "model.encoder.start=scratch optimizer.encoder_lr=5e-4",
    ):
        assert words in problem
    with pytest.raises(ConfigError) as caught:
        check_encoder_start(EncoderConfig(name="davit_giant", start="timm"))
    (problem,) = caught.value.problems
    assert "timm publishes no weights of davit_giant" in problem
    assert "model.encoder.start=timm" not in problem.partition("either")[2]
    check_encoder_start(encoder_of("timm"))
    check_encoder_start(encoder_of("scratch"))


@pytest.mark.parametrize("recipe", ["git_base", "git_large", "git_huge", "git2"])
def test_the_papers_recipes_do_not_start_without_their_encoder(
    recipe: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=r"start=models/.*: no such file or folder"):
        check_encoder_start(load_run(recipe).model.encoder)


def test_one_that_computes_otherwise_is_refused_though_its_shapes_fit(folder: Path) -> None:
    open_encoder_start(encoder_of(folder))
    with pytest.raises(CheckpointError, match="heads 3"):
        open_encoder_start(encoder_of(folder, options={"num_heads": 6}))
    with pytest.raises(CheckpointError, match="GELU"):
        open_encoder_start(encoder_of(folder, options={"act_layer": "quick_gelu"}))


def test_timms_own(
    weights: dict[str, torch.Tensor], folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    create, asked = timm.create_model, []

    def published(name: str, pretrained: bool = False, **options: Any) -> Any:
        model = create(name, **options)
        if pretrained:
            asked.append(name)
            model.load_state_dict({key: weights[key] for key in model.state_dict()})
        return model

    monkeypatch.setattr(timm, "create_model", published)
    run = run_of(tmp_path, encoder_of("timm", image_size=64, options={"dynamic_img_size": True}))
    values = first_values(deferred_model(run), run)
    assert torch.equal(values("encoder.backbone.norm.weight"), weights["norm.weight"])
    assert torch.equal(values(POSITIONS), resize_positions(weights["pos_embed"], (14, 14), (4, 4), 1))
    imported = open_checkpoint(folder).weights  # normalised as our images are, like these
    for name in ("encoder.backbone.patch_embed.proj.weight", "encoder.backbone.patch_embed.proj.bias"):
        assert torch.equal(values(name), imported.read(name))
    assert asked == [NAME], "the model itself is built without them"


def test_timms_own_that_cannot_be_had(monkeypatch: pytest.MonkeyPatch) -> None:
    create = timm.create_model

    def offline(name: str, pretrained: bool = False, **options: Any) -> Any:
        if pretrained:
            raise RuntimeError("cannot reach the hub\nand more")
        return create(name, **options)

    monkeypatch.setattr(timm, "create_model", offline)
    with pytest.raises(ConfigError) as caught:
        open_encoder_start(encoder_of("timm"))
    assert "model.encoder.start=timm: RuntimeError: cannot reach the hub. The image encoder" in str(
        caught.value
    )
    assert "tools/convert_checkpoint.py import FILE models/encoder" in str(caught.value)


def test_init_from_goes_before_it(folder: Path, tmp_path: Path) -> None:
    run = load_run(
        "git_base",
        [
            f"init_from={folder}",
            f"run_dir={tmp_path}",
            "model.encoder.options={}",
            f"model.encoder.name={NAME}",
        ],
        inherited_from,
    )
    assert run.model.encoder.start == "models/clip-vit-base-patch16"
    run = run.model_copy(update={"train": run.train.model_copy(update={"precision": "fp32"})})
    deferred = deferred_model(run)
    values = first_values(deferred, run)
    source = open_checkpoint(folder).weights
    for name in (POSITIONS, "encoder.backbone.norm.weight"):
        assert torch.equal(values(name), source.read(name))
