"""Counts of elements by hand."""

from __future__ import annotations

from git_scale.planning.local_model import ParameterSpec
from git_scale.planning.partition_sizes import partition_sizes
from git_scale.planning.zero_config import read_zero_config

PARAMETERS = [
    ParameterSpec("encoder.a", 100, 2, 2, learns=True, tower="encoder", is_table=False),
    ParameterSpec("encoder.b", 60, 2, 2, learns=True, tower="encoder", is_table=False),
    ParameterSpec("encoder.frozen", 33, 2, 2, learns=False, tower="encoder", is_table=False),
    ParameterSpec("encoder.bias", 7, 1, 2, learns=True, tower="encoder", is_table=False),
    ParameterSpec("decoder.words", 50, 2, 2, learns=True, tower="decoder", is_table=True),
]


def zero(stage: int, **given: int) -> object:
    return read_zero_config({"zero_optimization": {"stage": stage, **given}}, "fp32")


def test_counts() -> None:
    sizes = partition_sizes(PARAMETERS, zero(3, stage3_param_persistence_threshold=10), dp=4)
    assert (sizes.bytes_per_parameter, sizes.bytes_per_gradient, sizes.upcasts_gradients) == (2, 4, True)
    assert sizes.parameters == 250
    assert sizes.trainable == 217
    assert sizes.largest_trainable == 100
    assert sizes.optimizer_partition == 25 + 15 + 2 + 13
    assert sizes.parameter_partition == 25 + 15 + 9 + 2 + 13
    assert sizes.unreleased == 7 + 50
    assert sizes.largest_group_partition == 40  # encoder.a and encoder.b are updated at once
    assert (sizes.gathered_matrices, sizes.persistent_parameters) == (4, 1)
    sizes = partition_sizes(PARAMETERS, zero(3, stage3_param_persistence_threshold=0), dp=4)
    # The bias comes along with a matrix.
    assert (sizes.gathered_matrices, sizes.persistent_parameters) == (4, 0)
    sizes = partition_sizes(PARAMETERS, zero(3, stage3_param_persistence_threshold=60), dp=4)
    assert (sizes.gathered_matrices, sizes.persistent_parameters) == (1, 4)


def test_without_zero_a_rank_keeps_all_moments() -> None:
    sizes = partition_sizes(PARAMETERS, zero(0), dp=4)
    assert sizes.optimizer_partition == sizes.trainable
    assert sizes.largest_group_partition == 160


def test_a_rank_keeps_gradients_that_reach_into_its_part() -> None:
    # Parts of the first group: 0-39 and 40-79 in a, 80-119 in a and b, 120-159 in b; rank 2 has both.
    # The others' groups: 7 in parts of 2 (a bias, in all of them), 50 in parts of 13 (the words, in all of them).
    assert partition_sizes(PARAMETERS, zero(2), dp=4).params_in_partition == 100 + 60 + 7 + 50
    assert partition_sizes(PARAMETERS, zero(2), dp=1).params_in_partition == 217
