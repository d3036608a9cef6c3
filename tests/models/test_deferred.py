"""First values of a model that was never built whole: what the constructors do, whatever the order and the number."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from git_scale.config import DecoderConfig, EncoderConfig, ModelConfig
from git_scale.models.build import build_model
from git_scale.models.deferred import DeferredModel

DECODER = DecoderConfig(layers=1, width=32, heads=2, ffn=64)
ENCODERS: list[dict[str, Any]] = [
    {"name": "vit_tiny_patch16_224", "position_std": 0.5},
    {"name": "swin_tiny_patch4_window7_224", "options": {"embed_dim": 24, "depths": [1, 2]}},
    {"name": "davit_tiny", "options": {"depths": [1, 1], "embed_dims": [32, 64], "num_heads": [2, 4]}},
    {"name": "resnet18"},
    {"name": "convnext_atto"},
]


def tensors(module: nn.Module) -> dict[str, torch.Tensor]:
    return {**dict(module.named_parameters()), **dict(module.named_buffers())}


@pytest.mark.parametrize("encoder", ENCODERS, ids=lambda encoder: encoder["name"])
def test_values_are_distributed_as_the_constructors_make_them(encoder: dict[str, Any]) -> None:
    config = ModelConfig(encoder=EncoderConfig(**encoder), decoder=DECODER, vocab_size=40)
    deferred = DeferredModel(lambda: build_model(config), seed=3)
    assert {tensor.device.type for tensor in tensors(deferred.module).values()} == {"meta"}
    torch.manual_seed(0)
    for name, built in tensors(build_model(config)).items():
        value = deferred.first_value(name)
        assert (value.shape, value.dtype) == (built.shape, built.dtype), name
        if not built.is_floating_point() or built.unique().numel() == 1:
            assert torch.equal(value, built), name
        else:  # both are samples of one distribution: their deviations differ by 1/sqrt(2n), six sigmas
            noise = 6 / (2 * built.numel()) ** 0.5
            assert float(value.std()) == pytest.approx(float(built.std()), rel=2 * noise), name
            assert abs(float(value.mean() - built.mean())) < 2 * noise * float(built.std()), name


class Pair(nn.Module):
    def __init__(self, second_first: bool = False) -> None:
        super().__init__()
        names = ["second", "first"] if second_first else ["first", "second"]
        for name in names:
            self.add_module(name, nn.Linear(4, 4))
        self.tied = self.first.weight
        nn.init.trunc_normal_(self.second.weight, std=0.02)  # torch leaves a meta tensor alone here
        self.register_buffer("table", torch.arange(6).view(2, 3).flip(0))
        self.register_buffer("count", torch.tensor(7))


def test_a_value_depends_on_seed_and_name_alone() -> None:
    one, other = DeferredModel(Pair, 0), DeferredModel(lambda: Pair(second_first=True), 0)
    before = torch.get_rng_state()
    second, first = other.first_value("second.weight"), other.first_value("first.weight")
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(one.first_value("first.weight"), first)
    assert torch.equal(one.first_value("second.weight"), second)
    assert torch.equal(
        one.first_value("tied"), one.first_value(next(iter(dict(one.module.named_parameters()))))
    )
    assert not torch.equal(first, second)
    assert not torch.equal(first, DeferredModel(Pair, 1).first_value("first.weight"))


def test_what_torch_does_not_show_on_meta_is_recorded_too() -> None:
    deferred = DeferredModel(Pair, 0)
    assert 0.01 < float(deferred.first_value("second.weight").std()) < 0.03  # nn.Linear's own would be 0.29
    assert deferred.first_value("count").item() == 7
    assert deferred.first_value("table").tolist() == [[3, 4, 5], [0, 1, 2]]


def test_a_value_is_that_of_the_plain_construction() -> None:
    """With one tensor in the module, the plain constructor draws the same numbers from the same seed."""

    class Alone(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(5, 3) * 0.1)

    deferred = DeferredModel(Alone, 0)
    seed = deferred.seed_of("weight")
    torch.manual_seed(seed)
    assert torch.equal(deferred.first_value("weight"), Alone().weight)


def test_blank_values_are_zeros_but_for_buffers() -> None:
    deferred = DeferredModel(Pair, 0)
    assert not deferred.blank_value("first.weight").any()
    assert deferred.blank_value("table").tolist() == [[3, 4, 5], [0, 1, 2]]


class Grid(nn.Module):
    """A buffer that no state dict holds, filled through a view, as timm's are."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(3))
        self.register_buffer("index", torch.empty(3, 1), persistent=False)
        self.index.copy_(torch.tensor([5.0, 6.0, 7.0]).view(3, 1))


@pytest.mark.parametrize("inference", [False, True])
def test_buffers_that_no_state_dict_holds_are_filled(inference: bool) -> None:
    with torch.inference_mode(inference):
        module = DeferredModel(Grid, 0).filled(lambda name: torch.ones(3))
    assert module.index.tolist() == [[5], [6], [7]] and module.weight.tolist() == [1, 1, 1]
    assert not module.index.is_inference() and not any(x.is_meta for x in tensors(module).values())
