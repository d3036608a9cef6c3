"""Model FLOPs of training, without recomputation: those that utilisation (MFU) counts, in a plan and in the log."""

from __future__ import annotations

from git_scale.config import ModelConfig
from git_scale.data.batch import Batch
from git_scale.monitoring.flops import TRAIN_TO_FORWARD, decoder_forward_flops, encoder_forward_flops
from git_scale.planning.local_model import count_image_tokens, whole_model


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
        decoder = decoder_forward_flops(
            self._config.decoder,
            self._config.vocab_size,
            self._encoder.width,
            image_tokens=frames * self.image_tokens(height, width),
            texts=texts,
            text_tokens=text_tokens,
            target_tokens=target_tokens,
        )
        encoder = self._encoder_passes * encoder_forward_flops(self._encoder, height, width)
        return frames * encoder + TRAIN_TO_FORWARD * decoder

    def image_tokens(self, height: int, width: int) -> int:
        """Tokens per image; raises ConfigError when the encoder does not take images of this size."""
        return count_image_tokens(self._encoder, self._config.encoder.name, height, width)

    def _of_batch(self, batch: Batch) -> int:
        images, frames, _, height, width = batch.images.shape
        _, texts, text_tokens = batch.tokens.shape
        targets = round(batch.num_targets / images)
        return images * self.of_sample(frames, height, width, texts, text_tokens, targets)
