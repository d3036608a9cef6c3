"""The text decoder: post-LN BERT blocks over an image stream and a text stream, without a mask tensor.

Image rows see all image rows; text row t sees all image rows and the text rows up to t. The image stream thus
never depends on the text, so that

- one pass of the image rows serves K texts (captions, questions, beams) of the same image;
- generation keeps the image keys and values of each layer and never runs the image rows again;
- beams are further text rows: a row stands where its TextPlacement says and sees its own ancestors only, so that no
  key or value is ever copied from beam to beam, and a prefix is stored once for all of them;
- in the last layer image rows need only keys and values: no query, no output projection, no FFN.

Shapes: B batch, I image tokens (all frames), K texts per image, T text tokens, S text tokens seen so far,
N heads, H head width, D width.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from git_scale.config import DecoderConfig

KeysValues = tuple[Tensor, Tensor]


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


class GrowingRows:
    """Keeps text rows [B, K, N, S, H] in memory that doubles when it is full: a further one copies no earlier one."""

    def __init__(self) -> None:
        self.length = 0
        self._memory: Tensor | None = None

    def append(self, new: Tensor) -> Tensor:
        """All rows so far, a view."""
        start, self.length = self.length, self.length + new.shape[3]
        memory = self._memory
        if memory is None or memory.shape[3] < self.length:
            grown = new.new_empty(*new.shape[:3], 2 * self.length, new.shape[4])
            if memory is not None:
                grown[..., :start, :] = memory[..., :start, :]
            self._memory = memory = grown
        memory[..., start : self.length, :] = new
        return memory[..., : self.length, :]


class LayerCache:
    """Keeps keys and values of one layer: image [B, N, I, H] and text [B, K, N, S, H]."""

    def __init__(self) -> None:
        self.image: KeysValues | None = None
        self.text = GrowingRows(), GrowingRows()

    def extend(self, image: KeysValues | None, text: KeysValues) -> tuple[KeysValues, KeysValues]:
        """Takes the image's at the first call and adds the text's; all that it holds then."""
        if image is not None:
            # Views into a linear layer's output would be copied anew by the matrix products of every token.
            self.image = image[0].contiguous(), image[1].contiguous()
        if self.image is None:
            raise ValueError("the first call of a generation needs the image stream")
        keys, values = self.text
        return self.image, (keys.append(text[0]), values.append(text[1]))


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
        hidden: Tensor | None,
    ) -> tuple[Tensor, Tensor | None]:
        """Values for the text rows [B, K, N, T, H] and, where they ask, the image rows [B, N, I, H]."""
        dropout = self.p if self.training else 0.0
        for_text = attend_text(text_q, image, text, hidden, dropout)
        if image_q is None:
            return for_text, None
        return for_text, F.scaled_dot_product_attention(image_q, *image, dropout_p=dropout)


class DecoderLayer(nn.Module):
    """One post-LN block on both streams: a single module call, so that ZeRO-3 gathers its weights once."""

    def __init__(self, config: DecoderConfig, is_last: bool) -> None:
        super().__init__()
        width = config.width
        self.is_last = is_last
        self.num_heads = config.heads
        self.head_width = width // config.heads
        self.attention = StreamAttention(config.dropout)
        self.query = nn.Linear(width, width)
        self.key_value = nn.Linear(width, 2 * width)
        self.out = nn.Linear(width, width)
        self.attention_norm = nn.LayerNorm(width, eps=1e-12)
        self.fc1 = nn.Linear(width, config.ffn)
        self.fc2 = nn.Linear(config.ffn, width)
        self.ffn_norm = nn.LayerNorm(width, eps=1e-12)
        self.hidden_dropout = nn.Dropout(config.dropout)

    def forward(
        self, image_BID: Tensor | None, text_BKTD: Tensor, hidden: Tensor | None, cache: LayerCache | None
    ) -> tuple[Tensor | None, Tensor]:
        """Both streams after this block; the image stream is None after the last block.

        `hidden`: see attend_text. The cache's image keys and values stand in for an image_BID of None.
        """
        image_kv = None if image_BID is None else self._split_keys_values(self.key_value(image_BID))
        text_kv = self._split_keys_values(self.key_value(text_BKTD))
        if cache is not None:
            image_kv, text_kv = cache.extend(image_kv, text_kv)
        if image_kv is None:
            raise ValueError("without the image stream a cache is needed")
        text_q = self._split_heads(self.query(text_BKTD))
        image_q = None if image_BID is None or self.is_last else self._split_heads(self.query(image_BID))
        for_text, for_image = self.attention(text_q, image_q, image_kv, text_kv, hidden)
        text_BKTD = self._finish(text_BKTD, self._merge_heads(for_text))
        if image_BID is None or for_image is None:
            return None, text_BKTD
        return self._finish(image_BID, self._merge_heads(for_image)), text_BKTD

    def _finish(self, stream: Tensor, attended: Tensor) -> Tensor:
        stream = self.attention_norm(stream + self.hidden_dropout(self.out(attended)))
        hidden = self.fc2(F.gelu(self.fc1(stream)))
        return self.ffn_norm(stream + self.hidden_dropout(hidden))

    def _split_heads(self, x: Tensor) -> Tensor:
        """[..., L, N*H] to [..., N, L, H]."""
        return x.unflatten(-1, (self.num_heads, self.head_width)).transpose(-2, -3)

    def _split_keys_values(self, x: Tensor) -> KeysValues:
        keys, values = x.chunk(2, dim=-1)
        return self._split_heads(keys), self._split_heads(values)

    def _merge_heads(self, x: Tensor) -> Tensor:
        return x.transpose(-2, -3).flatten(-2)


def attend_text(
    q_BKNTH: Tensor, image: KeysValues, text: KeysValues, hidden: Tensor | None, dropout: float
) -> Tensor:
    """Attention of text rows over [image keys; text keys so far].

    `hidden`, bool [T, S] or [B, K, 1, T, S], is True where a row may not see a text key; None: it sees all.

    The K texts share the image keys [B, N, I, H] without copying them: their rows are laid side by side for
    the image part. One softmax runs over both parts. The scores, K*T x (I+S) per head, are smaller than K
    copies of the image keys and values would be as long as T*N < 2*D (T=40, N=12 against D=768).
    """
    image_k, image_v = image
    text_k, text_v = text
    _, K, _, T, H = q_BKNTH.shape
    q_BKNTH = q_BKNTH / math.sqrt(H)
    q_BNMH = q_BKNTH.transpose(1, 2).flatten(2, 3)  # M = K*T
    image_scores = (q_BNMH @ image_k.transpose(-1, -2)).unflatten(2, (K, T)).transpose(1, 2)
    text_scores = q_BKNTH @ text_k.transpose(-1, -2)
    if hidden is not None:
        text_scores = text_scores.masked_fill(hidden, -math.inf)
    scores = torch.cat([image_scores, text_scores], dim=-1)
    # The softmax runs in at least fp32 as flash kernels do: bf16 has 8 bits of mantissa.
    precision = torch.promote_types(scores.dtype, torch.float32)
    weights = F.dropout(scores.softmax(-1, dtype=precision).to(scores.dtype), dropout, dropout > 0)
    image_w, text_w = weights.split([image_k.shape[2], text_k.shape[3]], dim=-1)
    from_image = image_w.transpose(1, 2).flatten(2, 3) @ image_v
    return from_image.unflatten(2, (K, T)).transpose(1, 2) + text_w @ text_v


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
    """Embedding, blocks and head."""

    def __init__(self, config: DecoderConfig, vocab_size: int) -> None:
        super().__init__()
        self.embedding = TextEmbedding(config, vocab_size)
        self.layers = nn.ModuleList(
            DecoderLayer(config, is_last=number == config.layers - 1) for number in range(config.layers)
        )
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
        positions, hidden = _positions_and_hidden(tokens_BKT, placement)
        text_BKTD = self.embedding(tokens_BKT, positions)
        for number, layer in enumerate(self.layers):
            past = cache[number] if cache else None
            if self.activation_checkpointing and self.training:
                image_BID, text_BKTD = checkpoint(
                    layer, image_BID, text_BKTD, hidden, past, use_reentrant=False
                )
            else:
                image_BID, text_BKTD = layer(image_BID, text_BKTD, hidden, past)
        return self.head(text_BKTD.flatten(0, 2)[rows])

    def new_cache(self) -> list[LayerCache]:
        return [LayerCache() for _ in self.layers]


def _positions_and_hidden(
    tokens_BKT: Tensor, placement: TextPlacement | None
) -> tuple[Tensor, Tensor | None]:
    """Positions of the rows, and which text keys are hidden from them; whole texts by default, causally."""
    if placement is not None:
        return placement.positions, ~placement.visible[:, :, None]
    length, device = tokens_BKT.shape[-1], tokens_BKT.device
    future = torch.ones(length, length, dtype=torch.bool, device=device).triu(1) if length > 1 else None
    return torch.arange(length, device=device), future
