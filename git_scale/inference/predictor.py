"""A model out of a checkpoint, ready for images of any kind, in batches on one device."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from git_scale.checkpoint.detect import open_checkpoint
from git_scale.checkpoint.opened_checkpoint import load_model, tokenizer_of
from git_scale.checkpoint.state import TRAINED
from git_scale.config import RunConfig
from git_scale.data.clips import Clip, ClipLike, prepare_clip
from git_scale.data.images import normalise
from git_scale.data.tokenizer import Tokenizer
from git_scale.errors import DataError, UserError
from git_scale.inference.generate import Decoding, GeneratedText, Prefixes, generate
from git_scale.inference.grouping import run_batched
from git_scale.inference.likelihood import TextToScore, log_likelihoods
from git_scale.inference.trie import Trie
from git_scale.models.git import GitModel

TEXTS = 64  # per forward pass: the logits are 64 x 10 tokens x 30522 words x 4 bytes = 78 MB


@dataclass
class Predictor:
    """Asks a model, with the tokenizer and the recipe that it was trained with."""

    model: GitModel
    tokenizer: Tokenizer
    run: RunConfig
    device: torch.device
    dtype: torch.dtype
    batch_size: int = 16
    """Images per forward pass, at most."""

    def prepare(self, image: ClipLike) -> Clip:
        """One image or clip as the model sees it. Raises DataError."""
        run = self.run
        return prepare_clip(image, run.model.frames, run.data, run.model.encoder.image_size)

    def generate(
        self, images: list[ClipLike], prefixes: Prefixes, decoding: Decoding, trie: Trie | None = None
    ) -> list[list[list[GeneratedText]]]:
        """Texts [image][prefix][n_best]. Raises DataError naming the image that cannot be used."""

        def work(clips: list[Clip], prefixes: Prefixes) -> list[list[list[GeneratedText]]]:
            pixels, end = self._pixels(clips), self.tokenizer.eos_id
            return generate(self.model, pixels, prefixes, end, decoding, trie)

        return run_batched(self._opener(images), prefixes, self.batch_size, TEXTS, work)

    def sample(
        self, images: list[ClipLike], prefix: list[int], decoding: Decoding, seed: int
    ) -> list[list[GeneratedText]]:
        """Texts [image][n_best], drawn from the seed for each image anew: in a batch they would depend on it."""

        def work(clips: list[Clip], prefixes: Prefixes) -> list[list[list[GeneratedText]]]:
            pixels, end = self._pixels(clips), self.tokenizer.eos_id
            generator = torch.Generator(self.device).manual_seed(seed)
            return generate(self.model, pixels, prefixes, end, decoding, generator=generator)

        found = run_batched(self._opener(images), [[prefix]] * len(images), 1, 1, work)
        return [texts for (texts,) in found]

    def log_likelihoods(self, images: list[ClipLike], texts: list[list[TextToScore]]) -> list[list[float]]:
        """[image][text], see git_scale/inference/likelihood.py. Raises DataError as `generate` does."""
        self._check_lengths(texts)

        def work(clips: list[Clip], texts: list[list[TextToScore]]) -> list[list[float]]:
            return log_likelihoods(self.model, self._pixels(clips), texts, self.tokenizer.eos_id)

        return run_batched(self._opener(images), texts, self.batch_size, TEXTS, work)

    def _check_lengths(self, texts: list[list[TextToScore]]) -> None:
        longest = max((len(given) + len(judged) for row in texts for given, judged in row), default=0)
        if longest > (positions := self.run.model.decoder.positions):
            raise UserError(f"a text of {longest} tokens, question included: the model reads {positions}")

    def _opener(self, images: list[ClipLike]) -> Callable[[int], Clip]:
        def prepare(number: int) -> Clip:
            try:
                return self.prepare(images[number])
            except DataError as error:
                raise DataError(f"image {number}: {error}") from None

        return prepare

    def _pixels(self, clips: list[Clip]) -> Tensor:
        """Normalised [B, F, 3, H, W] on the model's device."""
        pixels = torch.from_numpy(np.stack([clip.pixels for clip in clips]))
        return normalise(pixels.to(self.device), self.dtype)


def load_predictor(
    folder: Path,
    device: str | torch.device | None,
    dtype: torch.dtype,
    tokenizer_path: Path | None,
    weights: str = TRAINED,
) -> Predictor:
    """Raises CheckpointError when no model or no tokenizer of it is there, UserError for a missing device."""
    target = _usable(device)
    opened = open_checkpoint(folder, weights)
    tokenizer = tokenizer_of(opened, tokenizer_path)
    model = load_model(opened).to(target, dtype).eval().requires_grad_(False)
    return Predictor(model, tokenizer, opened.run, target, dtype)


def _usable(device: str | torch.device | None) -> torch.device:
    """Raises UserError for one that is not there, or calculates nothing."""
    try:
        target = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    except RuntimeError:
        raise UserError(f"device={device}: no device of torch; cpu, cuda and cuda:0 are some") from None
    if target.type == "cuda" and not torch.cuda.is_available():
        raise UserError(f"device={device}: torch finds no GPU here; use device=cpu")
    if target.type == "cuda" and (target.index or 0) >= torch.cuda.device_count():
        raise UserError(
            f"device={device}: torch finds {torch.cuda.device_count()} GPUs here, the first is cuda:0"
        )
    try:
        torch.zeros(1, device=target).item()
    except (RuntimeError, AssertionError, ImportError):
        raise UserError(f"device={device}: torch cannot calculate there; use device=cpu") from None
    return target
