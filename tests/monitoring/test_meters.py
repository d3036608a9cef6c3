"""Meters with a clock in hand."""

from __future__ import annotations

import math

import pytest
import torch

from git_scale.monitoring.meters import Meters


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def build(clock: Clock) -> Meters:
    return Meters(
        total_steps=20, epoch_images=64, devices=2, peak_flops=1000.0, device=torch.device("cpu"), clock=clock
    )


def step(meters: Meters, clock: Clock, seconds: float, loss: float = 1.0, grad_norm: float = 1.0) -> None:
    clock.now += seconds
    meters.record(
        loss=loss,
        grad_norm=grad_norm,
        images=16,
        tokens=40,
        flops=500.0,
        wait_s=0.25 * seconds,
    )


def report(meters: Meters, at: int) -> dict[str, float]:
    return meters.report(
        at, learning_rates={"encoder": 1e-5, "decoder": 5e-5}, skipped_steps=3, data_skipped=4
    )


def test_an_interval_by_hand() -> None:
    clock = Clock()
    meters = build(clock)
    step(meters, clock, 50.0, loss=6.0, grad_norm=3.0)  # compiles: in no rate
    step(meters, clock, 2.0, loss=2.0, grad_norm=2.0)
    step(meters, clock, 2.0, loss=1.0, grad_norm=1.0)
    values = report(meters, 3)
    memory = values.pop("memory/peak_gib")
    assert 0.01 < memory < 1000
    assert values == pytest.approx(
        {
            "train/loss": 3.0,
            "train/grad_norm": 2.0,
            "train/lr_encoder": 1e-5,
            "train/lr_decoder": 5e-5,
            "train/skipped_steps": 3,
            "data/skipped": 4,
            "data/wait_share": 0.25,
            "speed/images_per_s": 8.0,
            "speed/tokens_per_s": 20.0,
            "speed/step_s": 2.0,
            "speed/mfu": 1000 / (4.0 * 2 * 1000),
            "progress/epoch": 48 / 64,
            "progress/samples": 48,
            "progress/tokens": 120,
            "progress/eta_s": 17 * 2.0,
        }
    )


def test_each_report_starts_anew() -> None:
    clock = Clock()
    meters = build(clock)
    step(meters, clock, 9.0, loss=9.0)
    assert report(meters, 1)["speed/step_s"] == pytest.approx(9.0)  # nothing else is known yet
    step(meters, clock, 1.0, loss=2.0)
    values = report(meters, 2)
    assert values["train/loss"] == 2.0
    assert values["speed/step_s"] == pytest.approx(1.0)
    assert values["progress/samples"] == 32
    assert values["progress/eta_s"] == pytest.approx(18.0)
    with pytest.raises(ValueError, match="step 2: report"):
        report(meters, 2)


def test_pauses_count_for_the_time_left_alone() -> None:
    clock = Clock()
    meters = build(clock)
    step(meters, clock, 9.0)
    step(meters, clock, 1.0)
    report(meters, 2)
    with meters.pause():
        clock.now += 7.0
    step(meters, clock, 1.0)
    values = report(meters, 3)
    assert values["speed/step_s"] == pytest.approx(1.0)
    assert values["progress/eta_s"] == pytest.approx(17 * (1 + 7 + 1) / 2)


def test_values_that_are_not_finite_stay_out_of_the_means() -> None:
    clock = Clock()
    meters = build(clock)
    step(meters, clock, 1.0, loss=math.nan, grad_norm=math.inf)
    assert math.isnan(report(meters, 1)["train/loss"])
    step(meters, clock, 1.0, loss=math.nan, grad_norm=math.inf)
    step(meters, clock, 1.0, loss=4.0, grad_norm=0.5)
    values = report(meters, 3)
    assert (values["train/loss"], values["train/grad_norm"]) == (4.0, 0.5)


def test_counts_go_on_after_a_resume() -> None:
    clock = Clock()
    before = build(clock)
    step(before, clock, 1.0)
    state = before.state_dict()
    assert state == {"samples": 16, "tokens": 40}
    after = build(clock)
    after.load_state_dict(state)
    step(after, clock, 1.0)
    values = report(after, 2)
    assert (values["progress/samples"], values["progress/tokens"]) == (32, 80)
