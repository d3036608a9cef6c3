"""Which checkpoints a run goes on from, keeps, deletes and sets aside, when some are damaged or somebody else's."""

from __future__ import annotations

import json
import os
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from git_scale.checkpoint import layout
from git_scale.checkpoint.layout import rank_file, step_name
from git_scale.checkpoint.weights import check_files
from git_scale.errors import CheckpointError, UserError
from git_scale.files import digest
from git_scale.parallel.topology import Topology
from git_scale.testing.distributed import run_distributed
from git_scale.testing.tiny import load_weights, tiny_run, write_squares
from git_scale.upgrades import VERSION

GOLDEN = Path(__file__).parent / "data" / "run_format_1.tar.gz"


def train(
    topology: Topology,
    device: torch.device,
    squares: Path,
    run_dir: Path,
    until: int,
    keep: int = 9,
    meanwhile: Callable[[Path, int], None] = lambda *_: None,
) -> tuple[int, list[bool]] | str:
    """The step it goes on from and whether each step up to `until` was saved; or what the user is told."""
    from git_scale.training.build import build_trainer

    run = tiny_run(squares, run_dir, train={"micro_batch": 4, "steps": 100}, checkpoint={"keep": keep})
    try:
        trainer = build_trainer(run, {"zero_optimization": {"stage": 1}}, topology, device)
    except UserError as error:
        return str(error)
    first, saved = trainer.step, []
    while trainer.step < until:
        trainer.train_step()
        trainer.step += 1
        saved.append(trainer.save())
        meanwhile(run_dir, trainer.step)
    return first, saved


def go_on(*args: Any) -> tuple[int, list[bool]] | str:
    (answer,) = run_distributed(train, 1, *args)
    return answer


@pytest.fixture(scope="module")
def four(squares: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run_dir = tmp_path_factory.mktemp("four") / "run"
    assert go_on(squares, run_dir, 4) == (0, [True] * 4)
    return run_dir


@pytest.fixture
def run_dir(four: Path, tmp_path: Path) -> Path:
    """A fresh copy of a run with checkpoints at steps 1 to 4."""
    return Path(shutil.copytree(four, tmp_path / "run"))


def at(run_dir: Path, step: int) -> Path:
    return run_dir / "checkpoints" / step_name(step)


def names(run_dir: Path) -> set[str]:
    return {path.name for path in (run_dir / "checkpoints").iterdir()}


def steps(*numbers: int) -> set[str]:
    return set(map(step_name, numbers))


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def damage(run_dir: Path, *numbers: int) -> None:
    for step in numbers:
        flip(at(run_dir, step) / "state" / rank_file(0))


def manifest_of(checkpoint: Path, change: Callable[[list[dict[str, Any]]], object]) -> None:
    tree = json.loads((checkpoint / layout.MANIFEST).read_text())
    change(tree["files"])
    (checkpoint / layout.MANIFEST).write_text(json.dumps(tree))


@pytest.mark.distributed
def test_a_damaged_checkpoint_is_set_aside_and_its_step_written_anew(
    four: Path, squares: Path, run_dir: Path
) -> None:
    damage(run_dir, 4)
    broken = (at(run_dir, 4) / "state" / rank_file(0)).read_bytes()
    assert go_on(squares, run_dir, 4) == (3, [True])
    assert names(run_dir) == steps(1, 2, 3, 4) | {"set_aside_step_00000004"}
    aside = run_dir / "checkpoints" / "set_aside_step_00000004"
    assert (aside / "state" / rank_file(0)).read_bytes() == broken, "nothing is deleted"
    again, undisturbed = load_weights(at(run_dir, 4)), load_weights(at(four, 4))
    assert all(torch.equal(again[name], tensor) for name, tensor in undisturbed.items())
    assert go_on(squares, run_dir, 5) == (4, [True])


@pytest.mark.distributed
def test_whole_checkpoints_alone_count(squares: Path, run_dir: Path) -> None:
    """Steps 3 and 4 damaged, in two ways: what is new is kept, and so is the last good one."""
    damage(run_dir, 3)
    (at(run_dir, 4) / layout.MANIFEST).write_text("{")
    assert go_on(squares, run_dir, 2, 2) == (2, []), "the newest whole one"
    assert names(run_dir) == steps(1, 2) | {"set_aside_step_00000003", "set_aside_step_00000004"}
    assert go_on(squares, run_dir, 4, 2) == (2, [True, True])
    assert names(run_dir) >= steps(3, 4) and not names(run_dir) & steps(1, 2)


def flip_three_and_four(run_dir: Path, step: int) -> None:
    if step in (3, 4):
        damage(run_dir, step)


@pytest.mark.distributed
def test_what_is_damaged_while_the_run_goes_on_does_not_count(squares: Path, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    assert go_on(squares, run_dir, 5, 2, flip_three_and_four) == (0, [True] * 5)
    assert names(run_dir) == steps(2, 3, 4, 5), "2 is the last whole one but the newest"
    assert go_on(squares, run_dir, 6, 2) == (5, [True])
    assert names(run_dir) == steps(5, 6)


@pytest.mark.distributed
def test_what_no_run_wrote_is_neither_deleted_nor_in_the_way(
    squares: Path, run_dir: Path, tmp_path: Path
) -> None:
    folder = run_dir / "checkpoints"
    shutil.copytree(at(run_dir, 2), at(run_dir, 80))  # a user's copy under another step's name
    at(run_dir, 70).write_text("a file")
    at(run_dir, 60).symlink_to(tmp_path / "nowhere")
    at(run_dir, 50).mkdir()
    (at(run_dir, 50) / "thesis.tex").write_text("dear")
    (at(run_dir, 1) / "notes.txt").write_text("the best one for figure 3")
    at(run_dir, 3).rename(tmp_path / "moved")
    at(run_dir, 3).symlink_to(tmp_path / "moved")
    shutil.copytree(at(run_dir, 2), at(run_dir, 6))  # in the way of a step to come
    (folder / "best_so_far").mkdir()
    assert go_on(squares, run_dir, 7, 2) == (4, [True] * 3)
    theirs = steps(80, 70, 60, 50, 1, 3) | {"best_so_far", "set_aside_step_00000006"}
    assert names(run_dir) == theirs | steps(6, 7)
    assert (at(run_dir, 1) / "notes.txt").is_file() and (at(run_dir, 50) / "thesis.tex").is_file()
    assert check_files(tmp_path / "moved") and check_files(at(run_dir, 80))


@pytest.mark.distributed
def test_a_copied_state_file_beside_the_listed_ones_is_named_and_not_read(
    squares: Path, run_dir: Path
) -> None:
    shutil.copy(at(run_dir, 2) / "state" / rank_file(0), at(run_dir, 4) / "state" / rank_file(7))
    message = go_on(squares, run_dir, 5)
    assert "state/rank_00007.safetensors is not in manifest.json" in str(message)
    with pytest.raises(CheckpointError, match=r"rank_00007\.safetensors is not in manifest\.json"):
        load_weights(at(run_dir, 4))
    (at(run_dir, 4) / "state" / rank_file(7)).write_bytes(b"junk")
    assert "rank_00007.safetensors is not in manifest.json" in str(go_on(squares, run_dir, 5))
    assert names(run_dir) == steps(1, 2, 3, 4), "nothing is set aside"


@pytest.mark.distributed
@pytest.mark.parametrize("lacking", ["config.yaml", "progress.json", rank_file(0), f"state/{rank_file(0)}"])
def test_a_manifest_that_lists_too_little_is_passed_over(squares: Path, run_dir: Path, lacking: str) -> None:
    manifest_of(at(run_dir, 4), lambda files: files.remove(next(f for f in files if f["name"] == lacking)))
    (at(run_dir, 4) / lacking).unlink()
    with pytest.raises(CheckpointError):
        load_weights(at(run_dir, 4))
    assert go_on(squares, run_dir, 4) == (3, [True])
    assert check_files(at(run_dir, 4))


@pytest.mark.distributed
def test_a_checkpoint_of_a_later_git_scale_is_not_damaged(squares: Path, run_dir: Path) -> None:
    tree = json.loads((at(run_dir, 4) / layout.MANIFEST).read_text()) | {"version": 2}
    (at(run_dir, 4) / layout.MANIFEST).write_text(json.dumps(tree))
    assert "format 2, this git_scale reads 1" in str(go_on(squares, run_dir, 5))
    assert names(run_dir) == steps(1, 2, 3, 4)


@pytest.mark.distributed
def test_a_checkpoint_with_a_later_recipe_is_not_damaged(squares: Path, run_dir: Path) -> None:
    config = at(run_dir, 4) / layout.CONFIG
    text = config.read_text()
    assert text.startswith(f"version: {VERSION}\n")
    config.write_text(
        text.replace(f"version: {VERSION}", f"version: {VERSION + 1}").replace("tokenizer:", "words:")
    )
    entry = {"size": config.stat().st_size, "xxh3": digest(config).xxh3}
    manifest_of(at(run_dir, 4), lambda files: [f.update(entry) for f in files if f["name"] == layout.CONFIG])
    assert f"{config}: version={VERSION + 1}: written by a later git_scale" in str(go_on(squares, run_dir, 5))
    assert names(run_dir) == steps(1, 2, 3, 4)


@pytest.mark.distributed
def test_the_same_data_at_another_path_goes_on_and_other_data_does_not(
    squares: Path, run_dir: Path, tmp_path: Path
) -> None:
    scratch = Path(shutil.copytree(squares, tmp_path / "scratch" / "disk"))
    assert go_on(scratch, run_dir, 5) == (4, [True])
    relative = Path(os.path.relpath(scratch))
    assert go_on(relative, run_dir, 6) == (5, [True])
    recipe = (run_dir / "config.yaml").read_bytes()
    shard = scratch / "train" / "squares-000000.tar"
    content = shard.read_bytes()
    assert content.count(b"a small red square") > 0
    shard.write_bytes(content.replace(b"a small red square", b"a small tan square"))
    answer = str(go_on(scratch, run_dir, 7))
    assert "cannot be resumed with these settings (training data: other texts or images" in answer
    assert (run_dir / "config.yaml").read_bytes() == recipe
    shutil.rmtree(scratch / "train")
    write_squares(scratch / "train", 44)
    assert "cannot be resumed with these settings (training data: other shards" in str(
        go_on(scratch, run_dir, 7)
    )


def resume_golden(topology: Topology, device: torch.device, data: Path, run_dir: Path) -> tuple[int, float]:
    import yaml

    from git_scale.config import RunConfig
    from git_scale.training.build import build_trainer

    tree = yaml.safe_load((run_dir / "config.yaml").read_text())
    tree["run_dir"] = str(run_dir)
    tree["data"] |= {"train": str(data / "train"), "heldout": str(data / "heldout")}
    tree["data"]["tokenizer"] = str(run_dir / "vocab.txt")
    run = RunConfig.model_validate(tree)
    trainer = build_trainer(run, {"zero_optimization": {"stage": 2}}, topology, device)
    return trainer.step, trainer.train_step().loss


@pytest.mark.distributed
def test_a_run_of_the_first_format_goes_on(squares: Path, tmp_path: Path) -> None:
    """Written before manifests were held to be complete; the loss is the one that followed then."""
    with tarfile.open(GOLDEN) as archive:
        archive.extractall(tmp_path, filter="data")
    for step, loss in run_distributed(resume_golden, 2, squares, tmp_path / "run"):
        assert step == 2
        assert loss == pytest.approx(2.3092755675315857, rel=1e-5)
    assert digest(tmp_path / "run" / "checkpoints" / step_name(2) / "progress.json").size == 222
