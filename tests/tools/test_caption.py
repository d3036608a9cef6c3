"""tools/caption.py on a model that has learned to speak of coloured squares."""

from __future__ import annotations

import importlib.util
import io
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from git_scale import ImageToText
from git_scale.testing.subprocesses import started
from git_scale.testing.taught import write_taught
from git_scale.testing.tiny import COLOUR, COLOURS, SIDES, SIZE, describe, draw_square

TOOL = Path(__file__).parents[2] / "tools" / "caption.py"
SQUARES = [(colour, side) for colour in COLOURS for side in SIDES]


@pytest.fixture(scope="module")
def taught(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_taught(tmp_path_factory.mktemp("taught") / "model")


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    spec = importlib.util.spec_from_file_location("caption_tool", TOOL)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


Run = Callable[..., tuple[int, list[str], str]]


@pytest.fixture
def run(tool: ModuleType, taught: Path, capsys: pytest.CaptureFixture[str]) -> Run:
    """Exit code, lines of stdout, stderr."""

    def call(*arguments: str | Path) -> tuple[int, list[str], str]:
        code = tool.main(["--checkpoint", str(taught), "--device", "cpu", *map(str, arguments)])
        captured = capsys.readouterr()
        return code, captured.out.splitlines(), captured.err

    return call


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Forty files in three folders, whose names do not sort as they were written."""
    for number in range(40):
        path = tmp_path / "pictures" / ("b", "a", "a/deep")[number % 3] / f"{number:02d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(draw_square(*SQUARES[number % 12]))
    (tmp_path / "pictures" / "notes.txt").write_text("no image")
    return tmp_path / "pictures"


def expected(path: Path) -> str:
    return describe(*SQUARES[int(path.stem) % 12])


def test_a_folder_is_captioned_in_order_to_its_bottom(run: Run, pictures: Path) -> None:
    code, lines, errors = run(pictures)
    paths = sorted(pictures.rglob("*.png"))
    assert (code, errors) == (0, "")
    assert lines == [f"{path}: {expected(path)}" for path in paths] and len(lines) == 40


def test_files_and_addresses_in_the_order_given(run: Run, pictures: Path) -> None:
    odd = pictures / "with space.png"
    odd.write_bytes(draw_square("blue", "tiny"))
    (pictures / "UPPER.PNG").write_bytes(draw_square("black", "big"))
    last, first = pictures / "b" / "00.png", pictures / "a" / "01.png"
    _, lines, _ = run("--json", last, odd.as_uri(), first, f"file://localhost{first}", pictures / "UPPER.PNG")
    assert "%20" in odd.as_uri()
    assert [json.loads(line) for line in lines] == [
        {"image": str(last), "caption": expected(last)},
        {"image": odd.as_uri(), "caption": "a tiny blue square"},
        {"image": str(first), "caption": expected(first)},
        {"image": f"file://localhost{first}", "caption": expected(first)},
        {"image": str(pictures / "UPPER.PNG"), "caption": "a big black square"},
    ]


def test_questions(run: Run, pictures: Path) -> None:
    path, other = pictures / "b" / "00.png", pictures / "a" / "01.png"
    colour, side = SQUARES[0]
    _, lines, _ = run("--question", COLOUR, "--question", SIZE, path, other)
    assert lines[:2] == [f"{path}: {COLOUR} {colour}", f"{path}: {SIZE} {side}"] and len(lines) == 4
    _, lines, _ = run("--question", COLOUR, "--question", SIZE, "--json", "--beams", "1", path)
    answers = [{"question": COLOUR, "answer": colour}, {"question": SIZE, "answer": side}]
    assert [json.loads(line) for line in lines] == [{"image": str(path), "answers": answers}]


def test_bad_images_do_not_stop_the_others(run: Run, pictures: Path, tmp_path: Path) -> None:
    good = pictures / "b" / "00.png"
    broken, empty = pictures / "b" / "01.png", tmp_path / "empty"
    broken.write_bytes(draw_square("red", "big")[:60])
    empty.mkdir()
    bad = [str(broken), "missing.png", "https://example.org/a.jpg", "file://elsewhere/a.jpg", str(empty)]
    code, lines, errors = run(*bad, good, pictures / "notes.txt", "clip.mp4")
    assert code == 0 and lines == [f"{good}: {expected(good)}"]
    complaints = errors.splitlines()
    assert [line.partition(": ")[0] for line in complaints] == [*bad, str(pictures / "notes.txt"), "clip.mp4"]
    reasons = [
        "cannot be decoded",
        "No such file",
        "fetch it first",
        "copy it here",
        "no file in this folder",
    ]
    for line, reason in zip(complaints, [*reasons, "cannot be decoded", "one image at a time"], strict=True):
        assert reason in line
    assert complaints[0].count(str(broken)) == 1
    assert run(*bad)[0] == 2, "all failed"


def test_a_name_that_is_no_text(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "caf\udce9.png"
    path.write_bytes(draw_square("red", "big"))
    _, lines, _ = run(path)
    assert lines[0].endswith("caf\\udce9.png: a big red square")
    _, lines, _ = run("--json", path)
    assert json.loads(lines[0])["image"] == str(path)


@pytest.mark.parametrize("beams", ["0", "-2", "many", "1.5"])
def test_beams_that_are_none(run: Run, beams: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        run("--beams", beams, "a.png")
    assert end.value.code == 2 and "--beams" in capsys.readouterr().err


def test_names_that_lead_to_no_file_do_not_stop_the_others(
    run: Run, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HERE", str(pictures))
    monkeypatch.delenv("NOPE", raising=False)
    os.mkfifo(tmp_path / "pipe.jpg")
    reasons = {
        "http://[x": "fetch it first",
        "s3://bucket/a.jpg": "fetch it first",
        "//[1].jpg": "No such file",
        "~nobody_here/x.jpg": "nobody's home",
        "$NOPE/x.jpg": "$NOPE is not set",
        str(tmp_path / "pipe.jpg"): "a named pipe",
        "/dev/zero": "a device",
    }
    code, lines, errors = run(*reasons, "$HERE/b/00.png")
    assert code == 0 and lines == [f"$HERE/b/00.png: {expected(pictures / 'b' / '00.png')}"]
    for (name, reason), line in zip(reasons.items(), errors.splitlines(), strict=True):
        assert line.startswith(f"{name}: ") and reason in line


@pytest.mark.parametrize("device", ["mps", "meta", "xpu", "vulkan"])
def test_a_device_that_captions_nothing(
    tool: ModuleType, taught: Path, device: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert tool.main(["--checkpoint", str(taught), "--device", device, "a.png"]) == 2
    message = f"device={device}: torch cannot calculate there; use device=cpu\n"
    assert capsys.readouterr().err == message


def test_a_device_that_is_none(tool: ModuleType, taught: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert tool.main(["--checkpoint", str(taught), "--device", "gpu", "a.png"]) == 2
    assert capsys.readouterr().err == "device=gpu: no device of torch; cpu, cuda and cuda:0 are some\n"


def test_no_checkpoint_is_one_message(
    tool: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    assert tool.main(["--checkpoint", str(tmp_path), "a.png"]) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and str(tmp_path) in captured.err and "Traceback" not in captured.err


def test_progress_is_for_terminals(
    run: Run, pictures: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    assert "image" not in run(pictures / "b" / "00.png")[2]
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    _, lines, _ = run(pictures / "b" / "00.png")
    assert "1/1" in terminal.getvalue() and len(lines) == 1


def test_images_go_through_the_model_in_batches(
    run: Run, pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    batches: list[int] = []
    caption = ImageToText.caption

    def counting(self: ImageToText, images: list[Any], **options: Any) -> list[str]:
        batches.append(len(images))
        return caption(self, images, **options)

    monkeypatch.setattr(ImageToText, "caption", counting)
    assert len(run(pictures)[1]) == 40
    assert batches == [16, 16, 8]


def test_ctrl_c_is_clean(
    tool: ModuleType, taught: Path, pictures: Path, capsys: pytest.CaptureFixture
) -> None:
    def interrupt(*_: Any, **__: Any) -> list[str]:
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ImageToText, "caption", interrupt)
        assert tool.main(["--checkpoint", str(taught), "--device", "cpu", str(pictures)]) == 130
    assert capsys.readouterr().err == ""


def test_a_reader_that_leaves(taught: Path, pictures: Path) -> None:
    command = [sys.executable, str(TOOL), "--checkpoint", str(taught), "--device", "cpu", str(pictures)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with started(command, cwd=TOOL.parents[1], env=_environment(), **pipes) as process:
        process.stdout.close()
        errors = process.stderr.read().decode()
        assert process.wait(timeout=600) == 0 and "Traceback" not in errors and "Error" not in errors


def _environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(TOOL.parents[1]), "OMP_NUM_THREADS": "1"}
