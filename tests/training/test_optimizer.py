"""Which parameter learns at which rate."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from git_scale.config import DecoderConfig, EncoderConfig, ModelConfig, OptimizerConfig
from git_scale.models.build import build_model
from git_scale.models.git import GitModel
from git_scale.models.interface import Tower
from git_scale.training.optimizer import parameter_groups

CONFIG = OptimizerConfig(encoder_lr=1e-5, decoder_lr=5e-5, weight_decay=0.01)


@pytest.fixture(scope="module")
def model() -> GitModel:
    config = ModelConfig(
        encoder=EncoderConfig(
            name="vit_tiny_patch16_224",
            image_size=16,
            options={"patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 2},
        ),
        decoder=DecoderConfig(layers=2, width=32, heads=2, ffn=48),
        frames=2,
    )
    with torch.device("meta"):
        return build_model(config)


def groups_of(model: nn.Module, config: OptimizerConfig) -> list[dict]:
    shapes = {name: parameter.shape for name, parameter in model.named_parameters()}
    return parameter_groups(model, shapes, config)


def by_parameter(model: nn.Module) -> dict[str, dict]:
    group_of = {id(p): group for group in groups_of(model, CONFIG) for p in group["params"]}
    return {name: group_of[id(parameter)] for name, parameter in model.named_parameters()}


def test_every_parameter_is_in_exactly_one_group(model: GitModel) -> None:
    grouped = [id(p) for group in groups_of(model, CONFIG) for p in group["params"]]
    assert len(grouped) == len(set(grouped))
    assert set(grouped) == {id(parameter) for parameter in model.parameters()}


def test_groups_have_names_rates_and_decays(model: GitModel) -> None:
    groups = {group["name"]: (group["lr"], group["weight_decay"]) for group in groups_of(model, CONFIG)}
    assert groups == {
        "encoder_decay": (1e-5, 0.01),
        "encoder_no_decay": (1e-5, 0.0),
        "decoder_decay": (5e-5, 0.01),
        "decoder_no_decay": (5e-5, 0.0),
    }


@pytest.mark.parametrize(
    ("name", "group"),
    [
        ("encoder.backbone.blocks.0.attn.qkv.weight", "encoder_decay"),
        ("encoder.backbone.patch_embed.proj.weight", "encoder_decay"),
        ("encoder.backbone.blocks.0.attn.qkv.bias", "encoder_no_decay"),
        ("encoder.backbone.blocks.1.norm1.weight", "encoder_no_decay"),
        ("encoder.backbone.norm.bias", "encoder_no_decay"),
        ("projection.0.weight", "decoder_decay"),
        ("projection.1.weight", "decoder_no_decay"),
        ("decoder.embedding.words.weight", "decoder_decay"),
        ("decoder.layers.0.key_value.weight", "decoder_decay"),
        ("decoder.layers.1.ffn_norm.weight", "decoder_no_decay"),
        ("decoder.head.bias", "decoder_no_decay"),
        ("temporal.frames", "decoder_decay"),
    ],
)
def test_parameters_are_where_they_belong(model: GitModel, name: str, group: str) -> None:
    assert by_parameter(model)[name]["name"] == group


def test_norms_and_biases_have_no_decay_and_nothing_else_is_spared(model: GitModel) -> None:
    norms = {
        f"{prefix}.{name}"
        for prefix, module in model.named_modules()
        if isinstance(module, nn.LayerNorm)
        for name, _ in module.named_parameters()
    }
    spared = {name for name, group in by_parameter(model).items() if group["weight_decay"] == 0}
    assert norms
    assert spared == norms | {name for name, _ in model.named_parameters() if name.endswith("bias")}


class Plain(nn.Module):
    """Two towers of a layer each."""

    def __init__(self, bias: bool = True) -> None:
        super().__init__()
        self.encoder, self.head = nn.Linear(2, 2, bias=bias), nn.LayerNorm(2)

    def towers(self) -> dict[str, Tower]:
        return {"encoder": Tower(("encoder",), self.encoder), "decoder": Tower(("head",), self.head)}


def test_a_group_without_parameters_is_left_out() -> None:
    names = [group["name"] for group in groups_of(Plain(bias=False), CONFIG)]
    assert names == ["encoder_decay", "decoder_no_decay"]


def test_frozen_parameters_are_left_out() -> None:
    frozen = Plain()
    frozen.encoder.bias.requires_grad_(False)
    frozen.head.requires_grad_(False)
    assert [group["name"] for group in groups_of(frozen, CONFIG)] == ["encoder_decay"]


def test_the_groups_make_an_optimizer_with_those_rates() -> None:
    optimizer = torch.optim.AdamW(groups_of(Plain(), CONFIG), lr=1.0)
    assert [group["lr"] for group in optimizer.param_groups] == [1e-5, 1e-5, 5e-5]


def test_a_part_of_no_tower_is_refused_instead_of_learning_at_some_rate() -> None:
    with torch.device("meta"):
        stray = build_model(ModelConfig())
        stray.probe = nn.Linear(4, 4)
    with pytest.raises(
        ValueError, match=r"probe.weight belongs to none of the model's towers \(encoder, decoder\)"
    ):
        groups_of(stray, CONFIG)
