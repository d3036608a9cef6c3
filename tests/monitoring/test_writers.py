"""What the writers leave behind, read back; resuming; closing."""

from __future__ import annotations

import json
import logging
import math
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from git_scale.monitoring.writers import (
    ConsoleWriter,
    JsonlWriter,
    NullWriter,
    PictureFolder,
    TensorBoardWriter,
    WriterGroup,
    build_writers,
)


def read_events(folder: Path) -> EventAccumulator:
    events = EventAccumulator(str(folder), size_guidance={"images": 0, "scalars": 0, "tensors": 0})
    events.Reload()
    return events


def read_lines(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_tensorboard_scalars_pictures_and_texts(tmp_path: Path) -> None:
    writer = TensorBoardWriter(tmp_path, purge_step=1)
    writer.scalars(3, {"train/loss": 2.5, "speed/mfu": 0.25})
    writer.pictures(3, "eval/captions", Image.new("RGB", (6, 4), (255, 0, 0)))
    writer.text(3, "eval/caption", "two dogs")
    writer.close()
    events = read_events(tmp_path)
    assert [(event.step, event.value) for event in events.Scalars("train/loss")] == [(3, 2.5)]
    assert [(event.step, event.value) for event in events.Scalars("speed/mfu")] == [(3, 0.25)]
    (picture,) = events.Images("eval/captions")
    assert (picture.step, picture.width, picture.height) == (3, 6, 4)
    (text,) = events.Tensors("eval/caption/text_summary")
    assert text.tensor_proto.string_val[0] == b"two dogs"


@pytest.mark.parametrize(("purge_step", "survivors"), [(3, [1.0, 2.0, 30.0, 40.0]), (2, [1.0, 30.0, 40.0])])
def test_tensorboard_forgets_what_a_resume_does_again(
    tmp_path: Path, purge_step: int, survivors: list[float]
) -> None:
    first = TensorBoardWriter(tmp_path, purge_step=1)
    for step in (1, 2, 3, 4):
        first.scalars(step, {"train/loss": float(step)})
    first.close()
    second = TensorBoardWriter(tmp_path, purge_step=purge_step)
    for step in (3, 4):
        second.scalars(step, {"train/loss": 10.0 * step})
    second.close()
    assert [event.value for event in read_events(tmp_path).Scalars("train/loss")] == survivors


def test_jsonl_lines(tmp_path: Path) -> None:
    writer = JsonlWriter(tmp_path / "run" / "metrics.jsonl", resume_step=0)
    writer.scalars(1, {"train/loss": 2.5, "train/grad_norm": math.inf})
    writer.text(1, "eval/caption", 'a "dog"\nand a cat')
    lines = read_lines(tmp_path / "run" / "metrics.jsonl")  # before close: a run that dies has its lines
    writer.close()
    assert [isinstance(line.pop("time"), float) for line in lines] == [True, True]
    assert lines == [
        {"step": 1, "train/loss": 2.5, "train/grad_norm": None},
        {"step": 1, "eval/caption": 'a "dog"\nand a cat'},
    ]


def test_jsonl_drops_later_and_broken_lines_on_resume(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text(
        '{"step": 1, "a": 1}\n{"step": 2, "a": 2}\n{"step": 3, "a": 3}\n{"step": 2, "a"', encoding="utf-8"
    )
    with caplog.at_level(logging.WARNING):
        writer = JsonlWriter(path, resume_step=2)
    assert "dropped 1 lines" in caplog.text
    writer.scalars(3, {"a": 30.0})
    writer.close()
    assert [(line["step"], line["a"]) for line in read_lines(path)] == [(1, 1), (2, 2), (3, 30.0)]
    assert [file.name for file in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_a_failed_rewrite_leaves_the_old_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"step": 9}\n', encoding="utf-8")
    before = path.read_bytes()

    def fail(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("git_scale.files.os.fsync", fail)
    with pytest.raises(OSError, match="disk full"):
        JsonlWriter(path, resume_step=1)
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_console_tells_progress_from_other_values() -> None:
    lines: list[str] = []
    writer = ConsoleWriter(10, lines.append)
    writer.scalars(5, {"eval/exact_match": 0.5})
    writer.text(5, "eval/caption", "two dogs")
    writer.pictures(5, "eval/captions", Image.new("RGB", (2, 2)))
    assert lines == ["step 5 | eval/exact_match 0.5", "step 5 eval/caption: two dogs"]
    with pytest.raises(KeyError, match="lr_encoder"):  # a line of training is formatted as one
        writer.scalars(5, {"train/loss": 1.0})


def test_picture_folder_keeps_pixels(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    PictureFolder(tmp_path / "pictures").pictures(100, "eval/captions", Image.fromarray(pixels))
    assert [file.name for file in (tmp_path / "pictures").iterdir()] == ["step_00000100.png"]
    with Image.open(tmp_path / "pictures" / "step_00000100.png") as picture:
        assert np.array_equal(np.array(picture), pixels)


def test_a_group_closes_all_even_when_one_fails() -> None:
    class Recorder(NullWriter):
        def __init__(self, fails: bool) -> None:
            self.fails, self.seen = fails, []

        def scalars(self, step: int, values: dict[str, float]) -> None:
            self.seen.append(("scalars", step))

        def close(self) -> None:
            self.seen.append(("close", 0))
            if self.fails:
                raise OSError("gone")

    writers = [Recorder(False), Recorder(True), Recorder(False)]
    group = WriterGroup(writers)
    group.scalars(4, {})
    with pytest.raises(OSError, match="gone"):
        group.close()
    assert [writer.seen for writer in writers] == [[("scalars", 4), ("close", 0)]] * 3


def test_one_rank_writes_everything_and_the_others_nothing(tmp_path: Path) -> None:
    sheet = Image.new("RGB", (4, 4))
    for is_writer, folder in ((True, tmp_path / "first"), (False, tmp_path / "other")):
        writer = build_writers(folder, total_steps=10, is_writer=is_writer, resume_step=0)
        writer.scalars(1, {"eval/loss": 1.0})
        writer.pictures(1, "eval/captions", sheet)
        writer.text(1, "eval/caption", "two dogs")
        writer.close()
    assert not (tmp_path / "other").exists()
    assert sorted(file.name for file in (tmp_path / "first").iterdir()) == [
        "metrics.jsonl",
        "pictures",
        "tensorboard",
    ]


def test_a_resumed_run_has_each_step_once(tmp_path: Path) -> None:
    for resume_step in (0, 2):
        writer = build_writers(tmp_path, total_steps=4, is_writer=True, resume_step=resume_step)
        for step in range(resume_step + 1, 5):
            writer.scalars(step, {"eval/loss": float(resume_step)})
        writer.close()
    expected = [(1, 0.0), (2, 0.0), (3, 2.0), (4, 2.0)]
    assert [(line["step"], line["eval/loss"]) for line in read_lines(tmp_path / "metrics.jsonl")] == expected
    events = read_events(tmp_path / "tensorboard").Scalars("eval/loss")
    assert [(event.step, event.value) for event in events] == expected
