"""A GIT small enough for float64, with weights large enough that every part of it shows in the logits."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from git_scale.config import DecoderConfig, EncoderConfig, ModelConfig
from git_scale.models.git import GitModel

VOCABULARY = 23
BuildModel = Callable[..., GitModel]
DrawInputs = Callable[..., tuple[Tensor, Tensor]]


def build_tiny_model(frames: int = 1, dropout: float = 0.0, layers: int = 3, seed: int = 0) -> GitModel:
    config = ModelConfig(
        encoder=EncoderConfig(
            name="vit_tiny_patch16_224",
            image_size=16,
            options={"patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 2, "proj_drop_rate": dropout},
        ),
        decoder=DecoderConfig(layers=layers, width=32, heads=4, ffn=48, positions=16, dropout=dropout),
        vocab_size=VOCABULARY,
        frames=frames,
    )
    torch.manual_seed(seed)
    model = GitModel(config).double()
    for name, parameter in model.named_parameters():
        # With GIT's own 0.02 attention is nearly uniform, and a wrong mask would hardly show.
        mean = 1.0 if "norm" in name and name.endswith("weight") else 0.0
        nn.init.normal_(parameter, mean, std=0.3)
    return model


@pytest.fixture
def tiny_model() -> BuildModel:
    return build_tiny_model


def draw_tiny_inputs(B: int = 2, F: int = 1, K: int = 1, T: int = 6) -> tuple[Tensor, Tensor]:
    torch.manual_seed(7)
    return torch.randn(B, F, 3, 16, 16, dtype=torch.float64), torch.randint(0, VOCABULARY, (B, K, T))


@pytest.fixture
def draw_inputs() -> DrawInputs:
    """Pictures [B, F, 3, 16, 16] and tokens [B, K, T] for it."""
    return draw_tiny_inputs


@pytest.fixture
def vocabulary() -> int:
    return VOCABULARY
