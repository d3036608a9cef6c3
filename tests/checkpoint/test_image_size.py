"""Another size of images is refused where the encoder would see a part of them, table of positions or none."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from git_scale.checkpoint.image_size import with_image_size
from git_scale.checkpoint.opened_checkpoint import OpenedCheckpoint
from git_scale.config import EncoderConfig, ModelConfig, RunConfig
from git_scale.errors import CheckpointError


@pytest.mark.parametrize(
    ("size", "words"),
    [(65, "nearest are 64 and 96"), (8, "nearest is 32"), (1_000_000, "at most 4096 pixels"), (96, "")],
)
def test_without_a_table_of_positions(size: int, words: str, tmp_path: Path) -> None:
    encoder = EncoderConfig(name="resnet18", image_size=64, options={"layers": [1, 1, 1, 1]})
    run = RunConfig(model=ModelConfig(encoder=encoder))
    no_weights: Any = SimpleNamespace(shapes={}, dropped={})
    opened = OpenedCheckpoint("native", tmp_path, run, None, no_weights, None)
    if words:
        with pytest.raises(CheckpointError, match=f"image size {size}: .*{words}"):
            with_image_size(opened, size)
    else:
        assert with_image_size(opened, size).run.model.encoder.image_size == size
