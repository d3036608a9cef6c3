"""The text decoder: post-LN BERT layers over image and text tokens, without a mask tensor over both.

How the text sees the image is the kind of layer: joint_attention.py (GIT's) or cross_attention.py. In both, what
becomes of the image tokens never depends on the text, and beams are further text rows: a row stands where its
TextPlacement says and sees its own ancestors only, so that no key or value is ever copied from beam to beam, and a
prefix is stored once for all of them.

Shapes: B batch, I image tokens (all frames), K texts per image, T text tokens, S text tokens seen so far, D width.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from git_scale.config import DecoderConfig
from git_scale.models.cache import LayerCache
from git_scale.models.cross_attention import CrossLayer
from git_scale.models.decoder_layer import DecoderLayer, Sight
from git_scale.models.joint_attention import JointLayer


@dataclass(frozen=True)
class TextPlacement:
    """Says where text rows stand and what they see, when each is not to see what is before it in a whole text."""

    positions: Tensor
    """int64 [B, K, T], or [T] where all texts have the same, counted from the begin token."""
    visible: Tensor
    """bool [B, K, T, S]: which of the S text rows so far each row sees; the last T of them are these rows themselves.

    Every row sees all image rows.
    """
    has_image: Tensor | None = None
    """bool [B]: whether the texts see an image at all. None: all do."""


class TextEmbedding(nn.Module):
    """Word + learned position, LayerNorm, dropout. Positions count text tokens only, from the begin token."""

    def __init__(self, config: DecoderConfig, vocab_size: int) -> None:
        super().__init__()
        self.words = nn.Embedding(vocab_size, config.width)
        self.positions = nn.Embedding(config.positions, config.width)
        self.norm = nn.LayerNorm(config.width, eps=1e-8)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, tokens_BKT: Tensor, positions: Tensor) -> Tensor:
        """`positions`: [T] or [B, K, T]."""
        return self.dropout(self.norm(self.words(tokens_BKT) + self.positions(positions)))


class OutputHead(nn.Module):
    """Vocabulary logits through the tied word table, with a bias of its own."""

    def __init__(self, table: nn.Embedding) -> None:
        super().__init__()
        self.weight = table.weight
        self.bias = nn.Parameter(torch.zeros(table.num_embeddings))

    def forward(self, hidden: Tensor) -> Tensor:
        return F.linear(hidden, self.weight, self.bias)


class TextDecoder(nn.Module):
    """Embedding, layers and head."""

    def __init__(self, config: DecoderConfig, vocab_size: int) -> None:
        super().__init__()
        self.embedding = TextEmbedding(config, vocab_size)
        self.layers = nn.ModuleList(_layers(config))
        self.head = OutputHead(self.embedding.words) if config.tied else nn.Linear(config.width, vocab_size)
        self.activation_checkpointing = False

    def forward(
        self,
        image_BID: Tensor | None,
        tokens_BKT: Tensor,
        rows: Tensor,
        cache: list[LayerCache] | None,
        placement: TextPlacement | None,
    ) -> Tensor:
        """Logits [len(rows), V] at `rows`, flat positions in [B*K*T]."""
        if placement is None and cache and cache[0].text[0].length:
            raise ValueError("tokens that continue a cache need a placement")
        positions, sight = _positions_and_sight(tokens_BKT, placement)
        text_BKTD = self.embedding(tokens_BKT, positions)
        for number, layer in enumerate(self.layers):
            past = cache[number] if cache else None
            if self.activation_checkpointing and self.training:
                image_BID, text_BKTD = checkpoint(
                    layer, image_BID, text_BKTD, sight, past, use_reentrant=False
                )
            else:
                image_BID, text_BKTD = layer(image_BID, text_BKTD, sight, past)
        return self.head(text_BKTD.flatten(0, 2)[rows])

    def new_cache(self) -> list[LayerCache]:
        return [LayerCache() for _ in self.layers]


def _layers(config: DecoderConfig) -> Iterator[DecoderLayer]:
    for number in range(config.layers):
        if config.attention == "cross":
            yield CrossLayer(config)
        else:
            yield JointLayer(config, is_last=number == config.layers - 1)


def _positions_and_sight(tokens_BKT: Tensor, placement: TextPlacement | None) -> tuple[Tensor, Sight]:
    """Positions of the rows, and what they see; whole texts by default, causally."""
    if placement is not None:
        return placement.positions, Sight(~placement.visible[:, :, None], placement.has_image)
    length, device = tokens_BKT.shape[-1], tokens_BKT.device
    future = torch.ones(length, length, dtype=torch.bool, device=device).triu(1) if length > 1 else None
    return torch.arange(length, device=device), Sight(future, None)
