"""Short cuts on meta against torch's own way."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from git_scale.config import RunConfig
from git_scale.models.build import build_model
from git_scale.planning.meta import CachedOperations, OperationCache, on_meta

ATEN = torch.ops.aten


class Names(TorchDispatchMode):
    """Notes down what is carried out."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        self.seen.append(func._schema.name)
        return func(*args, **(kwargs or {}))


def test_a_model_without_its_initialisers_is_the_same_one(small_run: RunConfig) -> None:
    with torch.device("meta"):
        slow = build_model(small_run.model)
    with Names() as names, on_meta():
        quick = build_model(small_run.model)
    assert {name for name in names.seen if name.endswith("_")} == set()
    described = [
        {name: (t.shape, t.dtype, t.device, t.requires_grad) for name, t in model.state_dict().items()}
        for model in (quick, slow)
    ]
    assert described[0] == described[1]
    assert quick.decoder.head.weight is quick.decoder.embedding.words.weight


def test_what_changes_a_shape_or_lies_elsewhere_is_done() -> None:
    with on_meta():
        turned = torch.empty(2, 3).transpose_(0, 1)
        real = torch.zeros(3, device="cpu").fill_(7)
    assert turned.shape == (3, 2)
    assert real.tolist() == [7, 7, 7]


def test_known_operations_give_what_unknown_ones_give() -> None:
    run_cached = OperationCache()
    a, b = torch.empty(4, 5, device="meta"), torch.empty(5, 6, device="meta")
    for _ in range(2):
        product, flops = run_cached(ATEN.mm.default, (a, b), {})
        assert (product.shape, product.stride(), product.dtype, flops) == (
            (4, 6),
            (6, 1),
            a.dtype,
            2 * 4 * 5 * 6,
        )
        view, flops = run_cached(ATEN.t.default, (a,), {})
        assert (view.untyped_storage()._cdata, flops) == (a.untyped_storage()._cdata, 0)
        largest, _ = run_cached(ATEN.max.dim, (a, 1), {})
        assert [tuple(t.shape) for t in largest] == [(4,), (4,)]
    half, _ = run_cached(ATEN.mm.default, (a.half(), b.half()), {})
    assert half.dtype == torch.float16
    assert run_cached(ATEN.mm.default, (a, b[:, :2]), {})[0].shape == (4, 2)


def test_a_module_runs_quickly_with_the_same_result() -> None:
    with on_meta():
        norm = nn.LayerNorm(8)
    x = torch.empty(2, 8, device="meta")
    with CachedOperations():
        first, second = F.gelu(norm(x)), F.gelu(norm(x))
    assert first.shape == second.shape == (2, 8)
    assert first.untyped_storage()._cdata != second.untyped_storage()._cdata
