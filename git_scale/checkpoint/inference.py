"""A trained model out of a checkpoint, ready to caption pictures on one device."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image

from git_scale.checkpoint import layout
from git_scale.checkpoint.weights import load_weights
from git_scale.config import RunConfig
from git_scale.data.images import normalise, resize_center_crop
from git_scale.data.tokenizer import Tokenizer, load_tokenizer
from git_scale.errors import CheckpointError
from git_scale.models.generate import generate_greedy
from git_scale.models.git import GitModel


@dataclass(frozen=True)
class Captioner:
    """A model with the tokenizer and the picture size that it was trained with."""

    model: GitModel
    tokenizer: Tokenizer
    run: RunConfig
    step: int

    def caption(self, images: list[Image.Image]) -> list[str]:
        """One caption per RGB picture."""
        size = self.run.model.encoder.image_size
        pixels = torch.stack([torch.from_numpy(resize_center_crop(image, size)) for image in images])
        device = next(self.model.parameters()).device
        texts = generate_greedy(
            self.model,
            normalise(pixels[:, None].to(device), torch.float32),
            self.tokenizer.bos_id,
            self.tokenizer.eos_id,
            self.run.eval.max_new_tokens,
        )
        return [self.tokenizer.decode(text) for text in texts]


def load_captioner(path: Path, device: torch.device) -> Captioner:
    """From a checkpoint folder, or the newest checkpoint of a run's folder. Raises CheckpointError."""
    checkpoint = layout.find_checkpoint(path)
    run = RunConfig.model_validate(layout.read_config(checkpoint))
    tokenizer = load_tokenizer(checkpoint / Path(run.data.tokenizer).name)
    if tokenizer.vocab_size != run.model.vocab_size:
        raise CheckpointError(
            f"{checkpoint}: its tokenizer has {tokenizer.vocab_size} pieces, its model {run.model.vocab_size}"
        )
    with torch.device("meta"):
        model = GitModel(run.model)
    model.load_state_dict(load_weights(checkpoint), assign=True)
    return Captioner(model.to(device).eval(), tokenizer, run, layout.read_progress(checkpoint).step)
