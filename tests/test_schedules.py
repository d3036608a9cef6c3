"""The learning rate over a run against values by hand, and which values of a schedule do not go together."""

from __future__ import annotations

import math
from collections.abc import Iterator

import pytest

from git_scale.config import RunConfig
from git_scale.contradictions import contradictions
from git_scale.schedules import SCHEDULES, Schedule, lr_factor, stable_steps


def a_run(schedule: str, warmup: int, steps: int, decay: int | None = None) -> RunConfig:
    optimizer = {"schedule": schedule, "warmup_steps": warmup, "decay_steps": decay}
    return RunConfig.model_validate({"optimizer": optimizer, "train": {"steps": steps}})


COSINE, CONSTANT = a_run("cosine", 500, 5000), a_run("constant", 500, 5000)
WSD = a_run("wsd", 500, 5000, 1600)


@pytest.mark.parametrize(
    ("step", "factor"),
    [
        (0, 1 / 500),
        (249, 0.5),
        (499, 1.0),
        (500, 1.0),  # the cosine's top
        (500 + 1125, (1 + math.sqrt(0.5)) / 2),  # a quarter of the way down
        (2750, 0.5),
        (500 + 3375, (1 - math.sqrt(0.5)) / 2),
        (4999, math.sin(math.pi / 2 / 4500) ** 2),  # the last step still learns a little
        (5000, 0.0),
    ],
)
def test_the_rate_rises_in_a_line_and_falls_in_a_cosine(step: int, factor: float) -> None:
    assert lr_factor(step, COSINE) == pytest.approx(factor, abs=1e-12)


@pytest.mark.parametrize(
    ("step", "factor"),
    [
        (0, 1 / 500),
        (499, 1.0),
        (500, 1.0),
        (3400, 1.0),  # the decay begins
        (3400 + 16, 0.9),  # 1 - sqrt(1 / 100)
        (3400 + 400, 0.5),  # 1 - sqrt(1 / 4)
        (3400 + 900, 0.25),  # 1 - sqrt(9 / 16)
        (4999, 1 - math.sqrt(1599 / 1600)),
        (5000, 0.0),
    ],
)
def test_wsd_is_stable_and_then_falls_by_the_root(step: int, factor: float) -> None:
    assert lr_factor(step, WSD) == pytest.approx(factor, abs=1e-12)


def test_a_constant_rate_stays() -> None:
    assert [lr_factor(step, CONSTANT) for step in (0, 249, 499, 500, 4999)] == [1 / 500, 0.5, 1.0, 1.0, 1.0]


def test_without_warmup_it_starts_at_the_top() -> None:
    cosine = [lr_factor(step, a_run("cosine", 0, 4)) for step in range(5)]
    assert cosine == pytest.approx([1.0, (1 + math.sqrt(0.5)) / 2, 0.5, (1 - math.sqrt(0.5)) / 2, 0.0])
    wsd = [lr_factor(step, a_run("wsd", 0, 4, 4)) for step in range(5)]
    assert wsd == pytest.approx([1.0, 0.5, 1 - math.sqrt(0.5), 1 - math.sqrt(0.75), 0.0])


@pytest.mark.parametrize(("warmup", "total"), [(0, 1), (1, 2), (10, 100), (99, 100)])
@pytest.mark.parametrize("schedule", ["cosine", "wsd"])
def test_the_rate_rises_then_falls_and_never_is_zero_while_training(
    schedule: str, warmup: int, total: int
) -> None:
    run = a_run(schedule, warmup, total, total - warmup if schedule == "wsd" else None)
    factors = [lr_factor(step, run) for step in range(total)]
    rising, falling = factors[:warmup], factors[warmup:]
    assert rising == sorted(set(rising))
    assert falling == sorted(set(falling), reverse=True)
    assert all(0 < factor <= 1 for factor in factors)
    assert max(factors) == 1.0


@pytest.mark.parametrize("run", [COSINE, WSD, CONSTANT], ids=lambda run: run.optimizer.schedule)
def test_the_stable_part_is_what_a_longer_run_has_as_well(run: RunConfig) -> None:
    longer = run.model_copy(update={"train": run.train.model_copy(update={"steps": 9000})})
    same = [lr_factor(step, run) == lr_factor(step, longer) for step in range(run.train.steps)]
    stable = stable_steps(run)
    assert all(same[:stable])
    # of a cosine the warm-up is the same, and is no part that a decay could begin in
    assert stable == {"cosine": 0, "wsd": 3400, "constant": 5000}[run.optimizer.schedule]
    assert not any(same[max(stable, 501) + 1 :])


def problems(run: RunConfig) -> Iterator[str]:
    return (problem for problem in contradictions(run) if problem.startswith(("optimizer.", "eval.")))


@pytest.mark.parametrize(
    ("run", "problem"),
    [
        (
            a_run("wsd", 5, 100),
            "optimizer.schedule=wsd ends in a decay, and optimizer.decay_steps is not set: set"
            " optimizer.decay_steps=10",
        ),
        (
            a_run("cosine", 5, 100, 10),
            "optimizer.decay_steps=10 has no effect with optimizer.schedule=cosine: leave it out, or set"
            " optimizer.schedule=wsd",
        ),
        (
            a_run("wsd", 5, 100, 96),
            "optimizer.decay_steps=96 and optimizer.warmup_steps=5 are more than train.steps=100: set"
            " optimizer.decay_steps=95 or less",
        ),
        (
            a_run("cosin", 5, 100),
            "optimizer.schedule='cosin': there is none of that name; did you mean cosine?; there are cosine, wsd,"
            " constant, and those of your own modules: plugins=[MODULE]",
        ),
        (
            RunConfig.model_validate({"eval": {"weights": "ema"}}),
            "eval.weights=ema is of an average of the weights, and optimizer.ema is not set: set optimizer.ema=0.9999"
            " or eval.weights=trained",
        ),
    ],
)
def test_what_does_not_go_together_is_said(run: RunConfig, problem: str) -> None:
    assert list(problems(run)) == [problem]


def test_what_goes_together_is_not() -> None:
    averaged = RunConfig.model_validate({"eval": {"weights": "ema"}, "optimizer": {"ema": 0.999}})
    for run in (COSINE, WSD, CONSTANT, a_run("wsd", 5, 100, 95), averaged):
        assert list(problems(run)) == []


def test_a_schedule_of_ones_own_is_one_entry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(SCHEDULES, "_added", {})
    halves = Schedule(lambda step, run: 0.5, stable_steps=lambda run: run.train.steps)
    SCHEDULES.add("halves", halves)
    assert [lr_factor(step, a_run("halves", 2, 10)) for step in range(4)] == [0.5, 1.0, 0.5, 0.5]
    SCHEDULES.add("wrong", lambda step: 1.0)
    (problem,) = problems(a_run("wrong", 2, 10))
    assert "is no git_scale.schedules.Schedule" in problem
