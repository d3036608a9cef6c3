"""Model FLOPs of training, those that utilisation (MFU) counts, in a plan and in the log: 2 per multiply-add.

What activation checkpointing computes again does not count; causal attention counts as full attention, as is the
custom of this field. The decoder is counted by formula (it runs on ragged shapes every step), the encoder by
running it on `meta`. Norms, activations and softmax are left out: together they are below one percent.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from git_scale.config import DecoderConfig, ModelConfig
from git_scale.data.batch import Batch
from git_scale.errors import ConfigError
from git_scale.planning.local_model import whole_model
from git_scale.planning.meta import CachedOperations

TRAIN_TO_FORWARD = 3
"""Training costs three forwards: each product once forward and twice backward (inputs, weights)."""


def decoder_forward_flops(
    decoder: DecoderConfig,
    vocab_size: int,
    encoder_width: int,
    image_tokens: int,
    texts: int,
    text_tokens: int,
    target_tokens: int,
) -> int:
    """FLOPs of the projection, the decoder and the word head for one image with `texts` texts.

    image_tokens: rows of the image stream, summed over frames. text_tokens: padded length of each text.
    target_tokens: positions at which logits are computed, summed over the image's texts.
    """
    width, image, text = decoder.width, image_tokens, texts * text_tokens
    dense = 8 * width**2 + 4 * width * decoder.ffn  # per row: q, k, v, o projections and the two of the ffn
    project = 2 * image * encoder_width * width
    image_layer = dense * image + 4 * image**2 * width
    image_keys = 4 * width**2 * image  # all that a last layer, or cross-attention, needs of the image rows
    text_layer = dense * text + 4 * width * text * (image + text_tokens)
    head = 2 * target_tokens * width * vocab_size
    if decoder.attention == "cross":  # whose text rows have a second pair of q and o projections
        layer = text_layer + 4 * width**2 * text + image_keys
        return project + decoder.layers * layer + head
    return project + (decoder.layers - 1) * image_layer + image_keys + decoder.layers * text_layer + head


class EncoderPass(NamedTuple):
    """One image through an encoder."""

    tokens: int
    flops: int
    """Of the forward pass."""


@lru_cache(maxsize=256)  # one entry per image size of multi-scale training or of data.resize=fit
def encoder_pass(encoder: nn.Module, name: str, height: int, width: int) -> EncoderPass:
    """In training: without the patches that it leaves out. `encoder` is on meta.

    Raises ConfigError when it does not take images of this size.
    """
    picture = torch.empty(1, 3, height, width, device="meta")
    draws = torch.empty(1, dtype=torch.long, device="meta")
    try:
        # Fused attentions differ by device; of the plain form the two products are seen everywhere.
        with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), CachedOperations() as operations:
            tokens = encoder(picture, draws).shape[1]
    except (AssertionError, RuntimeError, ValueError) as error:
        raise ConfigError(
            [
                f"{name} does not take images of {height} x {width} ({error}); a ViT does with"
                " model.encoder.options.dynamic_img_size=true"
            ]
        ) from None
    return EncoderPass(tokens, operations.flops)


class ModelFlops:
    """Counts FLOPs from the shapes that run; the encoder is run on `meta` once per image size."""

    def __init__(self, config: ModelConfig, dp: int = 1, encoder_learns: bool = True) -> None:
        self._config = config
        self._dp = dp
        self._encoder_passes = TRAIN_TO_FORWARD if encoder_learns else 1
        self._encoder = whole_model(config).encoder

    def of_step(self, batches: list[Batch]) -> int:
        """A step of these micro-batches takes so many on all ranks, if the others' texts are as long as ours."""
        return self._dp * sum(self._of_batch(batch) for batch in batches)

    def of_sample(
        self, frames: int, height: int, width: int, texts: int, text_tokens: int, target_tokens: int
    ) -> int:
        """`text_tokens` are those of each text, `target_tokens` those of all together."""
        encoder = self.encoder_pass(height, width)
        decoder = self.of_text(texts, text_tokens, target_tokens, image_tokens=frames * encoder.tokens)
        return frames * self._encoder_passes * encoder.flops + decoder

    def of_text(self, texts: int, text_tokens: int, target_tokens: int, image_tokens: int = 0) -> int:
        """The decoder's part: all of it, for a sample without an image."""
        return TRAIN_TO_FORWARD * decoder_forward_flops(
            self._config.decoder,
            self._config.vocab_size,
            self._encoder.width,
            image_tokens=image_tokens,
            texts=texts,
            text_tokens=text_tokens,
            target_tokens=target_tokens,
        )

    def encoder_pass(self, height: int, width: int) -> EncoderPass:
        """Raises ConfigError when the encoder does not take images of this size."""
        return encoder_pass(self._encoder, self._config.encoder.name, height, width)

    def _of_batch(self, batch: Batch) -> int:
        images, frames, _, height, width = batch.images.shape
        samples, texts, text_tokens = batch.tokens.shape
        targets = round(batch.num_targets / samples)
        with_image = images * self.of_sample(frames, height, width, texts, text_tokens, targets)
        return with_image + (samples - images) * self.of_text(texts, text_tokens, targets)
