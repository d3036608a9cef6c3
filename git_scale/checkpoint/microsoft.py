"""The paper's own checkpoints (microsoft/GenerativeImage2Text): model.pt and parameter.yaml, opened as ours."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import yaml

from git_scale.checkpoint.names import RenamedWeights, drop_single_temporal, microsoft_rules
from git_scale.checkpoint.opened_checkpoint import OpenedCheckpoint
from git_scale.checkpoint.sources import TORCH_SUFFIXES, UnwrappedTensors, open_tensors
from git_scale.checkpoint.vit import (
    OPENAI_HEAD_WIDTH,
    clip_encoder,
    count_layers,
    read_sizes,
    shapes_of,
    square_side,
)
from git_scale.config import DataConfig, DecoderConfig, ModelConfig, RunConfig, TrainConfig
from git_scale.errors import CheckpointError
from git_scale.models.build import build_model

WORDS, HEAD = "textual.embedding.words.weight", "textual.output.weight"
DROPPED = {"image_encoder.proj": "CLIP's projection, which GIT never uses"}
MAX_YAML = 1 << 20  # bytes; real ones have some hundred


def open_if_microsoft(path: Path) -> OpenedCheckpoint | None:
    """None for a path without a model.pt. Raises CheckpointError when that is no GIT of the paper's code or cannot be
    read safely."""
    file = _find_file(path)
    return _open(file) if file is not None else None


def _find_file(path: Path) -> Path | None:
    """The model.pt of a path: itself, in the folder, or in its snapshot/."""
    if path.is_file() and path.suffix in TORCH_SUFFIXES:
        return path
    candidates = (path / "model.pt", path / "snapshot" / "model.pt")
    return next((file for file in candidates if file.is_file()), None)


def _open(path: Path) -> OpenedCheckpoint:
    source = UnwrappedTensors(open_tensors(path))
    shapes = source.shapes
    if WORDS not in shapes or "image_encoder.conv1.weight" not in shapes:
        if any(name.startswith("visual.") for name in shapes):
            raise CheckpointError(
                f"{path}: CLIP's image encoder alone, not a GIT: make a folder of git_scale of it with"
                f" tools/convert_checkpoint.py import {path} NEW, and train one from it with init_from=NEW"
            )
        raise CheckpointError(f"{path}: no GIT of the paper's code, it has no {WORDS}")
    sizes, positions = read_sizes(shapes, "image_encoder.", path, OPENAI_HEAD_WIDTH)
    parameters = read_parameters(path)
    crop = _sides(parameters, path)
    patch = sizes.patch
    image_size = crop[0] or square_side(positions, path) * patch
    if (image_size // patch) ** 2 + 1 != positions:
        raise CheckpointError(
            f"{path}: {positions} image positions do not fit test_crop_size={image_size} and patches of {patch}"
        )
    temporal = [name for name in shapes if name.startswith("img_temperal_embedding.")]
    dropped = DROPPED | (drop_single_temporal(source, temporal[0], path) if len(temporal) == 1 else {})
    model = ModelConfig(
        encoder=clip_encoder(sizes, image_size, quick_gelu=True),
        decoder=_decoder_config(source, path),
        vocab_size=shapes[WORDS][0],
        frames=len(temporal) or 1,
    )
    with torch.device("meta"):
        ours = shapes_of(build_model(model))
    weights = RenamedWeights(source, microsoft_rules(model, sizes.layers), ours, dropped, path)
    data = DataConfig(resize="fit", max_side=crop[1]) if crop[1] else DataConfig()
    tokenizer = next((file for file in [path.parent / "vocab.txt"] if file.is_file()), None)
    # images of their own shapes pass one by one
    train = TrainConfig(micro_batch=1) if data.resize == "fit" else TrainConfig()
    run = RunConfig(model=model, data=data, train=train)
    return OpenedCheckpoint("microsoft", path, run, tokenizer, weights, None)


def _decoder_config(source: UnwrappedTensors, path: Path) -> DecoderConfig:
    shapes = source.shapes
    ffn = shapes.get("textual.transformer.encoder.layer.0.intermediate.dense.weight")
    positions = shapes.get("textual.embedding.positions.weight")
    width = shapes[WORDS][1]
    if ffn is None or positions is None or width % OPENAI_HEAD_WIDTH:
        raise CheckpointError(f"{path}: its text decoder (width {width}) is not built as GIT's")
    tied = shapes.get(HEAD) == shapes[WORDS] and torch.equal(source.read(HEAD), source.read(WORDS))
    return DecoderConfig(
        layers=count_layers(shapes, "textual.transformer.encoder.layer"),
        width=width,
        heads=width // OPENAI_HEAD_WIDTH,  # 768 / 12, the only one that the paper's code builds
        ffn=ffn[0],
        positions=positions[0],
        tied=tied,
    )


def read_parameters(model_file: Path) -> dict[str, Any]:
    """parameter.yaml beside model.pt, or above its snapshot/; empty where there is none."""
    folders = (model_file.parent, model_file.parent.parent)
    for path in (folder / "parameter.yaml" for folder in folders[: 1 + (folders[0].name == "snapshot")]):
        if path.is_file():
            try:
                if path.stat().st_size > MAX_YAML:
                    raise CheckpointError(f"{path}: {path.stat().st_size} bytes; at most {MAX_YAML} are read")
                tree = yaml.safe_load(path.read_text(encoding="utf-8"))
            except (OSError, ValueError, yaml.YAMLError) as error:
                raise CheckpointError(f"{path}: cannot be read: {error}") from None
            if not isinstance(tree, dict):
                raise CheckpointError(f"{path}: a table of settings is expected")
            # training runs keep theirs under `param`
            return tree["param"] if isinstance(tree.get("param"), dict) else tree
    return {}


def _sides(parameters: dict[str, Any], model_file: Path) -> tuple[int | None, int | None]:
    """test_crop_size and test_respect_ratio_max."""
    sides: list[int | None] = []
    for key in ("test_crop_size", "test_respect_ratio_max"):
        value = parameters.get(key)
        if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < 8):
            raise CheckpointError(f"parameter.yaml of {model_file}: {key}={value!r} is no side in pixels")
        sides.append(value)
    return sides[0], sides[1]
