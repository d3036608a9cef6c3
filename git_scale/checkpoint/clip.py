"""Image encoders that come alone, in the layouts that people have, opened as ours.

visual.*            OpenAI's CLIP and open_clip: model files, training files, CustomTextCLIP
visual.trunk.*      open_clip with a trunk of timm
vision_model.*      transformers' CLIP and SigLIP (git_scale/checkpoint/transformers_vit.py)
anything else       timm's own names, of the architecture that --encoder or timm's config.json names
"""

from __future__ import annotations

import difflib
import re
from pathlib import Path
from typing import Any, NamedTuple

import torch

from git_scale.checkpoint.names import ENCODER, NameRule, RenamedWeights, clip_rules
from git_scale.checkpoint.normalisation import CLIP, Normalisation, fold_normalisation, read_normalisation
from git_scale.checkpoint.opened_checkpoint import OpenedCheckpoint
from git_scale.checkpoint.sources import UnwrappedTensors, find_tensors, open_tensors, read_json
from git_scale.checkpoint.transformers_vit import open_transformers_vit, prefix_of
from git_scale.checkpoint.vit import (
    OPENAI_HEAD_WIDTH,
    VitSizes,
    clip_encoder,
    read_sizes,
    shapes_of,
    square_side,
)
from git_scale.checkpoint.weights import Weights
from git_scale.config import EncoderConfig, ModelConfig, RunConfig
from git_scale.errors import CheckpointError
from git_scale.models.build import build_encoder
from git_scale.models.encoders import QuickGelu, declare_torchvision_operators

OPEN_CLIP_FILES = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")
TRUNK = "visual.trunk."
OPENAI_NUMBERS = (
    "input_resolution",
    "context_length",
    "vocab_size",
)  # in OpenAI's own files and in no others
TEXT_TOWER = (
    r"transformer\..*|token_embedding\.weight|positional_embedding|text_projection|ln_final\..*|logit_scale|logit_bias"
    r"|attn_mask|text\..*|text_decoder\..*"
)
POOLING = "the pooling to one vector; GIT reads all tokens"


class VitHyperparameters(NamedTuple):
    """Holds what the tensors of a ViT do not say; None where nothing beside them does either."""

    head_width: int | None
    quick_gelu: bool | None


def open_encoder(path: Path, name: str | None) -> OpenedCheckpoint | None:
    """An image encoder alone, of a file or a folder; `name` is timm's of its architecture. None: it is none of these.

    Raises CheckpointError when it cannot be read, does not fit, or leaves open what its features depend on.
    """
    file = path if path.is_file() else _file_in(path)
    if file is None:
        return None
    source = UnwrappedTensors(open_tensors(file))
    if any(key.startswith(TRUNK) for key in source.shapes):
        return _alone(path, *_open_trunk(path, file, source, name))
    if any(key.startswith("visual.") for key in source.shapes):
        return _alone(path, *_open_clip(path, file, source, name))
    if (prefix := prefix_of(source.shapes)) is not None:
        encoder, weights = open_transformers_vit(path, file, source, prefix)
        if name is not None:
            _compare(path, _timm_name(name), encoder)
        return _alone(path, encoder, weights)
    beside = _read_beside(file, "config.json")
    name = name or (beside["architecture"] if isinstance(beside.get("architecture"), str) else None)
    if name is None:
        return None
    images = beside.get("pretrained_cfg")
    images = images if isinstance(images, dict) else {}
    return _alone(path, *_open_timm(path, source, _timm_name(name), "", {}, None, images))


def _file_in(folder: Path) -> Path | None:
    candidates = [folder / name for name in OPEN_CLIP_FILES]
    return find_tensors(folder) or next((file for file in candidates if file.is_file()), None)


def _read_beside(file: Path, name: str) -> dict[str, Any]:
    beside = file.parent / name
    return read_json(beside) if beside.is_file() else {}


def _section(tree: dict[str, Any], *keys: str) -> dict[str, Any]:
    for key in keys:
        below = tree.get(key)
        tree = below if isinstance(below, dict) else {}
    return tree


def _open_clip(
    path: Path, file: Path, source: UnwrappedTensors, name: str | None
) -> tuple[EncoderConfig, Weights]:
    config = _read_beside(file, "open_clip_config.json")
    told = _told(path, source, config, name)
    sizes, positions = read_sizes(source.shapes, "visual.", path, told.head_width)
    if told.quick_gelu is None:
        raise CheckpointError(
            f"{path}: does not say whether it was trained with GELU or quick GELU: put its open_clip_config.json"
            f" beside it, or name its architecture: --encoder {clip_encoder(sizes, 224, False).name} (GELU) or"
            f" --encoder {clip_encoder(sizes, 224, True).name} (quick GELU)"
        )
    _check_described(path, config, sizes)
    side = square_side(positions, path)
    encoder = clip_encoder(sizes, side * sizes.patch, told.quick_gelu)
    if name is not None:
        _compare(path, name, encoder)
    dropped = _text_tower(source) | dict.fromkeys(OPENAI_NUMBERS, "a number about CLIP")
    dropped["visual.proj"] = "CLIP's projection into the space it shares with texts"
    rules = list(clip_rules(sizes.layers, "visual."))
    weights = RenamedWeights(source, rules, _shapes(encoder), dropped, path)
    return encoder, fold_normalisation(weights, encoder, _open_clip_images(config, file), path)


def _told(
    path: Path, source: UnwrappedTensors, config: dict[str, Any], name: str | None
) -> VitHyperparameters:
    """By --encoder, by open_clip's configuration, or by the numbers that only OpenAI's own files hold."""
    if name is not None:
        backbone = _on_meta(EncoderConfig(name=_timm_name(name)))
        block = next(iter(getattr(backbone, "blocks", [])), None)
        if block is None or not hasattr(getattr(block, "attn", None), "num_heads"):
            raise CheckpointError(
                f"{path}: --encoder {name}: it holds a CLIP ViT, which this architecture is not"
            )
        return VitHyperparameters(
            backbone.embed_dim // block.attn.num_heads, isinstance(block.mlp.act, QuickGelu)
        )
    if model := _section(config, "model_cfg"):
        head_width = _section(model, "vision_cfg").get("head_width", 64)  # open_clip's default
        if not isinstance(head_width, int) or isinstance(head_width, bool):
            raise CheckpointError(
                f"{path}: open_clip_config.json: head_width={head_width!r} is no whole number"
            )
        return VitHyperparameters(head_width, bool(model.get("quick_gelu", False)))
    if all(number in source.shapes for number in OPENAI_NUMBERS):
        return VitHyperparameters(OPENAI_HEAD_WIDTH, True)
    return VitHyperparameters(None, None)


def _check_described(path: Path, config: dict[str, Any], sizes: VitSizes) -> None:
    vision = _section(config, "model_cfg", "vision_cfg")
    for key, found in (("width", sizes.width), ("layers", sizes.layers), ("patch_size", sizes.patch)):
        if vision.get(key, found) != found:
            raise CheckpointError(
                f"{path}: open_clip_config.json beside it says {key}={vision[key]!r}, the file holds {found}: it is"
                " another model's"
            )


def _compare(path: Path, name: str, encoder: EncoderConfig) -> None:
    """Raises CheckpointError when --encoder names another architecture than what was found."""
    given, found = (_describe(_on_meta(config)) for config in (EncoderConfig(name=name), encoder))
    if given != found:
        raise CheckpointError(f"{path}: --encoder {name} is {given}, but the file holds {found}")


def _describe(vit: Any) -> str:
    blocks = list(getattr(vit, "blocks", []))
    if not blocks or not hasattr(vit, "patch_embed"):
        return "no ViT"
    first = blocks[0]
    return (
        f"a ViT with patches of {vit.patch_embed.patch_size[0]}, width {vit.embed_dim}, {len(blocks)} layers,"
        f" {getattr(first.attn, 'num_heads', '?')} heads, {first.mlp.fc1.out_features} hidden units and"
        f" {type(first.mlp.act).__name__}"
    )


def _open_trunk(
    path: Path, file: Path, source: UnwrappedTensors, name: str | None
) -> tuple[EncoderConfig, Weights]:
    config = _read_beside(file, "open_clip_config.json")
    vision = _section(config, "model_cfg", "vision_cfg")
    name = name or vision.get("timm_model_name")
    if not isinstance(name, str):
        raise CheckpointError(
            f"{path}: open_clip with an image encoder of timm, whose architecture no file of tensors tells: put its"
            " open_clip_config.json beside it, or name the architecture with --encoder"
        )
    dropped = _text_tower(source)
    dropped |= {key: POOLING for key in source.shapes if key.startswith("visual.head.")}
    images = _section(config, "preprocess_cfg")
    return _open_timm(path, source, _timm_name(name), TRUNK, dropped, vision.get("image_size"), images)


def _text_tower(source: UnwrappedTensors) -> dict[str, str]:
    return {key: "CLIP's text tower" for key in source.shapes if re.fullmatch(TEXT_TOWER, key)}


def _open_clip_images(config: dict[str, Any], file: Path) -> Normalisation:
    images = _section(config, "preprocess_cfg")
    return read_normalisation(images.get("mean"), images.get("std"), CLIP, file)


def _open_timm(
    path: Path,
    source: UnwrappedTensors,
    name: str,
    prefix: str,
    dropped: dict[str, str],
    image_size: Any,
    images: dict[str, Any],
) -> tuple[EncoderConfig, Weights]:
    """timm's names under `prefix`; mean and deviation of `pictures` go before those that timm has for the name."""
    import timm

    published = timm.get_pretrained_cfg(name, allow_unregistered=True)
    side = image_size if isinstance(image_size, int) and image_size >= 8 else published.input_size[-1]
    encoder = EncoderConfig(name=name, image_size=side)
    shapes = _shapes(encoder)
    classifiers = (
        (published.classifier,) if isinstance(published.classifier, str) else published.classifier or ()
    )
    for reason, parts in (("timm's classifier", classifiers), (POOLING, ("attn_pool",))):
        heads = tuple(f"{prefix}{part}." for part in parts)
        dropped |= {key: reason for key in source.shapes if heads and key.startswith(heads)}
    rules = [NameRule(key, (prefix + key.removeprefix(ENCODER),)) for key in shapes]
    weights = RenamedWeights(source, rules, shapes, dropped, path)
    default = Normalisation(tuple(published.mean), tuple(published.std))
    theirs = read_normalisation(images.get("mean"), images.get("std"), default, path)
    return encoder, fold_normalisation(weights, encoder, theirs, path)


def _timm_name(name: str) -> str:
    """Without the tag of its weights. Raises CheckpointError when timm has no such architecture."""
    declare_torchvision_operators()
    import timm

    if not timm.is_model(name):
        close = difflib.get_close_matches(name, timm.list_models(), n=3)
        raise CheckpointError(
            f"--encoder {name}: timm has no such model; near ones: {', '.join(close) or 'none'}"
        )
    return name


def _on_meta(encoder: EncoderConfig) -> Any:
    with torch.device("meta"):
        return build_encoder(encoder).backbone


def _shapes(encoder: EncoderConfig) -> dict[str, torch.Size]:
    with torch.device("meta"):
        return shapes_of(build_encoder(encoder), "encoder.")


def _alone(path: Path, encoder: EncoderConfig, weights: Weights) -> OpenedCheckpoint:
    run = RunConfig(model=ModelConfig(encoder=encoder))
    return OpenedCheckpoint(kind="encoder", path=path, run=run, tokenizer=None, weights=weights, step=None)
