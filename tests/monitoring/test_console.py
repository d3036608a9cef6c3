"""The console line, word for word."""

from __future__ import annotations

import math

from git_scale.monitoring.console import format_progress, format_values

VALUES = {
    "train/loss": 2.34567,
    "train/grad_norm": 0.871,
    "train/lr_encoder": 1e-5,
    "train/lr_decoder": 5e-5,
    "speed/images_per_s": 986.4,
    "speed/tokens_per_s": 12_345.0,
    "speed/mfu": 0.4123,
    "data/wait_share": 0.031,
    "memory/peak_gib": 12.34,
    "progress/eta_s": 93_784.0,
}


def test_progress_line() -> None:
    assert format_progress(1200, 10_000, VALUES) == (
        "step  1,200/10,000  12.0% | loss  2.346 | lr 1.0e-05 5.0e-05 | grad 0.871"
        " |   986 img/s 12.3k tok/s | mfu 41.2% | wait   3% |  12.3 GiB | left 1d 02h"
    )


def test_lines_align_and_fit() -> None:
    extreme = VALUES | {
        "train/loss": 10.3,
        "train/grad_norm": 123.456,
        "speed/images_per_s": 1.234567,
        "speed/tokens_per_s": 2_345_678.0,
        "speed/mfu": 0.004,
        "data/wait_share": 1.0,
        "memory/peak_gib": 138.9,
        "progress/eta_s": 59.6,
    }
    usual, odd = format_progress(9, 1_000_000, VALUES), format_progress(1_000_000, 1_000_000, extreme)
    positions = [[i for i, letter in enumerate(line) if letter == "|"] for line in (usual, odd)]
    assert positions[0] == positions[1]
    assert max(len(usual), len(odd)) <= 155  # 149 at 10,000 steps
    assert "nan" in format_progress(1, 10, VALUES | {"train/loss": math.nan})


def test_line_of_other_values() -> None:
    line = format_values(1000, {"eval/exact_match": 0.93751, "eval/loss": 1.5})
    assert line == "step 1,000 | eval/exact_match 0.9375 | eval/loss 1.5"
