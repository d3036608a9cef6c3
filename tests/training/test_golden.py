"""Training computes what it computed when golden.json was written."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
from golden import DEGREES, FILE, TASKS, golden_curves, read_golden

from git_scale.testing.curves import assert_same_curve

STEPS = 6
TOLERANCE = 2e-4  # other processors round otherwise, and each step adds to it
WRITTEN_WITH = re.search(r"torch (\d+\.\d+)", json.loads(FILE.read_text(encoding="utf-8"))["machine"])[1]

pytestmark = pytest.mark.skipif(
    not torch.__version__.startswith(f"{WRITTEN_WITH}."),
    reason=f"the curves are of torch {WRITTEN_WITH}; other releases may draw other first weights (trunc_normal_)",
)


@pytest.mark.distributed
@pytest.mark.parametrize("tp", DEGREES)
@pytest.mark.parametrize("task", TASKS)
def test_losses_and_gradient_norms_are_the_golden_ones(
    squares: Path, tmp_path: Path, task: str, tp: int
) -> None:
    golden = read_golden()
    found = golden_curves(squares, tmp_path, task, tp, STEPS)
    assert len(found) == 4
    for name, curve in found.items():
        assert_same_curve(curve, golden[name][:STEPS], TOLERANCE)
        with pytest.raises(AssertionError):
            assert_same_curve([(loss, norm * 1.001) for loss, norm in curve], golden[name][:STEPS], TOLERANCE)
