"""timm's attentions, computed from what their query-key-value layer gives.

The same numbers as timm's own forwards, to the bit. Queries, keys and values are cut off that layer's last dimension,
so that the backward pass joins their gradients in one copy; timm stacks them in front, and copies once more to bring
the stack in order. And nothing is read off the input: heads may be fewer and images more than there
(git_scale/parallel).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from types import MethodType
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn


def split_heads(qkv: Tensor, heads: int) -> tuple[Tensor, Tensor, Tensor]:
    """[B, L, 3*N*H] to three times [B, N, L, H], views."""
    query, key, value = (part.unflatten(-1, (heads, -1)).transpose(1, 2) for part in qkv.chunk(3, dim=-1))
    return query, key, value


def take_over_attentions(backbone: nn.Module) -> None:
    """Gives timm's attentions, of ViT and DaViT, the forwards below."""
    for module in backbone.modules():
        forward = _forwards().get(
            type(module)
        )  # not of a parent class: a subclass may compute something else
        if forward is not None and _has_nothing_else(module):
            module.forward = MethodType(forward, module)


@functools.cache
def _forwards() -> dict[type[nn.Module], Callable[..., Tensor]]:
    import timm.layers
    from timm.models import davit

    return {
        timm.layers.Attention: _attention,
        davit.WindowAttention: _window_attention,
        davit.ChannelAttention: _channel_attention,
        davit.ChannelAttentionV2: _channel_attention_v2,
    }


def _has_nothing_else(attention: Any) -> bool:
    """Between its layers: norms of queries and keys, a gate, dropout of attention weights."""
    norms = (getattr(attention, name, None) for name in ("q_norm", "k_norm", "norm"))
    dropout = getattr(attention, "attn_drop", None)
    return (
        all(norm is None or isinstance(norm, nn.Identity) for norm in norms)
        and getattr(attention, "gate", None) is None
        and (dropout is None or dropout.p == 0)
    )


def _attention(
    module: Any, x_BLC: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False
) -> Tensor:
    query, key, value = split_heads(module.qkv(x_BLC), module.num_heads)
    attended = F.scaled_dot_product_attention(query, key, value, attn_mask, is_causal=is_causal)
    return module.proj_drop(module.proj(attended.transpose(1, 2).flatten(2)))


def _window_attention(module: Any, x_BLC: Tensor) -> Tensor:
    query, key, value = split_heads(module.qkv(x_BLC), module.num_heads)
    attended = F.scaled_dot_product_attention(query, key, value)
    return module.proj(attended.transpose(1, 2).flatten(2))


def _channel_attention(module: Any, x_BLC: Tensor) -> Tensor:
    """Attention between the H channels of a group, over all L places (DaViT, arXiv 2204.03645)."""
    query, key, value = split_heads(module.qkv(x_BLC), module.num_heads)
    weights = ((key * module.scale).transpose(-1, -2) @ value).softmax(dim=-1)
    attended = (weights @ query.transpose(-1, -2)).transpose(-1, -2)
    return module.proj(attended.transpose(1, 2).flatten(2))


def _channel_attention_v2(module: Any, x_BLC: Tensor) -> Tensor:
    """As Florence-2 has it: scaled by the number of places."""
    query, key, value = split_heads(module.qkv(x_BLC), module.groups)
    scale = 1 / math.sqrt(query.shape[2] if module.dynamic_scale else query.shape[3])
    weights = ((query * scale).transpose(-1, -2) @ key).softmax(dim=-1)
    attended = (weights @ value.transpose(-1, -2)).transpose(-1, -2)
    return module.proj(attended.transpose(1, 2).flatten(2))
