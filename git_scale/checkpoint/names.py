"""Which tensors of GitModel stand for which tensors of other programs, in both directions.

Each row is one of our tensors and the foreign ones that make it up: laid end to end they are ours, in its memory's
order. So a row serves import (concatenate) and export (cut) alike.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from git_scale.checkpoint.weights import TIED_NAME, TIED_TO, check_names
from git_scale.config import ModelConfig
from git_scale.errors import CheckpointError

ENCODER = "encoder.backbone."


@dataclass(frozen=True)
class Row:
    """One tensor of ours and theirs that make it up, all of one shape: ours cut along its first dimension."""

    ours: str
    theirs: tuple[str, ...]
    drop_dims: int = 0
    """Leading dimensions of 1 that ours has and theirs have not."""
    add_dims: int = 0
    """Leading dimensions of 1 that theirs have beyond those of the cut."""

    def their_shape(self, ours: torch.Size) -> torch.Size:
        size = ours[self.drop_dims :]
        if len(self.theirs) > 1:
            size = torch.Size([size[0] // len(self.theirs), *size[1:]])
        return torch.Size([*[1] * self.add_dims, *size])


def both(ours: str, theirs: str) -> Iterator[Row]:
    """Weight and bias."""
    for kind in ("weight", "bias"):
        yield Row(f"{ours}.{kind}", (f"{theirs}.{kind}",))


def joined(ours: str, theirs: tuple[str, ...]) -> Iterator[Row]:
    for kind in ("weight", "bias"):
        yield Row(f"{ours}.{kind}", tuple(f"{name}.{kind}" for name in theirs))


def clip_rows(layers: int, prefix: str) -> Iterator[Row]:
    """OpenAI's names of a ViT (`visual.` in CLIP, `image_encoder.` in GIT), as timm names it."""
    yield Row(f"{ENCODER}cls_token", (f"{prefix}class_embedding",), drop_dims=2)
    yield Row(f"{ENCODER}pos_embed", (f"{prefix}positional_embedding",), drop_dims=1)
    yield Row(f"{ENCODER}patch_embed.proj.weight", (f"{prefix}conv1.weight",))
    yield from both(f"{ENCODER}norm_pre", f"{prefix}ln_pre")
    yield from both(f"{ENCODER}norm", f"{prefix}ln_post")
    for number in range(layers):
        ours, theirs = f"{ENCODER}blocks.{number}", f"{prefix}transformer.resblocks.{number}"
        for kind in ("weight", "bias"):
            yield Row(f"{ours}.attn.qkv.{kind}", (f"{theirs}.attn.in_proj_{kind}",))
        yield from both(f"{ours}.attn.proj", f"{theirs}.attn.out_proj")
        yield from both(f"{ours}.norm1", f"{theirs}.ln_1")
        yield from both(f"{ours}.norm2", f"{theirs}.ln_2")
        yield from both(f"{ours}.mlp.fc1", f"{theirs}.mlp.c_fc")
        yield from both(f"{ours}.mlp.fc2", f"{theirs}.mlp.c_proj")


def huggingface_encoder_rows(layers: int, prefix: str) -> Iterator[Row]:
    """transformers' names of the same ViT; `pre_layrnorm` is its spelling."""
    yield Row(f"{ENCODER}cls_token", (f"{prefix}embeddings.class_embedding",), drop_dims=2)
    yield Row(f"{ENCODER}patch_embed.proj.weight", (f"{prefix}embeddings.patch_embedding.weight",))
    yield from both(f"{ENCODER}norm_pre", f"{prefix}pre_layrnorm")
    yield from _huggingface_vit_rows(layers, prefix)


def siglip_rows(layers: int, prefix: str) -> Iterator[Row]:
    """transformers' names of a SigLIP ViT."""
    yield from both(f"{ENCODER}patch_embed.proj", f"{prefix}embeddings.patch_embedding")
    yield from _huggingface_vit_rows(layers, prefix)


def _huggingface_vit_rows(layers: int, prefix: str) -> Iterator[Row]:
    yield Row(f"{ENCODER}pos_embed", (f"{prefix}embeddings.position_embedding.weight",), drop_dims=1)
    yield from both(f"{ENCODER}norm", f"{prefix}post_layernorm")
    for number in range(layers):
        ours, theirs = f"{ENCODER}blocks.{number}", f"{prefix}encoder.layers.{number}"
        attention = f"{theirs}.self_attn"
        yield from joined(f"{ours}.attn.qkv", tuple(f"{attention}.{part}_proj" for part in "qkv"))
        yield from both(f"{ours}.attn.proj", f"{attention}.out_proj")
        yield from both(f"{ours}.norm1", f"{theirs}.layer_norm1")
        yield from both(f"{ours}.norm2", f"{theirs}.layer_norm2")
        yield from both(f"{ours}.mlp.fc1", f"{theirs}.mlp.fc1")
        yield from both(f"{ours}.mlp.fc2", f"{theirs}.mlp.fc2")


def bert_rows(layers: int, prefix: str) -> Iterator[Row]:
    """The decoder's blocks, which the paper's code and transformers name as BERT does."""
    for number in range(layers):
        ours, theirs = f"decoder.layers.{number}", f"{prefix}encoder.layer.{number}"
        attention = f"{theirs}.attention.self"
        yield from both(f"{ours}.query", f"{attention}.query")
        yield from joined(f"{ours}.key_value", (f"{attention}.key", f"{attention}.value"))
        yield from both(f"{ours}.out", f"{theirs}.attention.output.dense")
        yield from both(f"{ours}.attention_norm", f"{theirs}.attention.output.LayerNorm")
        yield from both(f"{ours}.fc1", f"{theirs}.intermediate.dense")
        yield from both(f"{ours}.fc2", f"{theirs}.output.dense")
        yield from both(f"{ours}.ffn_norm", f"{theirs}.output.LayerNorm")


def huggingface_rows(model: ModelConfig, encoder_layers: int, temporal: str = "img_temporal") -> list[Row]:
    """GitForCausalLM of transformers; `temporal`: img_temperal before 4.57."""
    rows = [*huggingface_encoder_rows(encoder_layers, "git.image_encoder.vision_model.")]
    rows += bert_rows(model.decoder.layers, "git.")
    projection = "git.visual_projection.visual_projection"
    rows += [*both("projection.0", f"{projection}.0"), *both("projection.1", f"{projection}.1")]
    rows += [
        Row(TIED_TO, ("git.embeddings.word_embeddings.weight",)),
        Row("decoder.embedding.positions.weight", ("git.embeddings.position_embeddings.weight",)),
        *both("decoder.embedding.norm", "git.embeddings.LayerNorm"),
        *both("decoder.head", "output"),
    ]
    return rows + _temporal_rows(model.frames, f"git.{temporal}_embedding")


def microsoft_rows(model: ModelConfig, encoder_layers: int) -> list[Row]:
    """The paper's code (microsoft/GenerativeImage2Text)."""
    rows = [*clip_rows(encoder_layers, "image_encoder.")]
    rows += bert_rows(model.decoder.layers, "textual.transformer.")
    projection = "textual.visual_projection"
    rows += [*both("projection.0", f"{projection}.0"), *both("projection.1", f"{projection}.1")]
    rows += [
        Row(TIED_TO, ("textual.embedding.words.weight",)),
        Row("decoder.embedding.positions.weight", ("textual.embedding.positions.weight",)),
        *both("decoder.embedding.norm", "textual.embedding.layer_norm"),
        *both("decoder.head", "textual.output"),
    ]
    return rows + _temporal_rows(model.frames, "img_temperal_embedding")


def _temporal_rows(frames: int, name: str) -> list[Row]:
    """One [1, 1, C] per frame there, [F, C] here."""
    if frames == 1:
        return []
    return [Row("temporal.frames", tuple(f"{name}.{frame}" for frame in range(frames)), add_dims=1)]


def drop_single_temporal(source: Source, name: str, path: Path) -> dict[str, str]:
    """The reason to leave out the one temporal embedding of a model of clips of one frame: it is zero.

    Raises CheckpointError otherwise: git_scale's models of one frame have none, and the features would differ by it.
    """
    if bool(source.read(name).any()):
        raise CheckpointError(
            f"{path}: {name} is the temporal embedding of clips of a single frame (num_image_with_embedding=1), which"
            " git_scale's models of one picture have not. To use it on pictures, which never see it, take that tensor"
            " out of the file (and num_image_with_embedding out of config.json)"
        )
    return {name: "a temporal embedding of zeros"}


class Source(Protocol):
    """Tensors by foreign names."""

    shapes: dict[str, torch.Size]

    def read(self, name: str) -> Tensor: ...


class RenamedWeights:
    """Weights (git_scale/checkpoint/weights.py) made of foreign tensors by a table of rows.

    `shapes` are those of our model; `dropped` gives the reason for every foreign tensor that no row takes.
    Raises CheckpointError when a foreign tensor is missing, unknown or of another shape.
    """

    def __init__(
        self,
        source: Source,
        rows: list[Row],
        shapes: dict[str, torch.Size],
        dropped: dict[str, str],
        path: Path,
    ) -> None:
        expected = {name: row.their_shape(shapes[row.ours]) for row in rows for name in row.theirs}
        found = {name: shape for name, shape in source.shapes.items() if name not in dropped}
        check_names(path, expected, found)
        self.shapes = {row.ours: shapes[row.ours] for row in rows}
        self.dropped = {name: reason for name, reason in dropped.items() if name in source.shapes}
        self._source = source
        self._rows = {row.ours: row for row in rows}
        if TIED_NAME in shapes and TIED_NAME not in self._rows:
            self.shapes[TIED_NAME], self._rows[TIED_NAME] = shapes[TIED_TO], self._rows[TIED_TO]

    def read(self, name: str) -> Tensor:
        parts = [self._source.read(theirs) for theirs in self._rows[name].theirs]
        whole = parts[0] if len(parts) == 1 else torch.cat([part.flatten() for part in parts])
        return whole.reshape(self.shapes[name])


def cut(row: Row, ours: Tensor) -> Iterator[tuple[str, Tensor]]:
    """The foreign tensors of a row, out of our one."""
    pieces = ours.flatten().chunk(len(row.theirs))
    for name, piece in zip(row.theirs, pieces, strict=True):
        yield name, piece.reshape(row.their_shape(ours.shape))
