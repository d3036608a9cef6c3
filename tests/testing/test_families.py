"""A sixth of timm's families through training, checkpoint, export and import; `make sweep` takes them all."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from git_scale.testing.distributed import run_distributed
from git_scale.testing.families import SAME, FamilyResult, try_families
from git_scale.testing.tiny_encoders import SLOW, families

# with buffers that no checkpoint holds, and the one that transformers has
ALWAYS = {"eva", "swin_transformer", "vision_transformer"}


def a_sixth() -> list[str]:
    names = families()
    quick = [name for name in names if name not in SLOW]
    return sorted({*random.Random(0).sample(quick, len(names) // 6), *ALWAYS})


@pytest.mark.distributed
def test_a_sixth_of_timms_families_keep_their_features(squares: Path, tmp_path: Path) -> None:
    (results,) = run_distributed(try_families, 1, squares, tmp_path, a_sixth())
    assert [result for result in results if not result.is_right] == []
    by_name: dict[str, FamilyResult] = {result.family: result for result in results}
    assert all(by_name[name].outcome == SAME for name in ALWAYS)
    assert by_name["eva"].computed_buffers and by_name["swin_transformer"].computed_buffers
    assert by_name["vision_transformer"].huggingface
    refused = [result for result in results if result.outcome != SAME]
    assert len(refused) < len(results) / 4, refused


@pytest.mark.distributed
def test_a_family_without_tokens_or_grid_is_refused_at_the_start(squares: Path, tmp_path: Path) -> None:
    names = ["efficientvim", "crossvit"]
    (results,) = run_distributed(try_families, 1, squares, tmp_path, names)
    assert "model.encoder" in results[0].outcome
    assert "timm refuses 'crossvit_tiny_240'" in results[1].outcome
    assert all(result.outcome.startswith("refused: ") for result in results)
