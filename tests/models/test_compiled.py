"""Compiled blocks: the same numbers, whole graphs, in training only. By a back end that compiles nothing further."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend

from git_scale.config import DecoderConfig, EncoderConfig, ModelConfig
from git_scale.models.build import build_model
from git_scale.models.compiled import compile_blocks
from git_scale.models.git import GitModel

ENCODERS: dict[str, dict[str, Any]] = {
    "vit_tiny_patch16_224": {"embed_dim": 16, "depth": 3, "num_heads": 2},
    "swin_tiny_patch4_window7_224": {
        "embed_dim": 8,
        "depths": (2, 2),
        "num_heads": (1, 2),
        "window_size": 4,
    },
    "davit_tiny": {"depths": (1, 2), "embed_dims": (8, 16), "num_heads": (1, 2)},
}
GRAPHS = {"vit_tiny_patch16_224": 1, "swin_tiny_patch4_window7_224": 4, "davit_tiny": 2}


def a_model(name: str, attention: str = "joint") -> GitModel:
    torch.manual_seed(0)
    encoder = EncoderConfig(name=name, image_size=64, options=ENCODERS[name])
    decoder = DecoderConfig(
        layers=3, width=16, heads=2, attention=attention, ffn=32, positions=16, dropout=0.0
    )
    return build_model(ModelConfig(encoder=encoder, decoder=decoder, vocab_size=23)).double()


def a_pass(model: GitModel, length: int = 5) -> tuple[Tensor, list[Tensor]]:
    torch.manual_seed(1)
    images = torch.randn(2, 1, 3, 64, 64, dtype=torch.float64)
    tokens = torch.randint(23, (2, 2, length))
    logits = model(images, tokens, torch.arange(tokens.numel()))
    model.zero_grad()
    logits.square().mean().backward()
    return logits.detach(), [p.grad.clone() for p in model.parameters() if p.grad is not None]


@pytest.fixture(autouse=True)
def _forget() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.mark.parametrize(
    ("name", "checkpointing"), [*((name, False) for name in ENCODERS), ("davit_tiny", True)]
)
def test_compiled_blocks_compute_the_same(name: str, checkpointing: bool) -> None:
    model = a_model(name).train()
    model.set_activation_checkpointing(checkpointing)
    plain = a_pass(model)
    counter = CompileCounterWithBackend("eager")
    compile_blocks(model, backend=counter)
    torch.testing.assert_close(a_pass(model), plain, rtol=1e-10, atol=1e-12)
    # Whole graphs, shared by the blocks of one shape; the decoder's last layer is one of its own.
    assert counter.frame_count == GRAPHS[name] + 2
    assert not torch._dynamo.utils.counters["graph_break"]


def test_layers_of_cross_attention_share_one_graph() -> None:
    name = "vit_tiny_patch16_224"
    model = a_model(name, attention="cross").train()
    plain = a_pass(model)
    counter = CompileCounterWithBackend("eager")
    compile_blocks(model, backend=counter)
    torch.testing.assert_close(a_pass(model), plain, rtol=1e-10, atol=1e-12)
    assert counter.frame_count == GRAPHS[name] + 1
    assert not torch._dynamo.utils.counters["graph_break"]


def test_text_lengths_share_their_graphs() -> None:
    model = a_model("vit_tiny_patch16_224").train()
    expected = {length: a_pass(model, length) for length in (5, 6, 7)}
    counter = CompileCounterWithBackend("eager")
    compile_blocks(model, backend=counter)
    for length, values in expected.items():
        torch.testing.assert_close(a_pass(model, length), values, rtol=1e-10, atol=1e-12)
    assert (
        counter.frame_count == 1 + 2 * 2
    )  # of the decoder's two kinds of layers, one by numbers and one by symbols


def test_evaluation_runs_the_plain_code() -> None:
    model = a_model("vit_tiny_patch16_224").eval()
    counter = CompileCounterWithBackend("eager")
    compile_blocks(model, backend=counter)
    a_pass(model)
    assert counter.frame_count == 0
