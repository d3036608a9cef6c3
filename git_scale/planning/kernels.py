"""The kernels that a device takes, on `meta`: what they keep for the backward pass differs.

On `meta`, torch falls back to the plain forms: attention that keeps all scores, dropout that keeps a mask of floats.
CUDA and CPU have fused ones, whose shapes torch knows.
"""

from __future__ import annotations

import functools
from contextlib import ExitStack
from typing import Any, Literal
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.flop_counter import flop_registry

DeviceKind = Literal["cuda", "cpu"]

_ATEN = torch.ops.aten
# torch's counter does not know the CPU's fused attention.
_COUNTED_AS = {
    _ATEN._scaled_dot_product_flash_attention_for_cpu: _ATEN._scaled_dot_product_flash_attention,
    _ATEN._scaled_dot_product_flash_attention_for_cpu_backward: _ATEN._scaled_dot_product_flash_attention_backward,
}


def flops_of(func: Any, args: Any, kwargs: Any, result: Any) -> int:
    """An operation takes so many; all but products, convolutions and attention count as 0."""
    packet = func._overloadpacket
    if packet is _ATEN.convolution_backward:  # torch's counter forgets the groups of a depth-wise one
        return _convolution_backward_flops(*args)
    count = flop_registry.get(_COUNTED_AS.get(packet, packet))
    return int(count(*args, **kwargs, out_val=result)) if count else 0


def _convolution_backward_flops(gradient: Tensor, images: Tensor, weight: Tensor, *rest: Any) -> int:
    """Each gradient that is wanted, of images or weight, takes as many as the forward pass."""
    *_, wanted = rest
    return 2 * gradient.numel() * weight[0].numel() * sum(wanted[:2])


def device_kernels(kind: DeviceKind) -> ExitStack:
    """Within it, attention and dropout on `meta` are those of the device."""
    # A TorchFunctionMode would be switched off within backward(), where checkpointing recomputes.
    stack = ExitStack()
    attention = functools.partial(_attention, kind)
    stack.enter_context(mock.patch.object(F, "scaled_dot_product_attention", attention))
    if kind == "cuda":
        stack.enter_context(mock.patch.object(F, "dropout", _dropout))
    return stack


def _dropout(input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
    """Keeps a mask of one byte per number."""
    return torch.native_dropout(input, p, training)[0] if training and p > 0 else input


def _attention(
    kind: DeviceKind,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """torch's choice: flash in 16 bits and without a mask, else memory-efficient; on CPU fused without dropout."""
    inputs = (query, key, value)
    if kind == "cuda" and attn_mask is None and query.dtype != torch.float32:
        return _ATEN._scaled_dot_product_flash_attention(*inputs, dropout_p, is_causal, scale=scale)[0]
    if kind == "cuda":
        return _ATEN._scaled_dot_product_efficient_attention(
            *inputs, attn_mask, True, dropout_p, is_causal, scale=scale
        )[0]
    if dropout_p == 0 and query.ndim == 4:
        return _ATEN._scaled_dot_product_flash_attention_for_cpu(
            *inputs, dropout_p, is_causal, attn_mask=attn_mask, scale=scale
        )[0]
    return _ATEN._scaled_dot_product_attention_math(
        *inputs, attn_mask, dropout_p, is_causal, None, scale=scale, enable_gqa=enable_gqa
    )[0]
