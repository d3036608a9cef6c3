"""What the layers of both kinds of text decoder are made of: BERT's, with the norms behind the residual sums."""

from __future__ import annotations

from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor, nn

from git_scale.config import DecoderConfig
from git_scale.models.cache import KeysValues

EPS = 1e-12


class Sight(NamedTuple):
    """Says what text rows see."""

    hidden: Tensor | None
    """bool [T, S] or [B, K, 1, T, S]: True where a row may not see a text key. None: it sees all."""
    has_image: Tensor | None
    """bool [B]: False where the texts see no image. None: all see theirs.

    The image tokens may be of fewer samples: of the first ones, and the others have none.
    """


def of_all(rows: Tensor, samples: int) -> Tensor:
    """Rows of the first samples, with zeros for those that have no image."""
    missing = samples - len(rows)
    return F.pad(rows, (0, 0) * (rows.ndim - 1) + (0, missing)) if missing else rows


class DecoderLayer(nn.Module):
    """Holds the weights of an attention and of a feed-forward layer; a subclass says which rows see which.

    A subclass is one module call on image and text rows, so that ZeRO-3 gathers its weights once.
    """

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        width = config.width
        self.num_heads = config.heads
        self.head_width = width // config.heads
        self.query = nn.Linear(width, width)
        self.key_value = nn.Linear(width, 2 * width)
        self.out = nn.Linear(width, width)
        self.attention_norm = nn.LayerNorm(width, eps=EPS)
        self.fc1 = nn.Linear(width, config.ffn)
        self.fc2 = nn.Linear(config.ffn, width)
        self.ffn_norm = nn.LayerNorm(width, eps=EPS)
        self.hidden_dropout = nn.Dropout(config.dropout)

    def _add_attended(self, rows: Tensor, attended: Tensor) -> Tensor:
        """`attended`: [..., N, L, H], what the heads give."""
        return self.attention_norm(rows + self.hidden_dropout(self.out(self._merge_heads(attended))))

    def _add_feed_forward(self, rows: Tensor) -> Tensor:
        hidden = self.fc2(F.gelu(self.fc1(rows)))
        return self.ffn_norm(rows + self.hidden_dropout(hidden))

    def _split_heads(self, x: Tensor) -> Tensor:
        """[..., L, N*H] to [..., N, L, H]."""
        return x.unflatten(-1, (self.num_heads, self.head_width)).transpose(-2, -3)

    def _split_keys_values(self, x: Tensor) -> KeysValues:
        keys, values = x.chunk(2, dim=-1)
        return self._split_heads(keys), self._split_heads(values)

    def _merge_heads(self, x: Tensor) -> Tensor:
        return x.transpose(-2, -3).flatten(-2)
