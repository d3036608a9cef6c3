"""timm's attentions by our forwards: timm's numbers, in one copy less."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from git_scale.models.attention import take_over_attentions
from git_scale.models.encoders import declare_torchvision_operators

declare_torchvision_operators()

import timm  # noqa: E402
from timm.layers import Attention  # noqa: E402
from timm.models import davit  # noqa: E402

KINDS = {
    "vit": lambda: Attention(16, num_heads=2, qkv_bias=True),
    "davit windows": lambda: davit.WindowAttention(16, (3, 3), num_heads=2),
    "davit channels": lambda: davit.ChannelAttention(16, num_heads=2),
    "davit channels v2": lambda: davit.ChannelAttentionV2(16, num_heads=2),
}


def a_pass(module: nn.Module) -> list[Tensor]:
    """Output, and gradients of input and parameters."""
    torch.manual_seed(1)
    tokens = torch.randn(3, 9, 16, requires_grad=True)
    module.zero_grad()
    out = module(tokens)
    (out * torch.randn_like(out)).sum().backward()
    assert tokens.grad is not None
    return [out.detach(), tokens.grad, *(p.grad.clone() for p in module.parameters() if p.grad is not None)]


class Copies(TorchDispatchMode):
    """Elements that are stacked, joined or copied."""

    def __init__(self) -> None:
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func._schema.name in ("aten::clone", "aten::cat", "aten::stack"):
            self.elements += result.numel()
        return result


def copied(module: nn.Module) -> int:
    with Copies() as copies:
        a_pass(module)
    return copies.elements


@pytest.mark.parametrize("kind", KINDS)
def test_the_numbers_are_timms(kind: str) -> None:
    torch.manual_seed(0)
    module = KINDS[kind]()
    theirs, their_copies = a_pass(module), copied(module)
    take_over_attentions(module)
    assert "forward" in vars(module)
    for ours, expected in zip(a_pass(module), theirs, strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-6, atol=1e-7)
    # Of the gradients of queries, keys and values two at least; channels have one that lies across.
    assert copied(module) <= their_copies - 2 * 9 * 3 * 16


@pytest.mark.parametrize(
    "options",
    [{"qk_norm": True}, {"scale_norm": True}, {"attn_drop": 0.1}],
    ids=lambda options: next(iter(options)),
)
def test_what_computes_more_keeps_its_own(options: dict[str, Any]) -> None:
    module = Attention(16, num_heads=2, norm_layer=nn.LayerNorm, **options)
    take_over_attentions(module)
    assert "forward" not in vars(module)


def test_subclasses_keep_their_own() -> None:
    class Shifted(Attention):
        def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
            return super().forward(x + 1)

    model = nn.Sequential(Shifted(16), Attention(16))
    take_over_attentions(model)
    assert ["forward" in vars(module) for module in model] == [False, True]


def test_a_whole_encoder_is_taken_over() -> None:
    vit = timm.create_model("vit_tiny_patch16_224", depth=2, num_classes=0)
    take_over_attentions(vit)
    assert all("forward" in vars(block.attn) for block in vit.blocks)
