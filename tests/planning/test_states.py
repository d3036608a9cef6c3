"""Counts of elements by hand."""

from __future__ import annotations

from git_scale.planning.local_model import Parameter
from git_scale.planning.states import hold
from git_scale.planning.zero import read_zero

PARAMETERS = [
    Parameter("encoder.a", 100, 2, 2, learns=True, tower="encoder", is_table=False),
    Parameter("encoder.b", 60, 2, 2, learns=True, tower="encoder", is_table=False),
    Parameter("encoder.frozen", 33, 2, 2, learns=False, tower="encoder", is_table=False),
    Parameter("encoder.bias", 7, 1, 2, learns=True, tower="encoder", is_table=False),
    Parameter("decoder.words", 50, 2, 2, learns=True, tower="decoder", is_table=True),
]


def zero(stage: int, **given: int) -> object:
    return read_zero({"zero_optimization": {"stage": stage, **given}}, "fp32")


def test_counts() -> None:
    held = hold(PARAMETERS, zero(3, stage3_param_persistence_threshold=10), dp=4)
    assert (held.element, held.gradient, held.widens) == (2, 4, True)
    assert held.weights == 250
    assert held.learning == 217
    assert held.largest == 100
    assert held.part == 25 + 15 + 2 + 13
    assert held.weights_part == 25 + 15 + 9 + 2 + 13
    assert held.lingering == 7 + 50
    assert held.group_part == 40  # encoder.a and encoder.b are updated at once
    assert (held.gathered, held.persistent) == (4, 1)
    held = hold(PARAMETERS, zero(3, stage3_param_persistence_threshold=0), dp=4)
    assert (held.gathered, held.persistent) == (4, 0)  # the bias comes along with a matrix
    held = hold(PARAMETERS, zero(3, stage3_param_persistence_threshold=60), dp=4)
    assert (held.gathered, held.persistent) == (1, 4)


def test_without_zero_a_rank_keeps_all_moments() -> None:
    held = hold(PARAMETERS, zero(0), dp=4)
    assert held.part == held.learning
    assert held.group_part == 160


def test_a_rank_keeps_gradients_that_reach_into_its_part() -> None:
    # Parts of the first group: 0-39 and 40-79 in a, 80-119 in a and b, 120-159 in b; rank 2 has both.
    # The others' groups: 7 in parts of 2 (a bias, in all of them), 50 in parts of 13 (the words, in all of them).
    assert hold(PARAMETERS, zero(2), dp=4).gradient_part == 100 + 60 + 7 + 50
    assert hold(PARAMETERS, zero(2), dp=1).gradient_part == 217
