"""The layers of a decoder with cross-attention (model.decoder.attention=cross): text sees text, then image.

Each layer is BERT's as a decoder: self-attention of the text rows, cross-attention from them to the projected image
tokens, feed-forward, with a norm behind each residual sum. No layer updates the image tokens; each has keys and
values of its own for them, which a generation computes once. GIT's paper (arXiv 2205.14100) compares the two:
cross-attention was better on small data, joint attention with large-scale pretraining.

Shapes: B batch, I image tokens (all frames), K texts per image, T text tokens, S text tokens seen so far,
N heads, H head width, D width.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from git_scale.config import DecoderConfig
from git_scale.models.cache import KeysValues, LayerCache, with_past
from git_scale.models.decoder_layer import EPS, DecoderLayer, Sight, of_all


class HeadsAttention(nn.Module):
    """Attention over some heads, with its dropout and no weights."""

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def forward(self, query: Tensor, keys_values: KeysValues, visible: Tensor | None) -> Tensor:
        """`visible`, bool, is True where a query sees a key; None: each sees all."""
        return F.scaled_dot_product_attention(
            query, *keys_values, attn_mask=visible, dropout_p=self.p if self.training else 0.0
        )


class CrossLayer(DecoderLayer):
    """One layer: the weights that every layer has are those of the text, `cross_*` lead to the image."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__(config)
        width = config.width
        self.attention = HeadsAttention(config.dropout)
        self.cross_attention = HeadsAttention(config.dropout)
        self.cross_query = nn.Linear(width, width)
        self.cross_key_value = nn.Linear(width, 2 * width)
        self.cross_out = nn.Linear(width, width)
        self.cross_norm = nn.LayerNorm(width, eps=EPS)

    def forward(
        self, image_BID: Tensor | None, text_BKTD: Tensor, sight: Sight, cache: LayerCache | None
    ) -> tuple[Tensor | None, Tensor]:
        """The image tokens as they came, and the text rows after this layer.

        The cache's image keys and values stand in for an image_BID of None.
        """
        image_kv = None if image_BID is None else self._split_keys_values(self.cross_key_value(image_BID))
        text_kv = self._split_keys_values(self.key_value(text_BKTD))
        image_kv, text_kv = with_past(image_kv, text_kv, cache)
        text_BKTD = self._see_text(text_BKTD, text_kv, sight.hidden)
        text_BKTD = self._see_image(text_BKTD, image_kv, sight.has_image)
        return image_BID, self._add_feed_forward(text_BKTD)

    def _see_text(self, text_BKTD: Tensor, text_kv: KeysValues, hidden: Tensor | None) -> Tensor:
        """Text by text: [B*K, N, T, H] against keys [B*K, N, S, H]."""
        query_BKNTH = self._split_heads(self.query(text_BKTD))
        keys_values = text_kv[0].flatten(0, 1), text_kv[1].flatten(0, 1)
        if hidden is not None and hidden.ndim > 2:
            hidden = hidden.flatten(0, 1)
        visible = None if hidden is None else ~hidden
        attended = self.attention(query_BKNTH.flatten(0, 1), keys_values, visible)
        return self._add_attended(text_BKTD, attended.unflatten(0, query_BKNTH.shape[:2]))

    def _see_image(self, text_BKTD: Tensor, image_kv: KeysValues, has_image: Tensor | None) -> Tensor:
        """The K texts share keys and values [B, N, I, H] without a copy: their rows are laid side by side.

        What the heads give to texts without an image is zero.
        """
        query_BKNTH = self._split_heads(self.cross_query(text_BKTD))
        B, K, _, T, _ = query_BKNTH.shape
        asking = query_BKNTH[: len(image_kv[0])].transpose(1, 2).flatten(2, 3)
        attended = self._merge_heads(self.cross_attention(asking, image_kv, None)).unflatten(1, (K, T))
        if has_image is not None:
            attended = of_all(attended, B).masked_fill(~has_image[:, None, None, None], 0.0)
        return self.cross_norm(text_BKTD + self.hidden_dropout(self.cross_out(attended)))
