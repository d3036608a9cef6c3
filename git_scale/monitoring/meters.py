"""Measures a run: rates, utilisation, memory and time left, from numbers the loop already has.

meters = Meters(total_steps=..., epoch_images=..., devices=..., peak_flops=..., device=...)
every step      meters.record(loss=..., grad_norm=..., images=..., tokens=..., flops=..., wait_s=...)
at a log step   writer.scalars(step, meters.report(step, learning_rates=..., ...))
around the rest with meters.pause(): evaluate, save
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import psutil
import torch

from git_scale.formatting import GIB


@dataclass
class MeterInterval:
    """Adds up the work of some steps since a moment of the clock."""

    started: float
    steps: int = 0
    images: int = 0
    flops: float = 0.0
    wait_s: float = 0.0
    paused_s: float = 0.0
    tokens: int = 0

    def rates(self, now: float, peak_flops: float) -> dict[str, float]:
        """Rates up to `now`; pauses are left out, `peak_flops` is that of all devices together."""
        elapsed = max(now - self.started - self.paused_s, 1e-9)
        return {
            "data/wait_share": self.wait_s / elapsed,
            "speed/images_per_s": self.images / elapsed,
            "speed/tokens_per_s": self.tokens / elapsed,
            "speed/step_s": elapsed / self.steps,
            "speed/mfu": self.flops / (elapsed * peak_flops),
        }


class Meters:
    """Counts steps on the host; `samples` and `tokens` go on where `load_state_dict` left them.

    epoch_images: images of one epoch. devices: dp x tp. peak_flops: of one device, in FLOP/s.
    """

    def __init__(
        self,
        total_steps: int,
        epoch_images: int,
        devices: int,
        peak_flops: float,
        device: torch.device,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.total_steps = total_steps
        self.epoch_images = epoch_images
        self.peak_flops = devices * peak_flops
        self.device = device
        self.clock = clock
        self.samples = 0
        self.tokens = 0
        self._losses: list[float] = []
        self._terms: dict[str, list[float]] = {}
        self._grad_norms: list[float] = []
        self._interval = MeterInterval(clock())
        self._first_rates: dict[str, float] | None = None
        self._steady_since = self._interval.started
        self._steady_steps = 0
        self._peak_rss = 0

    def record(
        self,
        *,
        loss: float,
        grad_norm: float,
        images: int,
        tokens: int,
        flops: float,
        wait_s: float,
        terms: Mapping[str, float] | None = None,
    ) -> None:
        """One optimizer step: images, text tokens and FLOPs of all ranks, this rank's wait for data.

        terms: parts of the loss by name, where it has several.
        """
        self.samples += images
        self.tokens += tokens
        self._losses.append(loss)
        for name, part in (terms or {}).items():
            self._terms.setdefault(f"train/loss_{name}", []).append(part)
        self._grad_norms.append(grad_norm)
        interval = self._interval
        interval.steps += 1
        interval.images += images
        interval.flops += flops
        interval.wait_s += wait_s
        interval.tokens += tokens
        if self._first_rates is None:
            self._close_first_step()
        else:
            self._steady_steps += 1

    def report(
        self, step: int, *, learning_rates: Mapping[str, float], skipped_steps: int, data_skipped: int
    ) -> dict[str, float]:
        """All scalars of the steps since the last report; starts a new interval.

        loss and grad_norm are means over the interval's finite values (skipped_steps counts the others).
        The rates leave out pauses and, where another step was recorded, the first step of the process.
        skipped_steps and data_skipped are totals of the run, passed through.
        """
        if not self._losses:
            raise ValueError(f"step {step}: report() without a record() since the last one")
        loss, grad_norm = _finite_mean(self._losses), _finite_mean(self._grad_norms)
        now = self.clock()
        rates = (
            self._interval.rates(now, self.peak_flops) if self._interval.steps else self._first_rates or {}
        )
        values = {
            "train/loss": loss,
            **{name: _finite_mean(parts) for name, parts in self._terms.items()},
            "train/grad_norm": grad_norm,
            **{f"train/lr_{tower}": rate for tower, rate in learning_rates.items()},
            "train/skipped_steps": float(skipped_steps),
            "data/skipped": float(data_skipped),
            **rates,
            "memory/peak_gib": self._peak_memory() / GIB,
            "progress/epoch": self.samples / self.epoch_images,
            "progress/samples": float(self.samples),
            "progress/tokens": float(self.tokens),
            "progress/eta_s": (self.total_steps - step) * self._wall_step_s(now, rates["speed/step_s"]),
        }
        self._losses, self._terms, self._grad_norms, self._interval = [], {}, [], MeterInterval(now)
        return values

    @contextmanager
    def pause(self) -> Iterator[None]:
        """Evaluation, checkpoints: time that counts for the time left but not for the speed."""
        started = self.clock()
        try:
            yield
        finally:
            self._interval.paused_s += self.clock() - started

    def state_dict(self) -> dict[str, int]:
        return {"samples": self.samples, "tokens": self.tokens}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.samples, self.tokens = state["samples"], state["tokens"]

    def _close_first_step(self) -> None:
        """Sets the first step (compilation, warm-up) apart."""
        now = self.clock()
        self._first_rates = self._interval.rates(now, self.peak_flops)
        self._interval = MeterInterval(now)
        self._steady_since = now

    def _wall_step_s(self, now: float, fallback: float) -> float:
        """Mean seconds per step since the first one, pauses included: those will come again."""
        return (now - self._steady_since) / self._steady_steps if self._steady_steps else fallback

    def _peak_memory(self) -> int:
        """Bytes: what torch held at most on the GPU, or the largest resident set seen at a report."""
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device)
        self._peak_rss = max(self._peak_rss, psutil.Process().memory_info().rss)
        return self._peak_rss


def _finite_mean(values: list[float]) -> float:
    finite = list(filter(math.isfinite, values))
    return sum(finite) / len(finite) if finite else math.nan
