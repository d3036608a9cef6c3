"""Model FLOPs against hand formulas and against torch's counter on plain modules."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from git_scale.config import DecoderConfig
from git_scale.models.build import build_encoder
from git_scale.planning.model_flops import decoder_forward_flops, encoder_pass
from git_scale.testing.tiny_encoders import tiny_encoder


def attend(queries: Tensor, keys: Tensor, values: Tensor, heads: int) -> Tensor:
    split = [rows.unflatten(-1, (heads, -1)).transpose(1, 2) for rows in (queries, keys, values)]
    return nn.functional.scaled_dot_product_attention(*split).transpose(1, 2).flatten(2)


class Block(nn.Module):
    def __init__(self, width: int, ffn: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q, self.k, self.v, self.o = (nn.Linear(width, width) for _ in range(4))
        self.up, self.down = nn.Linear(width, ffn), nn.Linear(ffn, width)

    def update(self, rows: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        rows = rows + self.o(attend(self.q(rows), keys, values, self.heads))
        return rows + self.down(self.up(rows).relu())

    def forward(self, rows: Tensor) -> Tensor:
        return self.update(rows, self.k(rows), self.v(rows))

    def forward_streams(self, image: Tensor, text: Tensor, is_last: bool) -> tuple[Tensor, Tensor]:
        """image 1 x P x D attends to itself, text K x T x D to the image and itself."""
        keys, values = self.k(image), self.v(image)
        shared = [rows.expand(len(text), -1, -1) for rows in (keys, values)]
        text_keys, text_values = (
            torch.cat([shared[0], self.k(text)], 1),
            torch.cat([shared[1], self.v(text)], 1),
        )
        text = self.update(text, text_keys, text_values)
        return (image if is_last else self.update(image, keys, values)), text


class CrossBlock(Block):
    def __init__(self, width: int, ffn: int, heads: int) -> None:
        super().__init__(width, ffn, heads)
        self.image_q, self.image_k, self.image_v, self.image_o = (nn.Linear(width, width) for _ in range(4))

    def forward_streams(self, image: Tensor, text: Tensor, is_last: bool) -> tuple[Tensor, Tensor]:
        """image 1 x P x D stays as it is, text K x T x D attends to itself, then to the image."""
        text = text + self.o(attend(self.q(text), self.k(text), self.v(text), self.heads))
        side_by_side = self.image_q(text).flatten(0, 1)[None]
        attended = attend(side_by_side, self.image_k(image), self.image_v(image), self.heads)
        text = text + self.image_o(attended).view_as(text)
        return image, text + self.down(self.up(text).relu())


BLOCKS = {"joint": Block, "cross": CrossBlock}


class PlainDecoder(nn.Module):
    """Two streams; the last layer needs only keys and values of the image; logits of `targets` rows."""

    def __init__(self, config: DecoderConfig, vocab_size: int, encoder_width: int, targets: int) -> None:
        super().__init__()
        self.project = nn.Linear(encoder_width, config.width)
        self.blocks = nn.ModuleList(
            BLOCKS[config.attention](config.width, config.ffn, config.heads) for _ in range(config.layers)
        )
        self.head = nn.Linear(config.width, vocab_size)
        self.targets = targets

    def forward(self, features: Tensor, text: Tensor) -> Tensor:
        image = self.project(features)
        for block in self.blocks:
            image, text = block.forward_streams(image, text, is_last=block is self.blocks[-1])
        return self.head(text.flatten(0, 1)[: self.targets])


class TinyViT(nn.Module):
    def __init__(self, width: int, layers: int) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, width, 8, stride=8)
        self.blocks = nn.ModuleList(Block(width, 4 * width, 2) for _ in range(layers))

    def forward(self, images: Tensor, draws: Tensor | None = None) -> Tensor:
        rows = self.patches(images).flatten(2).transpose(1, 2)
        for block in self.blocks:
            rows = block(rows)
        return rows


def test_a_vision_transformer_is_counted_with_its_attention() -> None:
    with torch.device("meta"):
        vit = TinyViT(width=16, layers=3)
    d, n = 16, 16
    patches = 2 * n * (3 * 8 * 8) * d
    dense, attention = n * (8 * d * d + 16 * d * d), 4 * n * n * d
    assert encoder_pass(vit, "vit", 32, 32) == (n, patches + 3 * (dense + attention))


def test_encoder_flops_are_cached_by_image_size() -> None:
    with torch.device("meta"):
        vit = TinyViT(width=16, layers=1)
    calls = []
    vit.register_forward_hook(lambda *_: calls.append(1))
    small, wide, large = (encoder_pass(vit, "vit", *size).flops for size in ((32, 32), (32, 64), (64, 64)))
    assert encoder_pass(vit, "vit", 32, 32).flops == small < wide < large
    assert len(calls) == 3
    assert 4 * small < large < 16 * small  # 4 x the rows: dense work grows 4-fold, attention 16-fold


@pytest.mark.parametrize("attention", BLOCKS)
@pytest.mark.parametrize(("layers", "texts"), [(1, 1), (3, 1), (3, 4)])
def test_decoder_formula_equals_the_counter(layers: int, texts: int, attention: str) -> None:
    config = DecoderConfig(layers=layers, width=24, heads=3, attention=attention, ffn=40)
    P, T, targets, V, C = 7, 5, 4, 50, 12
    with torch.device("meta"):
        decoder = PlainDecoder(config, V, C, targets)
        inputs = torch.empty(1, P, C), torch.empty(texts, T, config.width)
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        decoder(*inputs)
    assert decoder_forward_flops(config, V, C, P, texts, T, targets) == counter.get_total_flops()


def test_decoder_formula_by_hand() -> None:
    config = DecoderConfig(layers=2, width=8, heads=1, ffn=16)
    # d=8 f=16 C=10 P=3 K=2 T=4 V=20, 5 targets; dense row 8*64 + 4*8*16 = 1024
    project = 2 * 3 * 10 * 8
    image = 1024 * 3 + 4 * 9 * 8 + 4 * 3 * 64
    text = 2 * (1024 * 8 + 4 * 8 * 8 * (3 + 4))
    assert (
        decoder_forward_flops(config, 20, 10, 3, 2, 4, 5) == project + image + text + 2 * 5 * 8 * 20 == 26_176
    )


def test_cross_attention_by_hand() -> None:
    config = DecoderConfig(layers=2, width=8, heads=1, attention="cross", ffn=16)
    # as above; per layer image k and v 4*64 per token, text rows with another q and o, against 4 texts and 3 tokens
    project, head = 2 * 3 * 10 * 8, 2 * 5 * 8 * 20
    layer = 4 * 64 * 3 + (1024 + 4 * 64) * 8 + 4 * 8 * 8 * 4 + 4 * 8 * 8 * 3
    assert decoder_forward_flops(config, 20, 10, 3, 2, 4, 5) == project + 2 * layer + head == 27_680


def test_more_texts_leave_the_image_work_alone() -> None:
    def flops(texts: int) -> int:
        return decoder_forward_flops(DecoderConfig(), 30522, 768, 197, texts, 20, 20 * texts)

    assert flops(5) - flops(4) == flops(2) - flops(1)
    assert flops(5) < 5 * flops(1) / 2


@pytest.mark.parametrize("family", ["vision_transformer", "davit", "swin_transformer", "resnet", "cait"])
def test_it_counts_what_torchs_own_counter_counts(family: str) -> None:
    config = tiny_encoder(family)
    with torch.device("meta"):
        encoder = (
            build_encoder(config).eval().requires_grad_(False)
        )  # torch's cannot follow CaiT's parameters else
    picture = torch.empty(1, 3, config.image_size, config.image_size, device="meta")
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as theirs:
        encoder(picture)
    counted = encoder_pass(encoder, config.name, config.image_size, config.image_size)
    assert counted.flops == theirs.get_total_flops() > 0
