"""Says which tensors of other programs stand for which tensors of GitModel, in both directions.

A rule names one of our tensors and the foreign ones that make it up: laid end to end they are ours, in its memory's
order. So a rule serves import (concatenate) and export (cut) alike.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from git_scale.checkpoint.weights import TIED_NAME, TIED_TO, check_names
from git_scale.config import ModelConfig
from git_scale.errors import CheckpointError

ENCODER = "encoder.backbone."

# Within a block, our name of a layer -> theirs.
CLIP_LAYERS = {
    "attn.proj": "attn.out_proj",
    "norm1": "ln_1",
    "norm2": "ln_2",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
}
HUGGINGFACE_LAYERS = {
    "attn.proj": "self_attn.out_proj",
    "norm1": "layer_norm1",
    "norm2": "layer_norm2",
    "mlp.fc1": "mlp.fc1",
    "mlp.fc2": "mlp.fc2",
}
BERT_LAYERS = {
    "query": "attention.self.query",
    "out": "attention.output.dense",
    "attention_norm": "attention.output.LayerNorm",
    "fc1": "intermediate.dense",
    "fc2": "output.dense",
    "ffn_norm": "output.LayerNorm",
}


@dataclass(frozen=True)
class NameRule:
    """Names a tensor of ours and those of theirs that make it up.

    Theirs are equal parts of ours, cut along its first dimension behind `drop_dims`.
    """

    ours: str
    theirs: tuple[str, ...]
    drop_dims: int = 0
    """So many leading dimensions of 1 has ours and have theirs not."""
    add_dims: int = 0
    """So many leading dimensions of 1 has each of theirs beyond those of its part."""

    def their_shape(self, ours: torch.Size) -> torch.Size:
        size = ours[self.drop_dims :]
        if len(self.theirs) > 1:
            size = torch.Size([size[0] // len(self.theirs), *size[1:]])
        return torch.Size([*[1] * self.add_dims, *size])


def weight_and_bias(ours: str, theirs: str) -> Iterator[NameRule]:
    for kind in ("weight", "bias"):
        yield NameRule(f"{ours}.{kind}", (f"{theirs}.{kind}",))


def weights_and_biases(ours: str, theirs: str, names: Mapping[str, str]) -> Iterator[NameRule]:
    """`names`: of layers below the two prefixes, ours -> theirs."""
    for our_name, their_name in names.items():
        yield from weight_and_bias(f"{ours}.{our_name}", f"{theirs}.{their_name}")


def joined_weight_and_bias(ours: str, theirs: tuple[str, ...]) -> Iterator[NameRule]:
    for kind in ("weight", "bias"):
        yield NameRule(f"{ours}.{kind}", tuple(f"{name}.{kind}" for name in theirs))


def clip_rules(layers: int, prefix: str) -> Iterator[NameRule]:
    """OpenAI's names of a ViT (`visual.` in CLIP, `image_encoder.` in GIT), as timm names it."""
    yield NameRule(f"{ENCODER}cls_token", (f"{prefix}class_embedding",), drop_dims=2)
    yield NameRule(f"{ENCODER}pos_embed", (f"{prefix}positional_embedding",), drop_dims=1)
    yield NameRule(f"{ENCODER}patch_embed.proj.weight", (f"{prefix}conv1.weight",))
    yield from weight_and_bias(f"{ENCODER}norm_pre", f"{prefix}ln_pre")
    yield from weight_and_bias(f"{ENCODER}norm", f"{prefix}ln_post")
    for number in range(layers):
        ours, theirs = f"{ENCODER}blocks.{number}", f"{prefix}transformer.resblocks.{number}"
        for kind in ("weight", "bias"):
            yield NameRule(f"{ours}.attn.qkv.{kind}", (f"{theirs}.attn.in_proj_{kind}",))
        yield from weights_and_biases(ours, theirs, CLIP_LAYERS)


def huggingface_encoder_rules(layers: int, prefix: str) -> Iterator[NameRule]:
    """transformers' names of the same ViT; `pre_layrnorm` is its spelling."""
    yield NameRule(f"{ENCODER}cls_token", (f"{prefix}embeddings.class_embedding",), drop_dims=2)
    yield NameRule(f"{ENCODER}patch_embed.proj.weight", (f"{prefix}embeddings.patch_embedding.weight",))
    yield from weight_and_bias(f"{ENCODER}norm_pre", f"{prefix}pre_layrnorm")
    yield from _huggingface_vit_rules(layers, prefix)


def siglip_rules(layers: int, prefix: str) -> Iterator[NameRule]:
    """transformers' names of a SigLIP ViT."""
    yield from weight_and_bias(f"{ENCODER}patch_embed.proj", f"{prefix}embeddings.patch_embedding")
    yield from _huggingface_vit_rules(layers, prefix)


def _huggingface_vit_rules(layers: int, prefix: str) -> Iterator[NameRule]:
    yield NameRule(f"{ENCODER}pos_embed", (f"{prefix}embeddings.position_embedding.weight",), drop_dims=1)
    yield from weight_and_bias(f"{ENCODER}norm", f"{prefix}post_layernorm")
    for number in range(layers):
        ours, theirs = f"{ENCODER}blocks.{number}", f"{prefix}encoder.layers.{number}"
        attention = f"{theirs}.self_attn"
        yield from joined_weight_and_bias(
            f"{ours}.attn.qkv", tuple(f"{attention}.{part}_proj" for part in "qkv")
        )
        yield from weights_and_biases(ours, theirs, HUGGINGFACE_LAYERS)


def bert_rules(layers: int, prefix: str) -> Iterator[NameRule]:
    """The decoder's blocks, which the paper's code and transformers name as BERT does."""
    for number in range(layers):
        ours, theirs = f"decoder.layers.{number}", f"{prefix}encoder.layer.{number}"
        attention = f"{theirs}.attention.self"
        yield from joined_weight_and_bias(f"{ours}.key_value", (f"{attention}.key", f"{attention}.value"))
        yield from weights_and_biases(ours, theirs, BERT_LAYERS)


def huggingface_rules(
    model: ModelConfig, encoder_layers: int, temporal: str = "img_temporal"
) -> list[NameRule]:
    """GitForCausalLM of transformers; `temporal`: img_temperal before 4.57."""
    rules = [*huggingface_encoder_rules(encoder_layers, "git.image_encoder.vision_model.")]
    rules += bert_rules(model.decoder.layers, "git.")
    projection = "git.visual_projection.visual_projection"
    rules += [
        *weight_and_bias("projection.0", f"{projection}.0"),
        *weight_and_bias("projection.1", f"{projection}.1"),
    ]
    rules += [
        NameRule(TIED_TO, ("git.embeddings.word_embeddings.weight",)),
        NameRule("decoder.embedding.positions.weight", ("git.embeddings.position_embeddings.weight",)),
        *weight_and_bias("decoder.embedding.norm", "git.embeddings.LayerNorm"),
        *weight_and_bias("decoder.head", "output"),
    ]
    return rules + _temporal_rules(model.frames, f"git.{temporal}_embedding")


def microsoft_rules(model: ModelConfig, encoder_layers: int) -> list[NameRule]:
    """The paper's code (microsoft/GenerativeImage2Text)."""
    rules = [*clip_rules(encoder_layers, "image_encoder.")]
    rules += bert_rules(model.decoder.layers, "textual.transformer.")
    projection = "textual.visual_projection"
    rules += [
        *weight_and_bias("projection.0", f"{projection}.0"),
        *weight_and_bias("projection.1", f"{projection}.1"),
    ]
    rules += [
        NameRule(TIED_TO, ("textual.embedding.words.weight",)),
        NameRule("decoder.embedding.positions.weight", ("textual.embedding.positions.weight",)),
        *weight_and_bias("decoder.embedding.norm", "textual.embedding.layer_norm"),
        *weight_and_bias("decoder.head", "textual.output"),
    ]
    return rules + _temporal_rules(model.frames, "img_temperal_embedding")


def _temporal_rules(frames: int, name: str) -> list[NameRule]:
    """One [1, 1, C] per frame there, [F, C] here."""
    if frames == 1:
        return []
    return [NameRule("temporal.frames", tuple(f"{name}.{frame}" for frame in range(frames)), add_dims=1)]


def drop_single_temporal(source: ForeignTensors, name: str, path: Path) -> dict[str, str]:
    """The reason to leave out the one temporal embedding of a model of clips of one frame: it is zero.

    Raises CheckpointError otherwise: git_scale's models of one frame have none, and the features would differ by it.
    """
    if bool(source.read(name).any()):
        raise CheckpointError(
            f"{path}: {name} is the temporal embedding of clips of a single frame (num_image_with_embedding=1), which"
            " git_scale's models of one image have not. To use it on images, which never see it, take that tensor"
            " out of the file (and num_image_with_embedding out of config.json)"
        )
    return {name: "a temporal embedding of zeros"}


class ForeignTensors(Protocol):
    """Reads tensors by the names that another program gave them."""

    shapes: dict[str, torch.Size]

    def read(self, name: str) -> Tensor: ...


class RenamedWeights:
    """Gives weights (git_scale/checkpoint/weights.py) made of foreign tensors by a table of rules.

    `shapes` are those of our model; `dropped` gives the reason for every foreign tensor that no rule takes.
    Raises CheckpointError when a foreign tensor is missing, unknown or of another shape.
    """

    def __init__(
        self,
        source: ForeignTensors,
        rules: list[NameRule],
        shapes: dict[str, torch.Size],
        dropped: dict[str, str],
        path: Path,
    ) -> None:
        expected = {name: rule.their_shape(shapes[rule.ours]) for rule in rules for name in rule.theirs}
        found = {name: shape for name, shape in source.shapes.items() if name not in dropped}
        check_names(path, expected, found)
        self.shapes = {rule.ours: shapes[rule.ours] for rule in rules}
        self.dropped = {name: reason for name, reason in dropped.items() if name in source.shapes}
        self._source = source
        self._rules = {rule.ours: rule for rule in rules}
        if TIED_NAME in shapes and TIED_NAME not in self._rules:
            self.shapes[TIED_NAME], self._rules[TIED_NAME] = shapes[TIED_TO], self._rules[TIED_TO]

    def read(self, name: str) -> Tensor:
        parts = [self._source.read(theirs) for theirs in self._rules[name].theirs]
        whole = parts[0] if len(parts) == 1 else torch.cat([part.flatten() for part in parts])
        return whole.reshape(self.shapes[name])


def cut(rule: NameRule, ours: Tensor) -> Iterator[tuple[str, Tensor]]:
    """The foreign tensors of a rule, out of our one."""
    pieces = ours.flatten().chunk(len(rule.theirs))
    for name, piece in zip(rule.theirs, pieces, strict=True):
        yield name, piece.reshape(rule.their_shape(ours.shape))
