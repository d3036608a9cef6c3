"""FLOPs of a step from the shapes that really ran, for the utilisation in the log."""

from __future__ import annotations

import torch

from git_scale.config import ModelConfig
from git_scale.data.batch import Batch
from git_scale.errors import ConfigError
from git_scale.models.encoders import ImageEncoder
from git_scale.monitoring.flops import TRAIN_TO_FORWARD, decoder_forward_flops, encoder_forward_flops


class StepCosts:
    """Counts model FLOPs; the encoder is run on `meta` once per image size."""

    def __init__(self, config: ModelConfig, dp: int) -> None:
        self._config = config
        self._dp = dp
        with torch.device("meta"):
            self._encoder = ImageEncoder(config.encoder).eval()  # one picture is too few for a batch norm
        self._image_tokens: dict[int, int] = {}

    def train_flops(self, batches: list[Batch]) -> int:
        """Forward and backward of one step on all ranks, taking the others' texts to be as long as ours."""
        return self._dp * TRAIN_TO_FORWARD * sum(self._forward(batch) for batch in batches)

    def _forward(self, batch: Batch) -> int:
        images, frames, _, size, _ = batch.images.shape
        _, texts, text_tokens = batch.tokens.shape
        decoder = decoder_forward_flops(
            self._config.decoder,
            self._config.vocab_size,
            self._encoder.width,
            image_tokens=frames * self.image_tokens(size),
            texts=texts,
            text_tokens=text_tokens,
            target_tokens=round(batch.num_targets / images),
        )
        return images * (frames * encoder_forward_flops(self._encoder, size) + decoder)

    def image_tokens(self, size: int) -> int:
        """Tokens per picture; raises ConfigError when the encoder does not take pictures of this size."""
        if size not in self._image_tokens:
            self._image_tokens[size] = self._count_tokens(size)
        return self._image_tokens[size]

    def _count_tokens(self, size: int) -> int:
        try:
            with torch.no_grad():
                return int(self._encoder(torch.empty(1, 3, size, size, device="meta")).shape[1])
        except (AssertionError, RuntimeError, ValueError) as error:
            raise ConfigError(
                [
                    f"data.image_sizes: {self._config.encoder.name} does not take pictures of {size} x {size}"
                    f" ({error}); a ViT does with model.encoder.options.dynamic_img_size=true"
                ]
            ) from None
