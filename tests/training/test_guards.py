"""Steps that are skipped, in a row and with others between them."""

from __future__ import annotations

from typing import Any

import pytest

from git_scale.training.guards import MAX_SKIPPED_IN_A_ROW, StepGuards


class RightRates:
    """An engine that uses the rates it was given."""

    base_learning_rates = {"decoder": 2.0}  # noqa: RUF012

    def learning_rates(self) -> dict[str, float]:
        return {"decoder": 1.0}


@pytest.fixture
def guards() -> Any:
    return StepGuards(RightRates())  # type: ignore[arg-type]


def test_skips_in_a_row_end_a_run(guards: Any) -> None:
    for step in range(MAX_SKIPPED_IN_A_ROW - 1):
        guards.check(step, 5, {"lm": 1.0}, True, [], 0.5)
    with pytest.raises(RuntimeError, match="10 steps in a row"):
        guards.check(9, 5, {"lm": 1.0}, True, [], 0.5)


def test_a_good_step_between_skipped_ones_begins_the_count_anew(guards: Any) -> None:
    for step in range(10 * MAX_SKIPPED_IN_A_ROW):
        guards.check(step, 5, {"lm": 1.0}, step % MAX_SKIPPED_IN_A_ROW != 0, [], 0.5)


def test_steps_without_targets_are_counted_apart(guards: Any) -> None:
    for step in range(MAX_SKIPPED_IN_A_ROW - 1):
        guards.check(step, 0, {"lm": 1.0}, True, [], 0.5)
    assert not guards.nothing_is_learned
    guards.check(9, 5, {"lm": 1.0}, False, [], 0.5)
    for step in range(MAX_SKIPPED_IN_A_ROW):
        assert not guards.nothing_is_learned
        guards.check(10 + step, 0, {"lm": 1.0}, True, [], 0.5)
    assert guards.nothing_is_learned
