"""GIT (arXiv 2205.14100): an image encoder, a projection and a text decoder with one language-modelling loss."""

from __future__ import annotations

import functools
from collections.abc import Collection, Iterator

import torch
from torch import Tensor, nn

from git_scale.config import ModelConfig
from git_scale.models.cache import LayerCache
from git_scale.models.decoder import TextDecoder, TextPlacement
from git_scale.models.encoders import ImageEncoder
from git_scale.models.interface import Block, Stream, Tower
from git_scale.models.patch_drop import draws_of_frames


class TemporalEmbedding(nn.Module):
    """A learned vector per frame, zero at the start, added to the frame's features before the projection."""

    def __init__(self, frames: int, width: int) -> None:
        super().__init__()
        self.frames = nn.Parameter(torch.zeros(frames, width))

    def forward(self, features_BFIC: Tensor) -> Tensor:
        return features_BFIC + self.frames[: features_BFIC.shape[1], None]


class GitModel(nn.Module):
    """Logits for texts about images. Plain torch: it does not know whether it runs in parallel.

    Shapes: B batch, F frames, I image tokens of all frames, K texts per image, T text tokens, V vocabulary.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.vocab_size = config.vocab_size
        self.max_positions = config.decoder.positions
        self.encoder = ImageEncoder(config.encoder)
        self.temporal = TemporalEmbedding(config.frames, self.encoder.width) if config.frames > 1 else None
        self.projection = nn.Sequential(
            nn.Linear(self.encoder.width, config.decoder.width), nn.LayerNorm(config.decoder.width)
        )
        self.decoder = TextDecoder(config.decoder, config.vocab_size)
        for part in (self.projection, self.decoder):
            part.apply(functools.partial(_initialise, std=config.decoder.init_std))

    def forward(
        self,
        images_BFCHW: Tensor | None,
        tokens_BKT: Tensor,
        rows: Tensor,
        placement: TextPlacement | None = None,
        draws_B: Tensor | None = None,
        cache: list[LayerCache] | None = None,
    ) -> Tensor:
        """Logits [len(rows), V] of the token after each position in `rows`, flat positions in [B*K*T].

        Only the rows asked for meet the vocabulary: the target positions in training, the last ones in
        generation. `placement` says where tokens stand and which of the tokens so far they see, where they are not
        whole texts that each see what is before. `draws_B`, int64 [B], are numbers by which some patches of each
        image are left out (models/patch_drop.py); None: all are seen. After a first call with a cache
        (`new_cache()`), images are None and tokens are the next ones.
        """
        image_BID = None if images_BFCHW is None else self.encode(images_BFCHW, draws_B)
        return self.decoder(image_BID, tokens_BKT, rows, cache, placement)

    def encode(self, images_BFCHW: Tensor, draws_B: Tensor | None = None) -> Tensor:
        """Projected image tokens [B, F*I, D]."""
        frames = images_BFCHW.shape[1]
        draws = None if draws_B is None else draws_of_frames(draws_B, frames)
        features_BFIC = self.encoder(images_BFCHW.flatten(0, 1), draws).unflatten(0, (-1, frames))
        if self.temporal is not None:
            features_BFIC = self.temporal(features_BFIC)
        return self.projection(features_BFIC.flatten(1, 2))

    def towers(self) -> dict[str, Tower]:
        """Frames' embeddings and the projection learn with the decoder: they begin at random, as it does."""
        return {
            "encoder": Tower(("encoder",), self.encoder),
            "decoder": Tower(("temporal", "projection", "decoder"), self.decoder),
        }

    def blocks(self) -> Iterator[Block]:
        yield from (Block(block, sizes_vary=False) for block in self.encoder.blocks())
        yield from (Block(layer, sizes_vary=True) for layer in self.decoder.layers)

    def stream(self, split: Collection[str]) -> Stream:
        """The rows of a loss are counted over all images, so that it ends before the head; a decoder that is whole
        sees all images on every rank."""
        before = ("encoder", "temporal", "projection")
        if "decoder" not in split:
            return Stream(before, (self.encoder,), (), (self.projection,))
        words, last = self.decoder.embedding.words, self.decoder.layers[-1]
        return Stream((*before, "decoder"), (self.encoder,), (words,), (last,))

    def new_cache(self) -> list[LayerCache]:
        return self.decoder.new_cache()

    def set_activation_checkpointing(self, enable: bool) -> None:
        self.encoder.set_activation_checkpointing(enable)
        self.decoder.activation_checkpointing = enable


def count_parameters(module: nn.Module) -> int:
    """Unique parameters: the tied word table counts once."""
    return sum(parameter.numel() for parameter in module.parameters())


def _initialise(module: nn.Module, std: float) -> None:
    """Weights N(0, std) and biases zero as in BERT; norms keep torch's ones and zeros."""
    if isinstance(module, nn.Linear | nn.Embedding):
        nn.init.normal_(module.weight, std=std)
    if isinstance(module, nn.Linear):
        nn.init.zeros_(module.bias)
