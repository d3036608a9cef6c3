"""What a start would refuse, all at once, and that a dry run ends with the same code."""

from __future__ import annotations

import io
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import webdataset
from PIL import Image

from git_scale.models.build import build_encoder

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tools"))

import finetune  # noqa: E402
import pretrain  # noqa: E402

from git_scale.config import RunConfig  # noqa: E402
from git_scale.data.store import open_store  # noqa: E402
from git_scale.errors import ConfigError  # noqa: E402
from git_scale.testing.tiny import tiny_run  # noqa: E402
from git_scale.training.preflight import check_data, check_image_sizes  # noqa: E402


def write(run: RunConfig, folder: Path) -> str:
    path = folder / "recipe.yaml"
    path.write_text(run.to_yaml())
    return str(path)


def picture() -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (16, 16)).save(buffer, "PNG")
    return buffer.getvalue()


def shards(folder: Path, text: dict[str, Any], name: str = "png", count: int = 3) -> Path:
    folder.mkdir(parents=True)
    with webdataset.TarWriter(str(folder / "a-000000.tar"), encoder=False) as tar:
        for number in range(count):
            tar.write({"__key__": f"{number:03d}", name: picture(), "json": json.dumps(text).encode()})
    return folder


def refusal(run: RunConfig) -> str:
    heldout = [open_store(run.data.heldout)] if run.data.heldout else []
    with pytest.raises(ConfigError) as caught:
        check_data(run, [open_store(run.data.train)], heldout)
    (problem,) = caught.value.problems
    return problem


def test_a_dry_run_of_what_could_start_ends_well(
    squares: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = write(tiny_run(squares, tmp_path / "run"), tmp_path)
    assert pretrain.main(["--config", recipe, "--dry-run"]) == 0
    assert (
        "train: 40 samples, task caption, 100 % of the run: 80 samples, 2 epochs" in capsys.readouterr().out
    )
    assert not (tmp_path / "run").exists()


def test_a_dry_run_names_held_out_data_as_the_log_will(
    squares: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sources = [{"path": str(squares / "train"), "heldout": str(squares / "heldout"), "task": "vqa"}]
    data = {"train": None, "sources": sources, "max_text_tokens": 8}
    recipe = write(tiny_run(squares, tmp_path / "run", data=data), tmp_path)
    assert pretrain.main(["--config", recipe, "--dry-run"]) == 0
    rows = [
        line.split(":")[1:] for line in capsys.readouterr().out.splitlines() if "held-out samples" in line
    ]
    assert [row[0].strip() for row in rows] == [
        "7 samples, task caption, logged as eval",
        "7 samples, task vqa, logged as eval/train",
    ]
    gone = f"data.sources=[{{path: {squares / 'train'}, heldout: {tmp_path / 'gone'}}}]"
    assert pretrain.main(["--config", recipe, "--dry-run", gone]) == 2
    printed = capsys.readouterr()
    assert f"{tmp_path / 'gone'} is not there" in printed.out
    assert f"data.sources[0].heldout={tmp_path / 'gone'}: no such folder" in printed.err


@pytest.mark.parametrize("mode", [["--dry-run"], []], ids=["dry run", "start"])
def test_everything_missing_is_named_at_once_with_the_code_of_a_start(
    mode: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tiny_run(tmp_path / "nowhere", tmp_path / "run", checkpoint={"best": "ciderr"})
    recipe = write(run, tmp_path)
    missing = ["model.encoder.start=models/clip", "--ds_config", str(tmp_path / "zero.json")]
    assert pretrain.main(["--config", recipe, *mode, *missing]) == 2
    errors = capsys.readouterr().err
    for words in (
        "6 problems",
        f"data.train={tmp_path / 'nowhere' / 'train'}: no such folder",
        f"data.heldout={tmp_path / 'nowhere' / 'heldout'}: no such folder",
        str(tmp_path / "nowhere" / "tokenizer.model"),
        "checkpoint.best='ciderr'",
        "model.encoder.start=models/clip: no such file or folder",
        "zero.json: no such file",
    ):
        assert words in errors, words
    assert not (tmp_path / "run").exists()


def test_a_dry_run_without_data_still_prints_its_plan(
    squares: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = write(tiny_run(squares, tmp_path / "run"), tmp_path)
    assert pretrain.main(["--config", recipe, "--dry-run", "data.train=elsewhere"]) == 2
    printed = capsys.readouterr()
    assert "elsewhere is not there" in printed.out and "plan for" in printed.out
    assert "data.train=elsewhere: no such folder of tar shards" in printed.err


def test_a_folder_above_holds_the_held_out_shards_too(
    squares: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = write(tiny_run(squares, tmp_path / "run"), tmp_path)
    assert pretrain.main(["--config", recipe, "--dry-run", f"data.train={squares}"]) == 2
    errors = capsys.readouterr().err
    assert f"data.heldout={squares / 'heldout'}: it is trained on (data.train={squares})" in errors


def test_a_missing_init_from_hides_nothing_else(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["--config", "finetune_caption", "--dry-run", f"init_from={tmp_path / 'gone'}", "train.stepz=3"]
    assert finetune.main([*command, f"data.train={tmp_path / 'none'}"]) == 2
    errors = capsys.readouterr().err
    for words in ("init_from: ", "train.stepz=3: unknown key", "data.train=", "data.heldout="):
        assert words in errors
    assert "data/tokenizer.model" not in errors, "that of init_from would be taken"
    assert finetune.main(["--config", "finetune_caption", "--dry-run"]) == 2
    assert "init_from is not set" in capsys.readouterr().err


def test_a_plan_for_other_machines_needs_nothing_of_this_one(capsys: pytest.CaptureFixture[str]) -> None:
    assert pretrain.main(["--config", "git_base", "--dry-run", "--world-size", "64"]) == 0
    assert capsys.readouterr().err.count("problem") == 0


def test_captions_for_questions_and_the_other_way_round(squares: Path, tmp_path: Path) -> None:
    captions = shards(tmp_path / "captions", {"captions": ["a square"]})
    questions = shards(tmp_path / "questions", {"questions": [{"question": "what?", "answers": ["red"]}]})
    asked = shards(tmp_path / "asked", {"questions": [{"question": "what?"}]})
    run = tiny_run(squares, tmp_path / "run", data={"train": str(captions), "task": "vqa", "heldout": None})
    problem = refusal(run)
    assert f"data.train={captions}: none of 3 samples looked at has questions with answers" in problem
    assert "they have captions: set data.task=caption" in problem
    assert "classification" not in problem and "scene_text" not in problem, "one task for what is there"
    run = tiny_run(squares, tmp_path / "run", data={"train": str(questions), "heldout": None})
    problem = refusal(run)
    assert "has captions, for data.task=caption" in problem and "set data.task=vqa" in problem
    both = {"train": str(squares / "train"), "heldout": str(questions)}
    assert refusal(tiny_run(squares, tmp_path / "run", data=both)).startswith(
        f"data.heldout={questions}: none of 3"
    )
    fits = {"train": str(questions), "heldout": str(asked), "task": "vqa"}  # a test split has no answers
    check_data(tiny_run(squares, tmp_path / "run", data=fits), [open_store(questions)], [open_store(asked)])


def test_frames_that_are_not_there(squares: Path, tmp_path: Path) -> None:
    run = tiny_run(squares, tmp_path / "run", model={"frames": 2}, data={"heldout": None})
    assert "model.frames=2: set model.frames=1" in refusal(run)
    clips = shards(tmp_path / "clips", {"captions": ["a square"]}, name="0.png")
    run = tiny_run(squares, tmp_path / "run", data={"train": str(clips), "heldout": None})
    assert "but frames of clips: set model.frames" in refusal(run)


def test_held_out_data_that_is_trained_on(squares: Path, tmp_path: Path) -> None:
    train = str(squares / "train")
    copy = shutil.copytree(train, tmp_path / "copy")  # the same content at another place
    link = tmp_path / "link"
    link.symlink_to(train)
    one = next(Path(train).glob("*.tar"))
    for heldout in (train, copy, link, one):
        run = tiny_run(squares, tmp_path / "run", data={"heldout": str(heldout)})
        assert "is trained on" in refusal(run) and "eval.on_training_data=true" in refusal(run)
        allowed = run.model_copy(update={"eval": run.eval.model_copy(update={"on_training_data": True})})
        check_data(allowed, [open_store(train)], [open_store(heldout)])


VIT = {"patch_size": 16, "embed_dim": 32, "depth": 1, "num_heads": 2}
SWIN = {"embed_dim": 16, "depths": [1, 1, 1, 1], "num_heads": [1, 2, 2, 2], "window_size": 4}
RESNET = {"layers": [1, 1, 1, 1], "channels": [8, 8, 8, 8]}


@pytest.mark.parametrize(
    ("name", "options", "size", "nearest"),
    [
        ("vit_tiny_patch16_224", {**VIT, "dynamic_img_size": True}, 65, "64 and 80"),
        ("vit_tiny_patch16_224", VIT, 65, "64 and 80"),
        ("swin_tiny_patch4_window7_224", SWIN, 72, "64 and 96"),
        ("resnet18", RESNET, 65, "64 and 96"),
        ("davit_tiny", {"depths": [1, 1], "embed_dims": [16, 32], "num_heads": [1, 2]}, 60, "56 and 64"),
    ],
)
def test_sizes_that_cut_a_token(
    name: str, options: dict[str, Any], size: int, nearest: str, squares: Path, tmp_path: Path
) -> None:
    encoder = {"name": name, "options": options, "image_size": size}
    run = tiny_run(squares, tmp_path / "run", model={"encoder": encoder}, data={"image_sizes": [size, 192]})
    with torch.device("meta"):
        built = build_encoder(run.model.encoder)
    with pytest.raises(ConfigError) as caught:
        check_image_sizes(run, built)
    assert [problem.partition("=")[0] for problem in caught.value.problems] == [
        "model.encoder.image_size",
        "data.image_sizes",
    ]
    assert all(problem.endswith(f"the nearest are {nearest}") for problem in caught.value.problems)
    fitting = tiny_run(squares, tmp_path / "run", model={"encoder": {**encoder, "image_size": 192}})
    check_image_sizes(fitting, built)


def test_a_published_size_is_taken_though_tokens_are_padded(squares: Path, tmp_path: Path) -> None:
    """LeViT's tokens stand for 64 pixels, and 224 is what it was trained on."""
    for size in (224, 200):
        encoder = {"name": "levit_128s", "image_size": size}
        run = tiny_run(squares, tmp_path / "run", model={"encoder": encoder}, data={"image_sizes": [size]})
        with torch.device("meta"):
            built = build_encoder(run.model.encoder)
        if size == 224:
            assert check_image_sizes(run, built)
        else:
            with pytest.raises(ConfigError, match="no multiple of the 64 pixels"):
                check_image_sizes(run, built)
