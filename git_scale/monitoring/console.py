"""The console line of a step: aligned, at most about 150 columns."""

from __future__ import annotations

from collections.abc import Mapping

from git_scale.formatting import format_duration


def format_progress(step: int, total_steps: int, values: Mapping[str, float]) -> str:
    """A training step's line from the dict of `Meters.report`."""
    width = len(f"{total_steps:,}")
    parts = [
        f"step {step:>{width},}/{total_steps:,} {step / total_steps:6.1%}",
        f"loss {values['train/loss']:6.3f}",
        f"lr {' '.join(f'{rate:.1e}' for name, rate in values.items() if name.startswith('train/lr_'))}",
        f"grad {_short(values['train/grad_norm']):>5}",
        f"{_short(values['speed/images_per_s']):>5} img/s {_short(values['speed/tokens_per_s']):>5} tok/s",
        f"mfu {values['speed/mfu']:5.1%}",
        f"wait {values['data/wait_share']:4.0%}",
        f"{values['memory/peak_gib']:5.1f} GiB",
        f"left {format_duration(values['progress/eta_s'])}",
    ]
    return " | ".join(parts)


def format_values(step: int, values: Mapping[str, float]) -> str:
    """A line of any other scalars, as those of an evaluation."""
    return f"step {step:,} | " + " | ".join(f"{name} {value:.4g}" for name, value in values.items())


def _short(number: float) -> str:
    """Three or four digits and a unit: `9.87`, `986`, `12.3k`, `1.2M`."""
    if number >= 1e6:
        return f"{number / 1e6:.1f}M"
    if number >= 1e4:
        return f"{number / 1e3:.1f}k"
    return f"{number:.0f}" if number >= 100 else f"{number:.3g}"
