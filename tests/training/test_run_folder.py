"""A run's folder belongs to one run."""

from __future__ import annotations

import dataclasses
import errno
import os
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from git_scale.config import RunConfig
from git_scale.errors import ConfigError, UserError
from git_scale.processes import find_process
from git_scale.recipes import load_run
from git_scale.training import lease
from git_scale.training.init_model import inherited_from
from git_scale.training.run_folder import (
    as_begun,
    check_run_folder,
    claim_run_folder,
    keep_tokenizer,
    renew_recipe,
)


def a_run(folder: Path, *overrides: str) -> RunConfig:
    return load_run("demo", [f"run_dir={folder}", *overrides])


def refusals(run: RunConfig) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        claim_run_folder(run)
    return caught.value.problems


def test_a_new_folder_is_made_and_holds_the_whole_recipe(tmp_path: Path) -> None:
    run = a_run(tmp_path / "runs" / "new")
    claim_run_folder(run).release()
    config = tmp_path / "runs" / "new" / "config.yaml"
    assert load_run(str(config)) == run
    assert list(config.parent.iterdir()) == [config]


def test_an_empty_folder_is_taken(tmp_path: Path) -> None:
    claim_run_folder(a_run(tmp_path))
    assert (tmp_path / "config.yaml").is_file()


def test_the_same_command_goes_on(tmp_path: Path) -> None:
    run = a_run(tmp_path)
    claim_run_folder(run)
    (tmp_path / "metrics.jsonl").write_text("{}")
    claim_run_folder(run)
    assert (tmp_path / "metrics.jsonl").read_text() == "{}"


@pytest.mark.parametrize(
    "override",
    [
        "train.steps=2000",
        "train.objectives={masked_lm: 0.5}",
        "optimizer.encoder_lr=1e-4",
        "train.global_batch=64",
        "checkpoint.every=10",
        "data.workers=0",
        "data.heldout=null",
        "data.train=elsewhere",  # its content decides, once there is a checkpoint
    ],
)
def test_a_run_may_go_on_in_another_way_which_is_said(
    tmp_path: Path, override: str, caplog: pytest.LogCaptureFixture
) -> None:
    claim_run_folder(a_run(tmp_path))
    changed = a_run(tmp_path, override)
    claim_run_folder(changed)
    with caplog.at_level("INFO"):
        renew_recipe(changed)
        renew_recipe(changed)  # nothing is new any more
    (said,) = caplog.messages
    assert re.match(rf"from here on: {override.partition('=')[0]}[.\w]*=.+ \(was ", said)
    assert load_run(str(tmp_path / "config.yaml")) == changed


@pytest.mark.parametrize(
    ("override", "difference"),
    [
        ("seed=7", "seed=7, but {} is a run with 0"),
        ("model.decoder.layers=3", "model.decoder.layers=3, but {} is a run with 2"),
        ("model.encoder.options.stem_width=4", "model.encoder.options.stem_width=4, but {} is a run with 16"),
        (
            "model.encoder.options.ls_init_value=1",
            "model.encoder.options.ls_init_value=1, but {} is a run with None",
        ),
        ("data.task=vqa", "data.task='vqa', but {} is a run with 'caption'"),
        ("data.resize=pad", "data.resize='pad', but {} is a run with 'crop'"),
        ("data.texts_per_image=2", "data.texts_per_image=2, but {} is a run with 1"),
        ("train.freeze=[encoder.*]", "train.freeze=['encoder.*'], but {} is a run with []"),
        ("init_from=elsewhere", "init_from='elsewhere', but {} is a run with None"),
        ("data.max_text_tokens=20", "data.max_text_tokens=20, but {} is a run with 24"),
    ],
)
def test_another_run_is_refused_by_its_difference(tmp_path: Path, override: str, difference: str) -> None:
    claim_run_folder(a_run(tmp_path))
    before = (tmp_path / "config.yaml").read_bytes()
    assert refusals(a_run(tmp_path, override)) == [
        difference.format(tmp_path) + ": use that, or another run_dir"
    ]
    assert (tmp_path / "config.yaml").read_bytes() == before


def test_the_same_start_by_another_path_is_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    claim_run_folder(a_run(tmp_path / "run").model_copy(update={"init_from": "model"}))
    (tmp_path / "model").mkdir()
    (tmp_path / "link").symlink_to("model")
    for path in (tmp_path / "model", "./link", tmp_path / "run" / ".." / "model"):
        claim_run_folder(a_run(tmp_path / "run").model_copy(update={"init_from": str(path)}))
    with pytest.raises(ConfigError, match="is a run with"):
        claim_run_folder(a_run(tmp_path / "run").model_copy(update={"init_from": "other"}))


def test_a_full_disk_is_one_message_and_none_where_nothing_is_to_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    claim_run_folder(a_run(tmp_path))
    monkeypatch.setattr("git_scale.files.os.fsync", _no_space)
    renew_recipe(a_run(tmp_path))
    with pytest.raises(ConfigError, match=r"cannot be written: \[Errno 28\] No space left"):
        renew_recipe(a_run(tmp_path, "train.steps=2000"))
    assert "cannot be written: [Errno 28] No space left" in refusals(a_run(tmp_path / "new"))[0]


def _no_space(_: int) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_run_that_has_begun_keeps_the_start_of_its_encoder(tmp_path: Path) -> None:
    claim_run_folder(a_run(tmp_path, "model.encoder.start=models/clip"))
    assert as_begun(a_run(tmp_path)).model.encoder.start == "scratch", (
        "without a checkpoint it can still be another"
    )
    claim_run_folder(a_run(tmp_path, "model.encoder.start=models/clip"))
    (tmp_path / "checkpoints" / "step_00000001" / "state").mkdir(parents=True)
    going_on = as_begun(a_run(tmp_path, "model.encoder.start=/moved/clip"))
    assert going_on == a_run(tmp_path, "model.encoder.start=models/clip")
    claim_run_folder(going_on)


@pytest.mark.parametrize("pretrained", [False, True])
def test_a_run_with_the_older_switch_goes_on(tmp_path: Path, pretrained: bool) -> None:
    claim_run_folder(a_run(tmp_path))
    config = tmp_path / "config.yaml"
    text = config.read_text().partition("\n")[2]  # of the time before there were versions
    config.write_text(text.replace("start: scratch", f"pretrained: {str(pretrained).lower()}"))
    (tmp_path / "checkpoints" / "step_00000001" / "state").mkdir(parents=True)
    run = as_begun(a_run(tmp_path, "model.encoder.start=models/clip"))
    assert run.model.encoder.start == ("timm" if pretrained else "scratch")
    claim_run_folder(run)


def test_all_differences_are_reported_at_once(tmp_path: Path) -> None:
    claim_run_folder(a_run(tmp_path))
    problems = refusals(a_run(tmp_path, "seed=7", "model.decoder.heads=2", "data.texts_per_image=2"))
    assert [problem.partition("=")[0] for problem in problems] == [
        "seed",
        "model.decoder.heads",
        "data.texts_per_image",
    ]


def test_a_folder_with_other_things_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("dear")
    assert refusals(a_run(tmp_path)) == [
        f"run_dir={tmp_path}: exists, but is not the folder of a run: choose another one"
    ]
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_file_is_no_folder(tmp_path: Path) -> None:
    path = tmp_path / "run"
    path.write_text("a file")
    assert "is not the folder of a run" in refusals(a_run(path))[0]
    assert path.read_text() == "a file"


@pytest.mark.parametrize("check", [check_run_folder, claim_run_folder])
def test_a_place_where_no_folder_can_be_made(tmp_path: Path, check: Callable[[RunConfig], object]) -> None:
    file = tmp_path / "file"
    file.write_text("")
    for place, words in ((file / "run", "Not a directory"), (Path("/proc/run"), "/proc: ")):
        with pytest.raises(ConfigError, match=f"run_dir={place}: cannot be written: .*{words}"):
            check(a_run(place))
    check_run_folder(a_run(tmp_path / "new" / "run"))
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_the_tokenizers_copy_follows_a_corrected_file_until_there_is_a_checkpoint(tmp_path: Path) -> None:
    source, run_dir = tmp_path / "words.model", tmp_path / "run"
    run = RunConfig.model_validate({"run_dir": str(run_dir), "data": {"tokenizer": str(source)}})
    run_dir.mkdir()
    source.write_bytes(b"wrong")
    copy = keep_tokenizer(run)
    assert copy == run_dir / "words.model"
    source.write_bytes(b"right")
    assert keep_tokenizer(run).read_bytes() == b"right"
    (run_dir / "checkpoints" / "step_00000001" / "state").mkdir(parents=True)
    source.write_bytes(b"another")
    assert keep_tokenizer(run).read_bytes() == b"right"
    own = RunConfig.model_validate({"run_dir": str(run_dir), "data": {"tokenizer": str(copy)}})
    source.unlink()
    assert keep_tokenizer(own).read_bytes() == b"right"


def test_a_second_start_of_the_same_run_is_refused_while_the_first_is_at_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    claim_run_folder(a_run(tmp_path)).release()
    before = (tmp_path / "config.yaml").read_bytes()
    parent = find_process(os.getppid())
    assert parent is not None
    other = dataclasses.replace(lease.this_holder(), pid=parent.pid, started=parent.started, host="n7")
    (tmp_path / lease.LEASE).write_bytes(other.to_bytes())
    monkeypatch.setattr(lease, "WAIT_S", 0.0)
    with pytest.raises(UserError, match=f"held by another start: process {parent.pid} on n7, since"):
        claim_run_folder(a_run(tmp_path, "log.every=7"))
    assert (tmp_path / "config.yaml").read_bytes() == before


def test_a_start_that_was_killed_before_it_wrote_the_recipe_can_be_repeated(tmp_path: Path) -> None:
    dead = dataclasses.replace(lease.this_holder(), started=1)
    (tmp_path / lease.LEASE).write_bytes(dead.to_bytes())
    claim_run_folder(a_run(tmp_path)).release()
    assert (tmp_path / "config.yaml").is_file()


@pytest.mark.parametrize("content", ["", "model: 3\n", "a: [", "model: {}\ntrain: {}\n"])
def test_a_damaged_recipe_is_named_with_the_copy_to_take(tmp_path: Path, content: str) -> None:
    run = a_run(tmp_path)
    claim_run_folder(run).release()
    copy = tmp_path / "checkpoints" / "step_00000010" / "config.yaml"
    copy.parent.mkdir(parents=True)
    (copy.parent / "manifest.json").touch()
    copy.write_text(run.to_yaml())
    (tmp_path / "config.yaml").write_text(content)
    (problem,) = refusals(run)
    assert problem.startswith(f"{tmp_path / 'config.yaml'}: damaged")
    assert problem.endswith(f"copy {copy} over it, or choose another run_dir")
    with pytest.raises(ConfigError, match="damaged"):
        inherited_from("gone", str(tmp_path))
