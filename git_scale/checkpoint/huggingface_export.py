"""A GIT of ours as a folder of transformers, checked by reading it back before it appears."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from git_scale.checkpoint.card import USE_HUGGINGFACE, write_card
from git_scale.checkpoint.detect import open_checkpoint
from git_scale.checkpoint.folder import Shapes, new_model_folder, write_tensors, write_text
from git_scale.checkpoint.hf_tokenizer import write_tokenizer_files
from git_scale.checkpoint.huggingface_check import check_as_a_user
from git_scale.checkpoint.names import NameRule, cut, huggingface_rules
from git_scale.checkpoint.opened_checkpoint import OpenedCheckpoint, tokenizer_of
from git_scale.checkpoint.probe import (
    ExportReport,
    compare,
    probe,
    probe_transformers,
    transformers_version,
)
from git_scale.checkpoint.weights import read_finite
from git_scale.config import ModelConfig, RunConfig
from git_scale.data.images import MEAN, STD
from git_scale.data.tokenizer import Tokenizer
from git_scale.errors import CheckpointError
from git_scale.models.build import build_model
from git_scale.models.encoders import QuickGelu
from git_scale.models.git import GitModel, count_parameters
from git_scale.tasks import TASKS

CARD_HEADER = "---\nlibrary_name: transformers\npipeline_tag: image-text-to-text\ntags:\n- git\n---\n"
BICUBIC = 3  # PIL's number


def export_huggingface(opened: OpenedCheckpoint, destination: Path, force: bool = False) -> ExportReport:
    """Writes a folder that AutoModelForCausalLM and AutoProcessor of transformers load, whole or not at all.

    Raises CheckpointError for what transformers has no class or setting for, and when what was written gives
    other logits on the probe than the source (read back by transformers, or by git_scale where it is missing).
    """
    if opened.holds_encoder_only:
        raise CheckpointError(f"{opened.path}: holds an image encoder alone, no GIT to export")
    if opened.run.model.decoder.attention != "joint":
        raise CheckpointError(
            f"{opened.path}: model.decoder.attention={opened.run.model.decoder.attention} has no like in"
            " transformers' GIT, where text and image share one attention: take --format native"
        )
    if opened.run.data.resize != "crop":
        raise CheckpointError(
            f"{opened.path}: data.resize={opened.run.data.resize} has no like in transformers' image processor, whose"
            " images are cropped: take --format native, or --crop if the middle of the images will do"
        )
    tokenizer = tokenizer_of(opened)
    with torch.device("meta"):
        model = build_model(opened.run.model)
    vision = _vision_config(model, opened.run.model)
    rules = huggingface_rules(opened.run.model, vision["num_hidden_layers"])
    shapes = _shapes(rules, model)
    expected = probe(opened)
    with new_model_folder(destination, force, [opened.path]) as folder:
        write_tensors(folder, shapes, lambda names: _pieces(opened, rules, names))
        _write_configs(folder, opened, tokenizer, vision)
        write_tokenizer_files(tokenizer, opened.run.model.decoder.positions, folder)
        write_text(folder / "README.md", write_card(opened, USE_HUGGINGFACE, CARD_HEADER))
        difference, reader = _verify(opened, expected, folder)
    return ExportReport(
        destination=destination,
        tensors=len(shapes),
        parameters=count_parameters(model),
        dropped=opened.weights.dropped,
        max_abs_diff=difference,
        verified_with=reader,
    )


def _verify(opened: OpenedCheckpoint, expected: Tensor, folder: Path) -> tuple[float, str]:
    version = transformers_version()
    if version is None:
        return compare(opened.path, expected, lambda: probe(open_checkpoint(folder))), "git_scale"
    difference = compare(opened.path, expected, lambda: probe_transformers(folder, opened.run.model))
    check_as_a_user(folder, opened)
    return difference, f"transformers {version}"


def _shapes(rules: list[NameRule], model: GitModel) -> Shapes:
    state = model.state_dict()
    return {
        name: (rule.their_shape(state[rule.ours].shape), torch.float32)
        for rule in rules
        for name in rule.theirs
    }


def _pieces(
    opened: OpenedCheckpoint, rules: list[NameRule], names: list[str]
) -> Iterator[tuple[str, Tensor]]:
    """Reads each of our tensors once for all the pieces that follow each other."""
    rule_of = {name: rule for rule in rules for name in rule.theirs}
    rule, pieces = None, {}
    for name in names:
        if rule is not rule_of[name]:
            rule = rule_of[name]
            pieces = dict(cut(rule, read_finite(opened.weights, rule.ours)))
        yield name, pieces[name]


def _vision_config(model: GitModel, config: ModelConfig) -> dict[str, Any]:
    """transformers' settings of the image encoder. Raises CheckpointError when it is no CLIP ViT."""
    vit, name = model.encoder.backbone, config.encoder.name
    blocks = list(getattr(vit, "blocks", ()))
    expected = {rule.ours for rule in huggingface_rules(config, len(blocks))}
    norms = [m for m in model.encoder.modules() if isinstance(m, nn.LayerNorm)]
    acts = {type(block.mlp.act) for block in blocks if hasattr(block, "mlp")}
    if (
        not blocks
        or set(model.state_dict()) != expected
        or not acts <= {QuickGelu, nn.GELU}
        or len(acts) != 1
        or {norm.eps for norm in norms} != {1e-5}
        or vit.no_embed_class
        or vit.patch_embed.grid_size[0] != vit.patch_embed.grid_size[1]
    ):
        raise CheckpointError(
            f"model.encoder.name={name!r} is no CLIP ViT, the only encoder of GIT in"
            " transformers: take --format native"
        )
    return {
        "model_type": "git_vision_model",
        "hidden_size": vit.embed_dim,
        "intermediate_size": blocks[0].mlp.fc1.out_features,
        "num_hidden_layers": len(blocks),
        "num_attention_heads": blocks[0].attn.num_heads,
        "num_channels": 3,
        "image_size": config.encoder.image_size,
        "patch_size": vit.patch_embed.patch_size[0],
        "hidden_act": "quick_gelu" if acts == {QuickGelu} else "gelu",
        "layer_norm_eps": 1e-5,
        "attention_dropout": 0.0,
        "initializer_range": 0.02,
    }


def _max_length(run: RunConfig) -> int:
    """In tokens, prompt included. It yields to a caller's max_length and max_new_tokens alike, as max_new_tokens in
    the file would not."""
    task = run.data.task  # perhaps of a plugin that is not loaded: then there is room for a question
    prompt = 1 if task in TASKS and not TASKS[task].has_questions else run.data.max_text_tokens - 1
    return min(prompt + run.eval.max_new_tokens, run.model.decoder.positions)


def _write_configs(
    folder: Path, opened: OpenedCheckpoint, tokenizer: Tokenizer, vision: dict[str, Any]
) -> None:
    model, evaluation = opened.run.model, opened.run.eval
    special = {
        "pad_token_id": tokenizer.pad_id,
        "bos_token_id": tokenizer.bos_id,
        "eos_token_id": tokenizer.eos_id,
    }
    config = {
        "architectures": ["GitForCausalLM"],
        "model_type": "git",
        "dtype": "float32",
        "vocab_size": model.vocab_size,
        "hidden_size": model.decoder.width,
        "num_hidden_layers": model.decoder.layers,
        "num_attention_heads": model.decoder.heads,
        "intermediate_size": model.decoder.ffn,
        "max_position_embeddings": model.decoder.positions,
        "hidden_act": "gelu",
        "hidden_dropout_prob": model.decoder.dropout,
        "attention_probs_dropout_prob": model.decoder.dropout,
        "layer_norm_eps": 1e-12,
        "initializer_range": model.decoder.init_std,
        "tie_word_embeddings": model.decoder.tied,
        "num_image_with_embedding": model.frames if model.frames > 1 else None,
        "vision_config": vision,
        **special,
    }
    generation: dict[str, Any] = {
        "max_length": _max_length(opened.run),
        "num_beams": evaluation.beams,
        **special,
    }
    if evaluation.beams > 1:
        generation |= {"length_penalty": evaluation.length_penalty, "early_stopping": True}
    side = model.encoder.image_size
    preprocessor = {
        "image_processor_type": "CLIPImageProcessor",
        "processor_class": "GitProcessor",
        "do_convert_rgb": True,
        "do_resize": True,
        "size": {"shortest_edge": side},
        "resample": BICUBIC,
        "do_center_crop": True,
        "crop_size": {"height": side, "width": side},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": MEAN,
        "image_std": STD,
    }
    files = {"config": config, "generation_config": generation, "preprocessor_config": preprocessor}
    for name, tree in files.items():
        write_text(folder / f"{name}.json", json.dumps(tree, indent=1))
