"""The image encoders of transformers' CLIP and SigLIP, whole models or vision models alone, opened as ours."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch

from git_scale.checkpoint.hf_config import VISION_DEFAULTS, check_fixed, vision_sizes, whole_number
from git_scale.checkpoint.names import RenamedWeights, huggingface_encoder_rules, siglip_rules
from git_scale.checkpoint.normalisation import CLIP, SIGLIP, fold_normalisation, read_normalisation
from git_scale.checkpoint.sources import UnwrappedTensors, read_json
from git_scale.checkpoint.vit import clip_encoder, shapes_of, siglip_encoder
from git_scale.checkpoint.weights import Weights
from git_scale.config import EncoderConfig
from git_scale.errors import CheckpointError
from git_scale.models.build import build_encoder

PATCHES = "embeddings.patch_embedding.weight"
CLIP_DEFAULTS = VISION_DEFAULTS | {"patch_size": 32}
GELU_TANH = ("gelu_pytorch_tanh", "gelu_new")
CLIP_FIXED = (
    ("hidden_act", ("quick_gelu", "gelu"), "quick_gelu"),
    ("layer_norm_eps", (1e-5,), 1e-5),
    ("num_channels", (3,), 3),
)
SIGLIP_FIXED = (
    ("hidden_act", (*GELU_TANH, "gelu"), GELU_TANH[0]),
    ("layer_norm_eps", (1e-6,), 1e-6),
    ("num_channels", (3,), 3),
)
DROPPED = (
    (r"text_model\..*|text_projection\..*|logit_scale|logit_bias", "CLIP's text tower"),
    (r"visual_projection\..*", "CLIP's projection into the space it shares with texts"),
    (r".*\.position_ids", "a range of numbers that older transformers stored"),
)
POOLING = "the attention pooling to one vector; GIT reads all tokens"


def prefix_of(names: dict[str, torch.Size]) -> str | None:
    """What stands before the names of its vision model; None: it has none."""
    return next((p for p in ("vision_model.", "") if f"{p}{PATCHES}" in names), None)


def open_transformers_vit(
    path: Path, file: Path, source: UnwrappedTensors, prefix: str
) -> tuple[EncoderConfig, Weights]:
    """Raises CheckpointError without the config.json beside `file`, or with settings that git_scale cannot follow."""
    described = file.parent / "config.json"
    if not described.is_file():
        raise CheckpointError(
            f"{path}: holds the vision model of a CLIP or SigLIP of transformers, whose heads and activation no file"
            " of tensors tells: put its config.json (and preprocessor_config.json) beside it"
        )
    config = read_json(described)
    vision = config.get("vision_config", config)
    kind = str(config.get("model_type", "")).removesuffix("_vision_model")
    if not isinstance(vision, dict):
        raise CheckpointError(
            f"{described}: vision_config={vision!r}: settings of an image encoder are needed"
        )
    if kind not in ("clip", "siglip"):
        raise CheckpointError(
            f"{described}: model_type={config.get('model_type')!r}; image encoders are read of 'clip' and 'siglip'"
        )
    encoder = _encoder_config(vision, kind, described)
    with torch.device("meta"):
        shapes = shapes_of(build_encoder(encoder), "encoder.")
    layers = whole_number(vision, "num_hidden_layers", VISION_DEFAULTS, described)
    rules = siglip_rules(layers, prefix) if kind == "siglip" else huggingface_encoder_rules(layers, prefix)
    dropped = {n: reason for n in source.shapes for pattern, reason in DROPPED if re.fullmatch(pattern, n)}
    if kind == "siglip":
        dropped |= {name: POOLING for name in source.shapes if name.startswith(f"{prefix}head.")}
    weights = RenamedWeights(source, list(rules), shapes, dropped, path)
    preprocessing = file.parent / "preprocessor_config.json"
    settings = read_json(preprocessing) if preprocessing.is_file() else {}
    default = SIGLIP if kind == "siglip" else CLIP
    theirs = read_normalisation(settings.get("image_mean"), settings.get("image_std"), default, preprocessing)
    return encoder, fold_normalisation(weights, encoder, theirs, path)


def _encoder_config(vision: dict[str, Any], kind: str, path: Path) -> EncoderConfig:
    check_fixed(vision, SIGLIP_FIXED if kind == "siglip" else CLIP_FIXED, path)
    sizes, side = vision_sizes(vision, VISION_DEFAULTS if kind == "siglip" else CLIP_DEFAULTS, path)
    if sizes.width % sizes.heads:
        raise CheckpointError(f"{path}: a width of {sizes.width} does not divide into {sizes.heads} heads")
    if kind == "siglip":
        tanh = vision.get("hidden_act", GELU_TANH[0]) in GELU_TANH
        return siglip_encoder(sizes, side, tanh)
    return clip_encoder(sizes, side, vision.get("hidden_act", "quick_gelu") == "quick_gelu")
