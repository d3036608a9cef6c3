"""What a written model is checked by before it is published: the same numbers out of it as out of its source."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from git_scale.checkpoint.opened_checkpoint import OpenedCheckpoint, load_encoder, load_model
from git_scale.config import ModelConfig
from git_scale.errors import CheckpointError

TOLERANCE = 1e-4  # of a logit, relative to the larger of 1 and itself: fp32 in another order of summation
PROBE_TOKENS = 8


@dataclass(frozen=True)
class ExportReport:
    """Says what was written, and how far it is from its source."""

    destination: Path
    tensors: int
    parameters: int
    dropped: dict[str, str]
    """Tensors of the source that were not taken, each with the reason."""
    max_abs_diff: float
    """Largest absolute difference of a logit on the probe (of a feature, for an image encoder alone)."""
    verified_with: str
    """The program that read the new folder back."""


def probe_inputs(model: ModelConfig) -> tuple[Tensor, Tensor]:
    """An image (or clip) of noise [1, F, 3, H, W] and a short text [1, 1, T]; always the same."""
    random = torch.Generator().manual_seed(0)
    side = model.encoder.image_size
    length = min(PROBE_TOKENS, model.decoder.positions)
    images = torch.randn(1, model.frames, 3, side, side, generator=random)
    return images, torch.randint(model.vocab_size, (1, 1, length), generator=random)


@torch.inference_mode()
def probe(opened: OpenedCheckpoint) -> Tensor:
    """Logits [T, V] of the probe; of an image encoder alone its features [1, I, C]."""
    images, tokens = probe_inputs(opened.run.model)
    if opened.holds_encoder_only:
        features: Tensor = load_encoder(opened).eval()(images[:, 0])
        return features
    logits: Tensor = load_model(opened).eval()(images, tokens, torch.arange(tokens.numel()))
    return logits


def probe_transformers(folder: Path, model: ModelConfig) -> Tensor:
    """Logits [T, V] of the probe by GitForCausalLM. Raises ImportError where transformers is missing."""
    from git_scale.models.encoders import declare_torchvision_operators

    declare_torchvision_operators()
    from transformers import GitForCausalLM

    images, tokens = probe_inputs(model)
    theirs = GitForCausalLM.from_pretrained(folder, local_files_only=True).float().eval()
    pixels = images if model.frames > 1 else images[:, 0]
    with torch.inference_mode():
        logits: Tensor = theirs(input_ids=tokens[0], pixel_values=pixels).logits
    return logits[0, -tokens.numel() :]


def transformers_version() -> str | None:
    try:
        import transformers
    except ImportError:
        return None
    return str(transformers.__version__)


def compare(source: Path, expected: Tensor, read_back: Callable[[], Tensor]) -> float:
    """The largest absolute difference. Raises CheckpointError when it is more than rounding."""
    found = read_back()
    difference = (found - expected).abs()
    relative = float((difference / expected.abs().clamp(min=1)).max())
    if not relative <= TOLERANCE:  # NaN too
        raise CheckpointError(
            f"{source}: what was written computes something else: a logit differs by {float(difference.max()):.2g};"
            " nothing was published"
        )
    return float(difference.max())
