"""A GIT small enough for float64, with weights large enough that every part of it shows in the logits."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor, nn

from git_scale.config import DecoderConfig, EncoderConfig, ModelConfig
from git_scale.models.build import build_model
from git_scale.models.cache import LayerCache
from git_scale.models.decoder import TextPlacement
from git_scale.models.git import GitModel

VOCABULARY = 23
BuildModel = Callable[..., GitModel]
DrawInputs = Callable[..., tuple[Tensor, Tensor]]
Texts = list[tuple[int, ...]]


def build_tiny_model(
    frames: int = 1,
    dropout: float = 0.0,
    layers: int = 3,
    seed: int = 0,
    tied: bool = True,
    attention: str = "joint",
) -> GitModel:
    config = ModelConfig(
        encoder=EncoderConfig(
            name="vit_tiny_patch16_224",
            image_size=16,
            options={"patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 2, "proj_drop_rate": dropout},
        ),
        decoder=DecoderConfig(
            layers=layers,
            width=32,
            heads=4,
            attention=attention,
            ffn=48,
            positions=16,
            dropout=dropout,
            tied=tied,
        ),
        vocab_size=VOCABULARY,
        frames=frames,
    )
    torch.manual_seed(seed)
    model = build_model(config).double()
    for name, parameter in model.named_parameters():
        # With GIT's own 0.02 attention is nearly uniform, and a wrong mask would hardly show.
        mean = 1.0 if "norm" in name and name.endswith("weight") else 0.0
        nn.init.normal_(parameter, mean, std=0.3)
    return model


@pytest.fixture(params=["joint", "cross"])
def tiny_model(request: pytest.FixtureRequest) -> BuildModel:
    """Of both kinds of decoder; parametrize(..., indirect=True) asks for one of them."""
    return partial(build_tiny_model, attention=request.param)


def draw_tiny_inputs(B: int = 2, F: int = 1, K: int = 1, T: int = 6) -> tuple[Tensor, Tensor]:
    torch.manual_seed(7)
    return torch.randn(B, F, 3, 16, 16, dtype=torch.float64), torch.randint(0, VOCABULARY, (B, K, T))


@pytest.fixture
def draw_inputs() -> DrawInputs:
    """Images [B, F, 3, 16, 16] and tokens [B, K, T] for it."""
    return draw_tiny_inputs


@pytest.fixture
def vocabulary() -> int:
    return VOCABULARY


class Oracle:
    """A model whose logits are a table: random for each image (its first pixel) and all that a row sees.

    It knows a row's text only through what the placements let the row see, and checks the positions by that.
    """

    max_positions = 64

    def __init__(self, vocab_size: int, seed: int = 0, spread: float = 1.0) -> None:
        self.vocab_size = vocab_size
        self._seed = seed
        self._spread = spread
        self._table: dict[tuple[int, ...], Tensor] = {}
        self.texts: list[Texts] = []  # of each call, what its rows saw
        self.saw_images: list[bool] = []

    def logits(self, image: int, text: tuple[int, ...]) -> Tensor:
        if (image, *text) not in self._table:
            noise = torch.Generator().manual_seed(hash((self._seed, image, *text)) % 2**63)
            drawn = torch.randn(self.vocab_size, generator=noise, dtype=torch.float64)
            self._table[image, *text] = self._spread * drawn
        return self._table[image, *text]

    def __call__(
        self,
        images: Tensor | None,
        tokens: Tensor,
        rows: Tensor,
        placement: TextPlacement | None = None,
        draws: Tensor | None = None,
        cache: list[LayerCache] | None = None,
    ) -> Tensor:
        self.saw_images.append(images is not None)
        if images is not None:
            self._images = images[:, 0, 0, 0, 0].long().tolist()
            self._spoken = tokens[:, :, :0]
        self._spoken = torch.cat([self._spoken, tokens], dim=2)
        K, T = tokens.shape[1:]
        places = [(row // (K * T), row // T % K, row % T) for row in rows.tolist()]
        texts = [self._text(place, placement) for place in places]
        self.texts.append(texts)
        pictures = [self._images[b] for b, _, _ in places]
        return torch.stack([self.logits(*pair) for pair in zip(pictures, texts, strict=True)])

    def _text(self, place: tuple[int, int, int], placement: TextPlacement | None) -> tuple[int, ...]:
        b, k, t = place
        if placement is None:
            return tuple(self._spoken[b, k, : t + 1].tolist())
        text = self._spoken[b, k][placement.visible[b, k, t]].tolist()
        assert placement.positions[b, k, t] == len(text) - 1
        return tuple(text)

    def new_cache(self) -> list[LayerCache]:
        return []


@pytest.fixture
def make_oracle() -> type[Oracle]:
    return Oracle


@pytest.fixture
def number_images() -> Callable[[int], Tensor]:
    """Images [B, 1, 3, 8, 8] that an Oracle knows as 0..B-1."""
    return lambda count: torch.arange(count).view(-1, 1, 1, 1, 1).expand(-1, 1, 3, 8, 8).float()
