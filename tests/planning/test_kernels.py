"""What an operation keeps for its backward pass on `meta`, against the real CPU's; FLOPs against counts by hand."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from git_scale.planning.kernels import device_kernels, flops_of


def kept_bytes(operation: Callable[..., Tensor], *inputs: Tensor) -> int:
    """Of all storages that autograd keeps, those of the inputs aside."""
    kept = {}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage._cdata] = (storage.nbytes(), tensor)  # the tensor stays alive, and its address its own
        return tensor

    own = {tensor.untyped_storage()._cdata for tensor in inputs}
    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        operation(*inputs)
    return sum(size for key, (size, _) in kept.items() if key not in own)


def queries(device: str, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    return [torch.zeros(2, 3, 64, 16, device=device, dtype=dtype, requires_grad=True) for _ in range(3)]


@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_attention_keeps_what_it_keeps_on_a_cpu(dropout: float) -> None:
    def attend(*inputs: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(*inputs, dropout_p=dropout)

    real = kept_bytes(attend, *queries("cpu"))
    with device_kernels("cpu"):
        assert kept_bytes(attend, *queries("meta")) == real
    if dropout == 0:  # without the choice of kernels, meta keeps the scores: 2 * 3 * 64 * 64 numbers
        assert kept_bytes(attend, *queries("meta")) > real + 2 * 3 * 64 * 64 * 4 // 2


def test_cuda_keeps_no_scores_and_one_byte_per_dropped_number() -> None:
    scores = 2 * 3 * 64 * 64
    output = 2 * 3 * 64 * 16
    with device_kernels("cuda"):
        for dtype in (torch.float32, torch.bfloat16):
            kept = kept_bytes(F.scaled_dot_product_attention, *queries("meta", dtype))
            assert output * dtype.itemsize <= kept < output * dtype.itemsize + scores
        x = torch.zeros(1000, device="meta", requires_grad=True)
        assert kept_bytes(lambda x: F.dropout(x, 0.1, True), x) == 1000
        assert F.dropout(x, 0.1, False) is x
    assert kept_bytes(lambda x: F.dropout(x, 0.1, True), x) == 4000


def test_a_depth_wise_convolution_costs_twice_as_much_backward() -> None:
    images = torch.empty(2, 8, 5, 5, device="meta")
    weight = torch.empty(8, 1, 3, 3, device="meta")
    aten = torch.ops.aten
    arguments = ([1, 1], [1, 1], [1, 1], False, [0, 0], 8)
    output = aten.convolution.default(images, weight, None, *arguments)
    by_hand = 2 * (2 * 8 * 5 * 5) * 9
    assert flops_of(aten.convolution.default, (images, weight, None, *arguments), {}, output) == by_hand
    for wanted, times in (([True, True, False], 2), ([False, True, True], 1)):
        backward = (output, images, weight, [8], *arguments, wanted)
        assert flops_of(aten.convolution_backward.default, backward, {}, None) == times * by_hand


def test_the_cpus_attention_is_counted() -> None:
    inputs = [tensor.detach() for tensor in queries("meta")]
    operation = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default
    assert flops_of(operation, inputs, {}, operation(*inputs)) == 2 * 2 * (2 * 3 * 64 * 64 * 16)


def test_norms_and_sums_count_nothing() -> None:
    x = torch.empty(3, 3, device="meta")
    assert flops_of(torch.ops.aten.add.Tensor, (x, x), {}, x) == 0
