"""The matrix products of a training step, recorded from the model and run again on their own.

What a machine does on these products alone is the rate that the step can attain on it: a peak from a datasheet
says nothing about 788 x 768 x 2304 on two shared cores.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode

aten = torch.ops.aten
# Position of the left factor among the operator's arguments; the right one follows it.
LEFT_FACTOR = {
    aten.mm.default: 0,
    aten.mm.out: 0,
    aten.bmm.default: 0,
    aten.bmm.out: 0,
    aten.addmm.default: 1,
    aten.baddbmm.default: 1,
}

Product = tuple[int, int, int, int]  # batch, M, K, N


class _Recorder(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.products: Counter[Product] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in LEFT_FACTOR:
            left, right = args[LEFT_FACTOR[func] :][:2]
            self.products[left.shape[:-2].numel(), *left.shape[-2:], right.shape[-1]] += 1
        return func(*args, **(kwargs or {}))


def record_products(step: Callable[[], object]) -> Counter[Product]:
    """How often `step` asks for each product; attention in its plain form. On `meta` nothing is computed."""
    with sdpa_kernel(SDPBackend.MATH), _Recorder() as recorder:
        step()
    return recorder.products


def count_flops(products: Counter[Product]) -> int:
    return sum(2 * batch * m * k * n * count for (batch, m, k, n), count in products.items())


class ProductReplay:
    """Runs recorded products, and nothing else, in fp32 on operands that were made beforehand."""

    def __init__(self, products: Counter[Product]) -> None:
        self._work = [
            (torch.rand(batch, m, k), torch.rand(batch, k, n), torch.empty(batch, m, n), count)
            for (batch, m, k, n), count in products.items()
        ]

    def run(self) -> None:
        for left, right, out, count in self._work:
            for _ in range(count):
                if left.shape[0] == 1:
                    torch.mm(left[0], right[0], out=out[0])
                else:
                    torch.bmm(left, right, out=out)
