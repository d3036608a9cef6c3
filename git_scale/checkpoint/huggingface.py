"""GIT as transformers keeps it: config.json and model.safetensors (or pytorch_model.bin), opened as ours."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError

from git_scale.checkpoint.hf_config import VISION_DEFAULTS, check_fixed, vision_sizes, whole_number
from git_scale.checkpoint.layout import has_manifest
from git_scale.checkpoint.lookalikes import refuse_folder_without_tensors
from git_scale.checkpoint.names import NameRule, RenamedWeights, drop_single_temporal, huggingface_rules
from git_scale.checkpoint.opened_checkpoint import OpenedCheckpoint
from git_scale.checkpoint.sources import TensorSource, find_tensors, open_tensors, read_json
from git_scale.checkpoint.vit import clip_encoder, shapes_of
from git_scale.config import DataConfig, DecoderConfig, EncoderConfig, ModelConfig, RunConfig
from git_scale.data.images import MEAN, STD
from git_scale.errors import CheckpointError
from git_scale.models.build import build_model

log = logging.getLogger(__name__)

CONFIG_FILE = "config.json"
TOKENIZER_FILES = ("vocab.txt", "tokenizer.model", "tokenizer.json")
HEAD, WORDS = "output.weight", "git.embeddings.word_embeddings.weight"

FIXED = (  # see git_scale/checkpoint/hf_config.py
    ("hidden_act", ("gelu",), "gelu"),
    ("layer_norm_eps", (1e-12,), 1e-12),
    ("vision_config.layer_norm_eps", (1e-5,), 1e-5),
    ("vision_config.hidden_act", ("quick_gelu", "gelu"), "quick_gelu"),
    ("vision_config.num_channels", (3,), 3),
    ("vision_config.attention_dropout", (0,), 0),
)
DEFAULTS = {
    "vocab_size": 30522,
    "hidden_size": 768,
    "num_hidden_layers": 6,
    "num_attention_heads": 12,
    "intermediate_size": 3072,
    "max_position_embeddings": 1024,
}


def open_if_huggingface(folder: Path) -> OpenedCheckpoint | None:
    """None for anything but a folder of transformers.

    Raises CheckpointError when it holds no GIT, or one with settings that git_scale cannot follow.
    """
    if not (folder / CONFIG_FILE).is_file() or has_manifest(folder):
        return None
    config = read_json(folder / CONFIG_FILE)
    _refuse_encoder_alone(config, folder)
    tensors = find_tensors(folder)
    if tensors is None:
        refuse_folder_without_tensors(folder)
    source = open_tensors(tensors)
    model = _model_config(config, folder / CONFIG_FILE, tied=_is_tied(source, config))
    _compare_preprocessing(folder)
    with torch.device("meta"):
        shapes = shapes_of(build_model(model))
    layers = whole_number(config.get("vision_config") or {}, "num_hidden_layers", VISION_DEFAULTS, folder)
    rules, dropped = _rules(model, layers, source), _dropped(source, model, config, folder)
    weights = RenamedWeights(source, rules, shapes, dropped, folder)
    tokenizer = next((folder / name for name in TOKENIZER_FILES if (folder / name).is_file()), None)
    data = DataConfig(tokenizer=tokenizer.name) if tokenizer else DataConfig()
    return OpenedCheckpoint(
        "huggingface", folder, RunConfig(model=model, data=data), tokenizer, weights, None
    )


def _refuse_encoder_alone(config: dict[str, Any], folder: Path) -> None:
    kind = str(config.get("model_type"))
    if kind.startswith(("clip", "siglip")) or isinstance(config.get("architecture"), str):
        raise CheckpointError(
            f"{folder}: an image encoder alone, not a GIT: make a folder of git_scale of it with"
            f" tools/convert_checkpoint.py import {folder} NEW, and train one from it with init_from=NEW"
        )


def _rules(model: ModelConfig, layers: int, source: TensorSource) -> list[NameRule]:
    """The table, in the spelling of this file; a tied head may be left out of it."""
    is_old = any(name.startswith("git.img_temperal_embedding.") for name in source.shapes)
    rules = huggingface_rules(model, layers, "img_temperal" if is_old else "img_temporal")
    return [
        rule for rule in rules if rule.theirs != (HEAD,) or HEAD in source.shapes or not model.decoder.tied
    ]


def _dropped(
    source: TensorSource, model: ModelConfig, config: dict[str, Any], folder: Path
) -> dict[str, str]:
    dropped = {
        name: "a range of numbers that older transformers stored"
        for name in source.shapes
        if name.endswith(".position_ids")
    }
    if model.frames == 1:
        temporal = [name for name in source.shapes if ".img_temp" in name and "al_embedding." in name]
        if config.get("num_image_with_embedding") == 1:
            for name in temporal:
                dropped |= drop_single_temporal(source, name, folder)
        dropped = (
            dict.fromkeys(temporal, "a model of one frame, where single images have no temporal embedding")
            | dropped
        )
    return dropped


def _is_tied(source: TensorSource, config: dict[str, Any]) -> bool:
    if HEAD not in source.shapes:
        return config.get("tie_word_embeddings") is True  # if not, its absence is an error
    same_shape = source.shapes[HEAD] == source.shapes.get(WORDS)
    return same_shape and torch.equal(source.read(HEAD), source.read(WORDS))


def _model_config(config: dict[str, Any], path: Path, tied: bool) -> ModelConfig:
    if config.get("model_type") != "git":
        raise CheckpointError(f"{path}: model_type={config.get('model_type')!r}; only 'git' is read here")
    vision = config.get("vision_config") or {}
    if not isinstance(vision, dict):
        raise CheckpointError(f"{path}: vision_config={vision!r} is no table of settings")
    check_fixed(config, FIXED, path)
    text = {key: whole_number(config, key, DEFAULTS, path) for key in DEFAULTS}
    frames = config.get("num_image_with_embedding") or 1
    try:
        return ModelConfig(
            encoder=_encoder_config(vision, path),
            decoder=DecoderConfig(
                layers=text["num_hidden_layers"],
                width=text["hidden_size"],
                heads=text["num_attention_heads"],
                ffn=text["intermediate_size"],
                positions=text["max_position_embeddings"],
                dropout=_dropout(config, path),
                tied=tied,
            ),
            vocab_size=text["vocab_size"],
            frames=frames,
        )
    except ValidationError as error:
        raise CheckpointError(f"{path}: {error.errors()[0]['msg']}: {error.errors()[0]['input']!r}") from None


def _encoder_config(vision: dict[str, Any], path: Path) -> EncoderConfig:
    sizes, side = vision_sizes(vision, VISION_DEFAULTS, path)
    return clip_encoder(sizes, side, vision.get("hidden_act", "quick_gelu") == "quick_gelu")


def _dropout(config: dict[str, Any], path: Path) -> float:
    hidden, attention = (
        config.get(f"{key}_prob", 0.1) for key in ("hidden_dropout", "attention_probs_dropout")
    )
    if hidden != attention:
        log.warning(
            "%s: hidden_dropout_prob=%s and attention_probs_dropout_prob=%s; further training takes the first for"
            " both",
            path,
            hidden,
            attention,
        )
    return float(hidden)


def _compare_preprocessing(folder: Path) -> None:
    """Warns when the images were normalised otherwise: the weights are right, captions may be worse."""
    path = folder / "preprocessor_config.json"
    if not path.is_file():
        return
    settings = read_json(path)
    for key, ours in (("image_mean", MEAN), ("image_std", STD)):
        theirs = settings.get(key)
        if theirs is not None and [round(x, 4) for x in theirs] != [round(x, 4) for x in ours]:
            log.warning(
                "%s: %s=%s, where git_scale takes CLIP's %s as the paper's code does: captions may differ from"
                " those of transformers",
                path,
                key,
                theirs,
                list(ours),
            )
