"""What the writers leave behind, read back; resuming; closing."""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import math
import resource
from collections.abc import Iterator
from io import FileIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from git_scale import files
from git_scale.monitoring.writers import (
    ConsoleWriter,
    JsonlWriter,
    NullWriter,
    PngWriter,
    TensorBoardWriter,
    WriterGroup,
    build_writers,
    read_evaluations,
)


def read_events(folder: Path) -> EventAccumulator:
    events = EventAccumulator(str(folder), size_guidance={"images": 0, "scalars": 0, "tensors": 0})
    events.Reload()
    return events


def read_lines(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_tensorboard_scalars_images_and_texts(tmp_path: Path) -> None:
    writer = TensorBoardWriter(tmp_path, purge_step=1)
    writer.scalars(3, {"train/loss": 2.5, "speed/mfu": 0.25})
    writer.pictures(3, "eval/captions", Image.new("RGB", (6, 4), (255, 0, 0)))
    writer.text(3, "eval/caption", "two dogs")
    writer.close()
    events = read_events(tmp_path)
    assert [(event.step, event.value) for event in events.Scalars("train/loss")] == [(3, 2.5)]
    assert [(event.step, event.value) for event in events.Scalars("speed/mfu")] == [(3, 0.25)]
    (image,) = events.Images("eval/captions")
    assert (image.step, image.width, image.height) == (3, 6, 4)
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


@contextlib.contextmanager
def no_file_longer_than(size: int) -> Iterator[None]:
    """A disk that takes a part of a write and then none: the operating system's own limit."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_failed_rewrite_leaves_the_old_lines_and_is_made_up_for(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"step": 9}\n', encoding="utf-8")
    before = path.read_bytes()
    with no_file_longer_than(5):
        writer = JsonlWriter(path, resume_step=1)
        writer.scalars(2, {"a": 2.0})
        assert path.read_bytes() == before
    assert caplog.text.count("cannot be written") == 1
    writer.scalars(3, {"a": 3.0})
    writer.close()
    assert [line["step"] for line in read_lines(path)] == [1, 2, 3]
    assert [file.name for file in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_lines_wait_for_a_full_disk_and_none_is_torn(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    writer = JsonlWriter(tmp_path / "metrics.jsonl", resume_step=0)
    writer.scalars(1, {"a": 1.0})
    length = (tmp_path / "metrics.jsonl").stat().st_size
    with no_file_longer_than(length + 7):  # seven bytes of the next line
        for step in (2, 3, 4):
            writer.scalars(step, {"a": float(step)})
        assert [line["step"] for line in read_lines(tmp_path / "metrics.jsonl")] == [1]
    writer.scalars(5, {"a": 5.0})
    writer.close()
    assert [line["step"] for line in read_lines(tmp_path / "metrics.jsonl")] == [1, 2, 3, 4, 5]
    assert caplog.text.count("cannot be written") == 1, "said once"
    assert "3 records had waited, 0 are lost" in caplog.text


def test_points_of_tensorboard_wait_for_a_full_disk(tmp_path: Path) -> None:
    writer = TensorBoardWriter(tmp_path, purge_step=1)
    writer.scalars(1, {"train/loss": 1.0})
    (file,) = tmp_path.iterdir()
    with no_file_longer_than(file.stat().st_size + 9):
        for step in range(2, 40):  # more than the queue of torch's writer holds
            writer.scalars(step, {"train/loss": float(step)})
            writer.pictures(step, "heldout", Image.new("RGB", (6, 4)))
    writer.scalars(40, {"train/loss": 40.0})
    writer.close()
    events = read_events(tmp_path)
    assert [event.step for event in events.Scalars("train/loss")] == list(range(1, 41))
    assert [event.step for event in events.Images("heldout")] == list(range(2, 40))


def test_a_disk_that_stays_full_ends_no_run_and_what_is_lost_is_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    group = build_writers(tmp_path, total_steps=10, is_writer=True, resume_step=0)
    with no_file_longer_than(3):
        for step in (1, 2, 3):
            group.scalars(step, {"eval/loss": 1.0})
            group.pictures(step, "heldout", Image.new("RGB", (4, 4)))
        group.close()
    assert "metrics.jsonl: 3 records could not be written and are lost" in caplog.text
    assert "pictures: 3 sheets could not be written and are lost" in caplog.text
    assert "tensorboard" in caplog.text
    assert list((tmp_path / "pictures").iterdir()) == []


def test_a_handle_that_went_stale_is_opened_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    writer = JsonlWriter(tmp_path / "metrics.jsonl", resume_step=0)
    failures = iter([OSError(errno.ESTALE, "Stale file handle")])

    class StaleOnce(FileIO):
        def write(self, data: Any) -> int:
            if failure := next(failures, None):
                raise failure
            return super().write(data)

    monkeypatch.setattr(files, "FileIO", StaleOnce)
    writer._file._let_go()  # the next record opens the file
    for step in (1, 2):
        writer.scalars(step, {"a": 1.0})
    writer.close()
    assert [line["step"] for line in read_lines(tmp_path / "metrics.jsonl")] == [1, 2]


def test_what_waits_is_bounded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(files, "WAITING", 25)
    file = files.AppendedFile(tmp_path / "log")
    with no_file_longer_than(0):
        for number in range(10):
            file.append(f"record {number}\n".encode())  # 9 bytes
    file.append(b"last\n")
    file.close()
    assert (tmp_path / "log").read_text() == "record 8\nrecord 9\nlast\n"
    assert "8 are lost" in caplog.text


def test_console_tells_progress_from_other_values() -> None:
    lines: list[str] = []
    writer = ConsoleWriter(10, lines.append)
    writer.scalars(5, {"eval/exact_match": 0.5})
    writer.text(5, "eval/caption", "two dogs")
    writer.pictures(5, "eval/captions", Image.new("RGB", (2, 2)))
    assert lines == ["step 5 | eval/exact_match 0.5", "step 5 eval/caption: two dogs"]
    with pytest.raises(KeyError, match="grad_norm"):  # a line of training is formatted as one
        writer.scalars(5, {"train/loss": 1.0})


def test_image_folder_keeps_pixels(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    PngWriter(tmp_path / "pictures").pictures(100, "heldout", Image.fromarray(pixels))
    assert [file.name for file in (tmp_path / "pictures").iterdir()] == ["step_00000100.png"]
    with Image.open(tmp_path / "pictures" / "step_00000100.png") as image:
        assert np.array_equal(np.array(image), pixels)


def test_sheets_of_one_step_have_a_file_for_each_name_and_stay_in_the_folder(tmp_path: Path) -> None:
    writer = PngWriter(tmp_path / "pictures")
    names = ["", "/coco/train", "/coco%2Ftrain", "/..", "/../coco", "/few:vqa"]
    for shade, name in enumerate(names):
        writer.pictures(3, f"heldout{name}", Image.new("L", (1, 1), shade))
    files = {
        "step_00000003.png",
        "step_00000003_coco%2Ftrain.png",
        "step_00000003_coco%252Ftrain.png",
        "step_00000003_...png",
        "step_00000003_..%2Fcoco.png",
        "step_00000003_few:vqa.png",
    }
    assert {path.relative_to(tmp_path / "pictures").as_posix() for path in tmp_path.rglob("*.png")} == files
    shades = [Image.open(path).getpixel((0, 0)) for path in (tmp_path / "pictures").iterdir()]
    assert sorted(shades) == list(range(len(names))), "none was overwritten"


def test_evaluations_are_told_from_other_lines(tmp_path: Path) -> None:
    lines = [
        {"step": 1, "train/loss": 1.0, "data/samples/images": 3},
        {"step": 2, "eval/images": 7.0},
        {"step": 2, "eval/finding": "over-fitting"},
        {"step": 3, "eval/coco/train/images": 7.0},
        {"step": 3, "eval/coco/train/finding": "over-fitting"},
        {"step": 4, "eval/books/loss": 2.0, "eval/books/perplexity": None},
    ]
    (tmp_path / "metrics.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    assert read_evaluations(tmp_path) == [lines[1], lines[3], lines[5]]


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
