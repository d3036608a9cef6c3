"""A rank's share of a model on meta."""

from __future__ import annotations

import pytest
import torch

from git_scale.checkpoint.sharding import local_shape
from git_scale.config import RunConfig
from git_scale.errors import ConfigError
from git_scale.models.build import build_model
from git_scale.parallel.splits import splits_of
from git_scale.planning.cluster import Cluster
from git_scale.planning.local_model import build_local, largest_image, parameters_of
from git_scale.planning.plan import plan
from git_scale.recipes import adjusted


@pytest.fixture
def split_run(small_run: RunConfig) -> RunConfig:
    return adjusted(small_run, ["parallel.tp=2", "model.encoder.options={num_heads: 4, depth: 2}"])


def test_shapes_are_those_of_the_table_of_rules(split_run: RunConfig) -> None:
    with torch.device("meta"):
        whole = build_model(split_run.model)
    splits = splits_of(whole, split_run.parallel)
    local = build_local(split_run).model
    for name, parameter in whole.named_parameters():
        assert local.get_parameter(name).shape == local_shape(parameter.shape, splits[name], 2)
    assert local.decoder.head.weight is local.decoder.embedding.words.weight
    numel = sum(parameter.numel for parameter in parameters_of(local))
    assert 0.5 < numel / sum(p.numel() for p in whole.parameters()) < 0.6


def test_precision_frozen_ones_and_tables_are_marked(small_run: RunConfig) -> None:
    found = {
        p.name: p
        for p in parameters_of(build_local(adjusted(small_run, ["train.freeze=['encoder.*']"])).model)
    }
    assert {p.element for p in found.values()} == {2}
    assert [p.learns for name, p in found.items() if name.startswith("encoder.")].count(True) == 0
    assert {name for name, p in found.items() if p.is_table} == {
        "decoder.embedding.words.weight",
        "decoder.embedding.positions.weight",
    }


def test_a_degree_that_divides_no_heads_is_refused(small_run: RunConfig) -> None:
    with pytest.raises(ConfigError, match="heads"):
        build_local(adjusted(small_run, ["parallel.tp=5"]))


def test_the_largest_image_counts(small_run: RunConfig) -> None:
    assert largest_image(adjusted(small_run, ["data.image_sizes=[160, 208, 192]"])) == (208, 208)
    assert largest_image(adjusted(small_run, ["data.resize=fit", "train.micro_batch=1"])) == (224, 299)


def test_nothing_to_learn_is_refused(small_run: RunConfig) -> None:
    with pytest.raises(ConfigError, match="leaves nothing to learn"):
        build_local(adjusted(small_run, ["train.freeze=['*']"]))


def test_an_encoder_that_takes_no_such_image_is_refused_before_anything_is_measured(
    small_run: RunConfig, four_gpus: Cluster
) -> None:
    with pytest.raises(ConfigError, match="does not take images of 160 x 160"):
        plan(adjusted(small_run, ["data.image_sizes=[160]"]), {}, four_gpus)
