"""FLOPs of a step from the shapes that really ran, for the utilisation in the log."""

from __future__ import annotations

import torch

from git_scale.config import ModelConfig
from git_scale.data.batch import Batch
from git_scale.models.build import build_encoder
from git_scale.monitoring.flops import TRAIN_TO_FORWARD, decoder_forward_flops, encoder_forward_flops
from git_scale.planning.local_model import count_image_tokens


class StepCosts:
    """Counts model FLOPs; the encoder is run on `meta` once per image size."""

    def __init__(self, config: ModelConfig, dp: int, encoder_learns: bool = True) -> None:
        self._config = config
        self._dp = dp
        self._encoder_passes = TRAIN_TO_FORWARD if encoder_learns else 1
        with torch.device("meta"):
            self._encoder = build_encoder(config.encoder).eval()  # one picture is too few for a batch norm
        self._image_tokens: dict[tuple[int, int], int] = {}

    def train_flops(self, batches: list[Batch]) -> int:
        """Forward and backward of one step on all ranks, taking the others' texts to be as long as ours."""
        return self._dp * sum(self._train(batch) for batch in batches)

    def _train(self, batch: Batch) -> int:
        images, frames, _, height, width = batch.images.shape
        _, texts, text_tokens = batch.tokens.shape
        decoder = decoder_forward_flops(
            self._config.decoder,
            self._config.vocab_size,
            self._encoder.width,
            image_tokens=frames * self.image_tokens(height, width),
            texts=texts,
            text_tokens=text_tokens,
            target_tokens=round(batch.num_targets / images),
        )
        encoder = self._encoder_passes * encoder_forward_flops(self._encoder, height, width)
        return images * (frames * encoder + TRAIN_TO_FORWARD * decoder)

    def image_tokens(self, height: int, width: int) -> int:
        """Tokens per picture; raises ConfigError when the encoder does not take pictures of this size."""
        if (height, width) not in self._image_tokens:
            name = self._config.encoder.name
            self._image_tokens[height, width] = count_image_tokens(self._encoder, name, height, width)
        return self._image_tokens[height, width]
