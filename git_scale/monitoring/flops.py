"""Model FLOPs of one image, from real shapes: 2 per multiply-add; recomputation is not counted.

Causal attention counts as full attention, as is the custom of this field.
The decoder is counted by formula (it runs on ragged shapes every step), the encoder by running it on `meta`.
Norms, activations and softmax are left out, as everywhere in this field: together they are below one percent.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from git_scale.config import DecoderConfig

TRAIN_TO_FORWARD = 3
"""Training costs three forwards: each product once forward and twice backward (inputs, weights)."""


def decoder_forward_flops(
    decoder: DecoderConfig,
    vocab_size: int,
    encoder_width: int,
    image_tokens: int,
    texts: int,
    text_tokens: int,
    target_tokens: int,
) -> int:
    """FLOPs of the projection, the decoder and the word head for one image with `texts` texts.

    image_tokens: rows of the image stream, summed over frames. text_tokens: padded length of each text.
    target_tokens: positions at which logits are computed, summed over the image's texts.
    """
    width, image, text = decoder.width, image_tokens, texts * text_tokens
    dense = 8 * width**2 + 4 * width * decoder.ffn  # per row: q, k, v, o projections and the two of the ffn
    project = 2 * image * encoder_width * width
    image_layer = dense * image + 4 * image**2 * width
    image_keys = 4 * width**2 * image  # all that the last layer needs of the image rows
    text_layer = dense * text + 4 * width * text * (image + text_tokens)
    head = 2 * target_tokens * width * vocab_size
    return project + (decoder.layers - 1) * image_layer + image_keys + decoder.layers * text_layer + head


@lru_cache(maxsize=256)  # one entry per image size of multi-scale training or of data.resize=fit
def encoder_forward_flops(encoder: nn.Module, height: int, width: int) -> int:
    """FLOPs of one picture through an encoder that was built on the meta device; cached."""
    return count_forward_flops(encoder, torch.empty(1, 3, height, width, device="meta"))


def count_forward_flops(module: nn.Module, *inputs: Tensor) -> int:
    """FLOPs of `module(*inputs)`: products, convolutions and attention; module and inputs on one device.

    On `meta` nothing is computed or allocated. The CPU's fused attention is invisible to the counter, so
    attention is sent through its plain form, whose two products it sees on every device.
    """
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), _Counter() as counter:
        module(*inputs)
    return counter.flops


class _Counter(TorchDispatchMode):
    """Counts as torch's FlopCounterMode does, which also follows every module and takes four times as long for it."""

    def __init__(self) -> None:
        super().__init__()
        self.flops = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        if count := flop_registry.get(func._overloadpacket):
            self.flops += int(count(*args, **kwargs, out_val=result))
        return result
