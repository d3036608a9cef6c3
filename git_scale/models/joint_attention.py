"""The layers of GIT's own decoder (model.decoder.attention=joint): one attention over [image; text], without a mask.

Image rows see all image rows; text row t sees all image rows and the text rows up to t. The image stream thus
never depends on the text, so that

- one pass of the image rows serves K texts (captions, questions, beams) of the same image;
- generation keeps the image keys and values of each layer and never runs the image rows again;
- in the last layer image rows need only keys and values: no query, no output projection, no FFN.

Shapes: B batch, I image tokens (all frames), K texts per image, T text tokens, S text tokens seen so far,
N heads, H head width, D width.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from git_scale.config import DecoderConfig
from git_scale.models.cache import KeysValues, LayerCache, with_past
from git_scale.models.decoder_layer import DecoderLayer, Sight, of_all


class StreamAttention(nn.Module):
    """Attention of both streams over some heads, with its dropout and no weights."""

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def forward(
        self,
        text_q: Tensor,
        image_q: Tensor | None,
        image: KeysValues,
        text: KeysValues,
        sight: Sight,
    ) -> tuple[Tensor, Tensor | None]:
        """Values for the text rows [B, K, N, T, H] and, where they ask, the image rows [B, N, I, H]."""
        dropout = self.p if self.training else 0.0
        for_text = attend_text(text_q, image, text, sight, dropout)
        if image_q is None:
            return for_text, None
        return for_text, F.scaled_dot_product_attention(image_q, *image, dropout_p=dropout)


class JointLayer(DecoderLayer):
    """One layer, of the same weights for both streams."""

    def __init__(self, config: DecoderConfig, is_last: bool) -> None:
        super().__init__(config)
        self.is_last = is_last
        self.attention = StreamAttention(config.dropout)

    def forward(
        self, image_BID: Tensor | None, text_BKTD: Tensor, sight: Sight, cache: LayerCache | None
    ) -> tuple[Tensor | None, Tensor]:
        """Both streams after this layer; the image stream is None after the last one.

        The cache's image keys and values stand in for an image_BID of None.
        """
        image_kv = None if image_BID is None else self._split_keys_values(self.key_value(image_BID))
        text_kv = self._split_keys_values(self.key_value(text_BKTD))
        image_kv, text_kv = with_past(image_kv, text_kv, cache)
        text_q = self._split_heads(self.query(text_BKTD))
        image_q = None if image_BID is None or self.is_last else self._split_heads(self.query(image_BID))
        for_text, for_image = self.attention(text_q, image_q, image_kv, text_kv, sight)
        text_BKTD = self._finish(text_BKTD, for_text)
        if image_BID is None or for_image is None:
            return None, text_BKTD
        return self._finish(image_BID, for_image), text_BKTD

    def _finish(self, stream: Tensor, attended: Tensor) -> Tensor:
        return self._add_feed_forward(self._add_attended(stream, attended))


def attend_text(q_BKNTH: Tensor, image: KeysValues, text: KeysValues, sight: Sight, dropout: float) -> Tensor:
    """Attention of text rows over [image keys; text keys so far].

    The K texts share the image keys [B, N, I, H] without copying them: their rows are laid side by side for
    the image part. One softmax runs over both parts. The scores, K*T x (I+S) per head, are smaller than K
    copies of the image keys and values would be as long as T*N < 2*D (T=40, N=12 against D=768).
    """
    image_k, image_v = image
    text_k, text_v = text
    B, K, _, T, H = q_BKNTH.shape
    q_BKNTH = q_BKNTH / math.sqrt(H)
    q_BNMH = q_BKNTH[: len(image_k)].transpose(1, 2).flatten(2, 3)  # M = K*T
    image_scores = (q_BNMH @ image_k.transpose(-1, -2)).unflatten(2, (K, T)).transpose(1, 2)
    if sight.has_image is not None:
        image_scores = of_all(image_scores, B).masked_fill(
            ~sight.has_image[:, None, None, None, None], -math.inf
        )
    text_scores = q_BKNTH @ text_k.transpose(-1, -2)
    if sight.hidden is not None:
        text_scores = text_scores.masked_fill(sight.hidden, -math.inf)
    scores = torch.cat([image_scores, text_scores], dim=-1)
    # The softmax runs in at least fp32 as flash kernels do: bf16 has 8 bits of mantissa.
    precision = torch.promote_types(scores.dtype, torch.float32)
    weights = F.dropout(scores.softmax(-1, dtype=precision).to(scores.dtype), dropout, dropout > 0)
    image_w, text_w = weights.split([image_k.shape[2], text_k.shape[3]], dim=-1)
    from_image = image_w[: len(image_k)].transpose(1, 2).flatten(2, 3) @ image_v
    return of_all(from_image.unflatten(2, (K, T)).transpose(1, 2), B) + text_w @ text_v
