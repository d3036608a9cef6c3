"""What must not pass in silence: ignored learning rates, skipped steps."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping

from git_scale.data.batch import Batch
from git_scale.parallel.engine import Engine

log = logging.getLogger(__name__)

MAX_SKIPPED_IN_A_ROW = 10
"""A run that skips so many steps in a row learns nothing more: its weights or its data are broken."""


class StepGuards:
    """Looks at every step for what makes going on a waste."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._rates_checked = False
        self._skipped_in_a_row = 0
        self._without_targets_in_a_row = 0

    @property
    def nothing_is_learned(self) -> bool:
        """So many steps in a row had nothing to learn from, the same on all ranks."""
        return self._without_targets_in_a_row >= MAX_SKIPPED_IN_A_ROW

    def check(
        self,
        step: int,
        count: int,
        losses: Mapping[str, float],
        skipped: bool,
        batches: list[Batch],
        lr_factor: float,
    ) -> None:
        """Raises RuntimeError when going on would only waste the machines.

        count: what the objectives had to learn from, on all ranks; losses: of each of them.
        """
        self._without_targets_in_a_row = 0 if count else self._without_targets_in_a_row + 1
        if not count:
            log.warning("step %d skipped: none of its samples can be used, so nothing was learned", step)
            return
        if not self._rates_checked:
            self._check_learning_rates(lr_factor)
        self._check_skips(step, losses, skipped, batches)

    def _check_learning_rates(self, lr_factor: float) -> None:
        """The rates that the first step used, read back from the innermost optimizer (DeepSpeed#7713)."""
        for name, rate in self._engine.learning_rates().items():
            expected = self._engine.base_learning_rates[name] * lr_factor
            if not math.isclose(rate, expected, rel_tol=1e-6):
                raise RuntimeError(f"group {name} learns at {rate}, the recipe asks for {expected}")
        self._rates_checked = True

    def _check_skips(
        self, step: int, losses: Mapping[str, float], skipped: bool, batches: list[Batch]
    ) -> None:
        self._skipped_in_a_row = self._skipped_in_a_row + 1 if skipped else 0
        if skipped:
            keys = [key for batch in batches for key in batch.keys]
            broken = [f"{name} is {loss}" for name, loss in losses.items() if not math.isfinite(loss)]
            which = f" (the loss {', '.join(broken)})" if broken else ""
            log.warning(
                "step %d skipped: its gradients are not finite%s; samples here: %s", step, which, keys[:8]
            )
        if self._skipped_in_a_row >= MAX_SKIPPED_IN_A_ROW:
            raise RuntimeError(
                f"{self._skipped_in_a_row} steps in a row had gradients that are not finite, up to step {step}:"
                " lower the learning rates, or go on from an older checkpoint"
            )
