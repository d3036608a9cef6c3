"""What counts as a checkpoint, and how damage is found."""

from __future__ import annotations

import errno
import json
import math
import shutil
from dataclasses import asdict
from pathlib import Path

import pytest

from git_scale.checkpoint import layout
from git_scale.checkpoint.layout import RunProgress
from git_scale.errors import CheckpointError
from git_scale.files import FileDigest, digest

PROGRESS = RunProgress(
    step=12,
    samples=768,
    tokens=9000,
    skipped_steps=1,
    skipped_samples=2,
    data_fingerprint="d1",
    tokenizer_fingerprint="t1",
    world_size=4,
    zero_stage=3,
)


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """A checkpoint of a run, two files and a manifest."""
    folder = layout.checkpoints_folder(tmp_path) / layout.step_name(12)
    (folder / layout.STATE_FOLDER).mkdir(parents=True)
    names = ["progress.json", "state/weights.bin"]
    (folder / names[0]).write_text(json.dumps(asdict(PROGRESS)))
    (folder / names[1]).write_bytes(bytes(range(256)) * 16)
    digests = [FileDigest(name, *measured(folder / name)) for name in names]
    (folder / layout.MANIFEST).write_text(layout.manifest_text(digests))
    return folder


def measured(path: Path) -> tuple[int, str]:
    found = digest(path)
    return found.size, found.xxh3


def damage(checkpoint: Path) -> str | None:
    return layout.first_damage(checkpoint, layout.read_manifest(checkpoint))


def test_names_sort_by_step() -> None:
    assert layout.step_name(100) == "step_00000100"
    assert layout.step_name(99) < layout.step_name(100) < layout.step_name(6_298_828)
    assert layout.rank_file(3) == "rank_00003.safetensors"


def test_a_manifest_round_trips() -> None:
    digests = [FileDigest("a.bin", 3, "0f"), FileDigest("state/b.bin", 1 << 40, "ff")]
    tree = json.loads(layout.manifest_text(digests))
    assert tree["version"] == layout.FORMAT_VERSION
    assert [FileDigest(**item) for item in tree["files"]] == digests


def test_a_manifest_is_read_back(checkpoint: Path) -> None:
    assert [item.name for item in layout.read_manifest(checkpoint)] == [
        "progress.json",
        "state/weights.bin",
    ]


def test_progress_is_read_back(checkpoint: Path) -> None:
    assert layout.read_progress(checkpoint) == PROGRESS


def test_a_whole_checkpoint_has_no_damage(checkpoint: Path) -> None:
    assert damage(checkpoint) is None
    (checkpoint / "notes.txt").write_text("a file that no manifest names does no harm")
    assert damage(checkpoint) is None


def test_a_missing_file_is_found(checkpoint: Path) -> None:
    (checkpoint / "state/weights.bin").unlink()
    assert damage(checkpoint) == "state/weights.bin is missing"


def test_a_truncated_file_is_found(checkpoint: Path) -> None:
    path = checkpoint / "state/weights.bin"
    path.write_bytes(path.read_bytes()[:-1])
    assert damage(checkpoint) == "state/weights.bin has 4095 bytes instead of 4096"


@pytest.mark.parametrize("position", [0, 2000, 4095])
def test_one_flipped_bit_is_found(checkpoint: Path, position: int) -> None:
    path = checkpoint / "state/weights.bin"
    content = bytearray(path.read_bytes())
    content[position] ^= 1
    path.write_bytes(content)
    assert damage(checkpoint) == "state/weights.bin has another content than was written"


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("", "manifest.json: damaged"),
        ('{"version": 1, "files": [{"name": "a"', "manifest.json: damaged"),
        ('{"version": 1}', "manifest.json: damaged: 'files'"),
        ('{"version": 1, "files": [{"name": "a"}]}', "manifest.json: damaged"),
        ("[]", "manifest.json: damaged"),
        ('{"version": 2, "files": []}', "format 2, this git_scale reads 1"),
    ],
)
def test_an_unreadable_manifest_is_a_checkpoint_error(checkpoint: Path, content: str, words: str) -> None:
    (checkpoint / layout.MANIFEST).write_text(content)
    with pytest.raises(CheckpointError) as caught:
        layout.read_manifest(checkpoint)
    assert words in str(caught.value)
    assert str(checkpoint) in str(caught.value)


def test_a_folder_without_a_manifest_is_none(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no checkpoint here \(manifest.json is missing\)"):
        layout.read_manifest(tmp_path)


def test_published_checkpoints_come_newest_first_and_hidden_ones_not_at_all(tmp_path: Path) -> None:
    for name in ("step_00000010", "step_00000100", "step_00000020", ".step_00000200", "step_00000300.tmp"):
        (tmp_path / "checkpoints" / name / "state").mkdir(parents=True)
    steps = [path.name for path in layout.published(tmp_path)]
    assert steps == ["step_00000100", "step_00000020", "step_00000010"]
    assert layout.published(tmp_path / "nowhere") == []


def test_what_no_run_wrote_is_no_checkpoint(checkpoint: Path) -> None:
    """Files, links to nothing, other names, and folders without any part of a checkpoint."""
    folder = checkpoint.parent
    (folder / "step_00000040").write_text("a file")
    (folder / "step_00000050").symlink_to("nowhere")
    (folder / "step_abcdefgh" / "state").mkdir(parents=True)
    (folder / "step_00000060").mkdir()
    (folder / "step_00000060" / "thesis.tex").write_text("dear")
    assert layout.published(checkpoint.parents[1]) == [checkpoint]


def test_a_checkpoint_is_found_from_itself_and_from_its_run(checkpoint: Path) -> None:
    run_dir = checkpoint.parents[1]
    assert layout.find_checkpoint(checkpoint) == checkpoint
    assert layout.find_checkpoint(run_dir) == checkpoint
    newer = checkpoint.with_name(layout.step_name(13))
    (newer / "state").mkdir(parents=True)
    assert layout.find_checkpoint(run_dir) == newer


def test_a_checkpoint_under_another_steps_name_is_passed_over(
    checkpoint: Path, caplog: pytest.LogCaptureFixture
) -> None:
    renamed = checkpoint.with_name(layout.step_name(99))
    shutil.copytree(checkpoint, renamed)
    assert layout.find_checkpoint(checkpoint.parents[1]) == checkpoint
    assert f"{renamed} is passed over: it holds step 12" in caplog.text


@pytest.mark.parametrize(
    "name",
    ["/etc/hostname", "../secret", "state/../../secret", "state//a", "./a", "", "a\\..\\b", "a\0b", 7, None],
)
def test_a_manifest_that_leaves_its_folder_is_none(checkpoint: Path, name: object) -> None:
    entry = {"name": name, "size": 1, "xxh3": "00"}
    (checkpoint / layout.MANIFEST).write_text(json.dumps({"version": 1, "files": [entry]}))
    with pytest.raises(CheckpointError, match=r"manifest\.json: damaged"):
        layout.read_manifest(checkpoint)


@pytest.mark.parametrize(
    "entries",
    [
        [{"name": "a", "size": -1, "xxh3": "00"}],
        [{"name": "a", "size": "1", "xxh3": "00"}],
        [{"name": "a", "size": 1, "xxh3": 5}],
        [{"name": "a", "size": 1, "xxh3": "00"}] * 2,
        ["a"],
        {"a": 1},
    ],
)
def test_other_entries_than_ours_make_no_manifest(checkpoint: Path, entries: object) -> None:
    (checkpoint / layout.MANIFEST).write_text(json.dumps({"version": 1, "files": entries}))
    with pytest.raises(CheckpointError, match=r"manifest\.json: damaged"):
        layout.read_manifest(checkpoint)


def test_a_stranger_among_the_files_of_the_state_is_named(checkpoint: Path) -> None:
    files = layout.read_manifest(checkpoint)
    (checkpoint / "state" / ".nfs0001").write_text("what a file system leaves is never read")
    assert layout.stranger(checkpoint, files) is None
    (checkpoint / "state" / "rank_00009.safetensors").write_bytes(b"of another step")
    assert layout.stranger(checkpoint, files) == "state/rank_00009.safetensors"
    with pytest.raises(CheckpointError, match=r"state/rank_00009\.safetensors is not in manifest\.json"):
        layout.refuse_stranger(checkpoint, files)


@pytest.mark.parametrize(
    "lacking",
    [
        "progress.json",
        "config.yaml",
        "state/index.json",
        "vocab.txt",
        "rank_00000.safetensors",
        "rank_00003.safetensors",
    ],
)
def test_a_manifest_that_lists_too_little_is_none(checkpoint: Path, lacking: str) -> None:
    (checkpoint / "config.yaml").write_text("data: {tokenizer: somewhere/vocab.txt}")
    names = [
        "progress.json",
        "config.yaml",
        "state/index.json",
        "vocab.txt",
        *map(layout.rank_file, range(4)),
    ]
    files = [FileDigest(name, 0, "") for name in names]
    assert layout.shortfall(checkpoint, files) is None
    listed = [item for item in files if item.name != lacking]
    assert layout.shortfall(checkpoint, listed) == f"manifest.json does not list {lacking}"


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"step": 1}', "\x00", "[" * 100_000])
def test_a_progress_that_is_none_is_an_error_in_words(checkpoint: Path, text: str) -> None:
    (checkpoint / "progress.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"progress\.json: damaged"):
        layout.read_progress(checkpoint)


def _no_links(*_: object, **__: object) -> None:
    raise PermissionError(errno.EPERM, "Operation not permitted")


@pytest.mark.parametrize("links", [True, False])
def test_the_best_one_is_found_with_and_without_links(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch, links: bool
) -> None:
    if not links:
        monkeypatch.setattr(Path, "symlink_to", _no_links)
    run_dir, folder = checkpoint.parents[1], checkpoint.parent
    layout.write_best(run_dir, layout.BestEvaluation(12, "cider", 0.5))
    assert (folder / "best").is_symlink() == links
    assert layout.best_of(folder / "best").resolve() == checkpoint.resolve()
    assert layout.find_checkpoint(folder / "best") == checkpoint
    monkeypatch.chdir(folder)
    assert layout.find_checkpoint(Path("best")) == Path(checkpoint.name)
    assert sorted(path.name for path in folder.iterdir() if path.name.startswith(".")) == []


def test_best_json_decides_where_the_link_is_of_an_older_one(checkpoint: Path) -> None:
    folder = checkpoint.parent
    older = folder / layout.step_name(8)
    (older / "state").mkdir(parents=True)
    layout.write_best(checkpoint.parents[1], layout.BestEvaluation(8, "cider", 0.4))
    layout.write_best(checkpoint.parents[1], layout.BestEvaluation(12, "cider", 0.5))
    (folder / "best").unlink()
    (folder / "best").symlink_to(older.name)  # a kill between the two
    assert layout.find_checkpoint(folder / "best") == checkpoint
    layout.link_best(checkpoint.parents[1])
    assert (folder / "best").resolve() == checkpoint


@pytest.mark.parametrize("name", ["", "nowhere", "checkpoints"])
def test_anything_else_is_no_checkpoint(tmp_path: Path, name: str) -> None:
    (tmp_path / "checkpoints").mkdir()
    path = tmp_path / name
    with pytest.raises(CheckpointError) as caught:
        layout.find_checkpoint(path)
    assert str(caught.value) == f"{path}: neither a checkpoint nor the folder of a run with one"


def test_of_equal_evaluations_the_lower_heldout_loss_is_the_best_and_then_the_later_step() -> None:
    zero = layout.BestEvaluation(20, "cider", 0.0, loss=2.0)
    assert layout.BestEvaluation(40, "cider", 0.0, loss=1.9).beats(zero)
    assert not layout.BestEvaluation(40, "cider", 0.0, loss=2.1).beats(zero)
    assert layout.BestEvaluation(60, "cider", 0.0, loss=2.0).beats(zero)
    assert layout.BestEvaluation(40, "cider", 0.0, loss=2.1).beats(layout.BestEvaluation(20, "cider", 0.0)), (
        "written without one"
    )
    assert layout.BestEvaluation(40, "cider", 0.1, loss=9.0).beats(zero)
    assert layout.BestEvaluation(40, "bleu_4", 0.0).beats(zero), "another metric is not compared"


def test_a_lower_loss_is_better_and_none_is_better_than_a_number_that_is_not_finite() -> None:
    first = layout.BestEvaluation(20, "loss", 2.0, loss=2.0)
    assert layout.BestEvaluation(40, "loss", 1.5, loss=1.5).beats(first, lower_is_better=True)
    assert not layout.BestEvaluation(40, "loss", 2.5, loss=2.5).beats(first, lower_is_better=True)
    assert layout.BestEvaluation(40, "loss", 2.5, loss=2.5).beats(first, lower_is_better=False)
    for value in (math.nan, math.inf, -math.inf):
        assert not layout.BestEvaluation(40, "cider", value).beats(None)
