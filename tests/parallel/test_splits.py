"""The table of rules on real architectures: what is cut, what stays whole, what is refused by name."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from git_scale.checkpoint.sharding import Split
from git_scale.config import ModelConfig, ParallelConfig
from git_scale.errors import ConfigError
from git_scale.models.build import build_model
from git_scale.models.git import GitModel
from git_scale.parallel.splits import describe_splits, splits_of
from git_scale.recipes import load_run

DECODER = {"layers": 1, "width": 32, "heads": 4, "ffn": 64}


def on_meta(name: str, **options: Any) -> GitModel:
    config = ModelConfig.model_validate(
        {"encoder": {"name": name, "options": options}, "decoder": DECODER, "vocab_size": 50}
    )
    with torch.device("meta"):
        return build_model(config)


def test_each_layer_is_cut_as_the_table_says() -> None:
    splits = splits_of(on_meta("vit_tiny_patch16_224", num_heads=4), ParallelConfig(tp=2))
    assert splits["encoder.backbone.blocks.0.attn.qkv.weight"] == Split(0, parts=3)
    assert splits["encoder.backbone.blocks.0.attn.qkv.bias"] == Split(0, parts=3)
    assert splits["encoder.backbone.blocks.0.attn.proj.weight"] == Split(1)
    assert splits["encoder.backbone.blocks.0.attn.proj.bias"] is None
    assert splits["encoder.backbone.blocks.0.norm1.weight"] is None
    assert splits["encoder.backbone.pos_embed"] is None
    assert splits["decoder.layers.0.key_value.weight"] == Split(0, parts=2)
    assert splits["decoder.embedding.words.weight"] == Split(0, padded=True)
    assert splits["decoder.head.weight"] == splits["decoder.head.bias"] == Split(0, padded=True)
    assert splits["projection.0.weight"] is None


@pytest.mark.parametrize(("recipe", "tp"), [("git_base", 4), ("git_large", 4), ("git_huge", 4), ("git2", 8)])
def test_shipped_recipes_split_nearly_whole(recipe: str, tp: int) -> None:
    run = load_run(recipe, [f"parallel.tp={tp}"])
    with torch.device("meta"):
        model = build_model(run.model)
    splits = splits_of(model, run.parallel)
    whole = sum(p.numel() for name, p in model.named_parameters() if splits[name] is None)
    assert whole / sum(p.numel() for p in model.parameters()) < 0.015


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        (
            "vit_tiny_patch16_224",
            {},
            r"parallel.tp=2 does not divide the 3 heads of encoder.backbone.blocks.0.attn",
        ),
        (
            "eva02_tiny_patch14_224",
            {},
            r"no rule says how to split encoder.backbone.blocks.0.attn.qkv \(Linear",
        ),
        ("vit_tiny_patch16_224", {"num_heads": 4, "qk_norm": True}, r"encoder.backbone.blocks.0.attn.q_norm"),
        ("vit_tiny_patch16_224", {"num_heads": 4, "attn_drop_rate": 0.1}, "drops attention weights"),
    ],
)
def test_what_cannot_be_split_is_refused_by_name(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        splits_of(on_meta(name, **options), ParallelConfig(tp=2))


def test_a_tower_that_is_left_whole_needs_no_rule() -> None:
    model = on_meta("eva02_tiny_patch14_224")
    splits = splits_of(model, ParallelConfig(tp=2, encoder=False))
    assert {name for name, split in splits.items() if split} == {
        name for name in splits if name.startswith("decoder.") and splits[name]
    }
    assert splits["decoder.layers.0.fc1.weight"] == Split(0)


def test_without_tensor_parallelism_nothing_is_cut() -> None:
    splits = splits_of(on_meta("eva02_tiny_patch14_224"), ParallelConfig())
    assert set(splits.values()) == {None}


def test_the_table_accounts_for_every_parameter() -> None:
    model = on_meta("vit_tiny_patch16_224", num_heads=4)
    parallel = ParallelConfig(tp=2)
    table = describe_splits(model, parallel, splits_of(model, parallel))
    sizes = [int(line.split()[-2].replace(",", "")) for line in table.splitlines()[2:]]
    assert sum(sizes) == sum(p.numel() for p in model.parameters())


def test_the_table_says_how_each_kind_is_cut() -> None:
    model = on_meta("swin_tiny_patch4_window7_224", depths=[1], num_heads=[4])
    parallel = ParallelConfig(tp=2)
    lines = describe_splits(model, parallel, splits_of(model, parallel)).splitlines()
    ways = {"qkv": "by outputs, 3 groups", "proj": "by inputs", "words": "by vocabulary"}
    for path, way in {**ways, "attn": "along dimension 1"}.items():
        assert any(line.split("  ")[0].endswith(path) and way in line for line in lines), path
