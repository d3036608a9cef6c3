"""tools/plan.py and the dry run of any size, as typed."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tools"))

import plan as tool  # noqa: E402
import pretrain  # noqa: E402

from git_scale.planning import disk  # noqa: E402
from git_scale.planning.cluster import Cluster  # noqa: E402
from git_scale.testing.tiny import tiny_run  # noqa: E402
from git_scale.training import cli, dry_run  # noqa: E402

SMALL = [
    "model.encoder.name=vit_tiny_patch16_224",
    "model.encoder.options={depth: 2, embed_dim: 64, num_heads: 4}",
    "model.decoder={layers: 2, width: 64, heads: 4, ffn: 128}",
    "model.vocab_size=500",
]


def test_a_plan_with_its_figures_in_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "plan.json"
    command = ["--config", "git_base", "--nodes", "2", "--gpus-per-node", "4", "--json", str(path), *SMALL]
    assert tool.main(command) == 0
    text = capsys.readouterr().out
    assert "plan for 8 x H100 in 2 nodes" in text
    assert "this run" in text
    assert json.loads(path.read_text())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--gpu", "abacus"], "--gpu abacus: not in accelerators.yaml"),
        (["--memory-gib", "1.6"], "no setting of tp, ZeRO stage"),
        (["train.global_batch=3"], "train.global_batch=3 is no multiple"),
    ],
)
def test_wrong_usage_is_one_message(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert tool.main(["--config", "git_base", *arguments, *SMALL]) == 2
    assert message in capsys.readouterr().err


def test_a_dry_run_for_any_number_of_gpus(capsys: pytest.CaptureFixture[str]) -> None:
    command = ["--config", "git_base", "--dry-run", "--world-size", "256", "parallel.tp=2", *SMALL]
    command.append("data.image_sizes=[]")
    assert pretrain.main([*command, "train.micro_batch=32"]) == 0
    text = capsys.readouterr().out
    assert "plan for 256 x H100 in 32 nodes: tp 2, dp 128" in text
    assert "by outputs, 3 groups" in text
    assert "is not there" in text  # the shards
    assert pretrain.main([*command, "train.micro_batch=48"]) == 2
    assert "train.global_batch=4096 is no multiple" in capsys.readouterr().err


def test_a_start_whose_disk_takes_no_checkpoint_is_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], squares: Path, tmp_path: Path
) -> None:
    """As a dry run of this machine; a plan for others says what the disk here has."""
    monkeypatch.setattr(disk.shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**9, 10**9, 1000))
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(tiny_run(squares, tmp_path / "run").to_yaml())
    assert pretrain.main(["--config", str(recipe), "--dry-run"]) == 2
    shown = capsys.readouterr()
    assert "NOT ALL OF THEM WILL FIT" in shown.out
    assert " MiB, and 0.00 MiB are free there: free some" in shown.err
    assert pretrain.main(["--config", str(recipe), "--dry-run", "--world-size", "1"]) == 0
    assert tool.main(["--config", "git_base", *SMALL]) == 0
    assert "NOT ALL OF THEM WILL FIT" in capsys.readouterr().out


@pytest.fixture
def small_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """2 GiB for a rank, of which half a GiB is set aside."""
    small = Cluster("CPU", "cpu", 1, 1, 2 * 2**30, 1e12, 1e9, 1e9)
    for room in (cli, dry_run):
        monkeypatch.setattr(room, "this_cluster", lambda *_: small)


@pytest.fixture
def here(squares: Path, tmp_path: Path) -> list[str]:
    """A run that could start on this machine."""
    return [
        *SMALL,
        "model.vocab_size=34",
        "model.encoder.start=scratch",
        "data.image_sizes=[]",
        f"data.train={squares / 'train'}",
        f"data.heldout={squares / 'heldout'}",
        f"data.tokenizer={squares / 'tokenizer.model'}",
        f"run_dir={tmp_path / 'run'}",
    ]


@pytest.mark.usefixtures("small_machine")
def test_a_dry_run_says_what_a_start_here_would_say(
    here: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["--config", "git_base", "--dry-run", *here]
    assert pretrain.main([*command, "train.micro_batch=1"]) == 0
    assert "DOES NOT FIT" not in capsys.readouterr().out
    assert pretrain.main([*command, "train.micro_batch=1024"]) == 2
    printed = capsys.readouterr()
    assert "DOES NOT FIT" in printed.out
    assert "needs" in printed.err and "settings near it that fit" in printed.err


@pytest.mark.parametrize("words", [["train.compile=true"], ["--world-size", "8", "train.compile=true"]])
def test_a_dry_run_refuses_what_the_json_does_not_go_with(
    words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    zero3 = ["--ds_config", str(ROOT / "ds_configs" / "zero3.json")]
    assert pretrain.main(["--config", "git_base", "--dry-run", *SMALL, *zero3, *words]) == 2
    assert "train.compile=true with ZeRO stage 3" in capsys.readouterr().err


@pytest.mark.usefixtures("small_machine")
@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["--config", "git_base", "--dry-run", "HERE", "train.micro_batch=1"], 0),
        (["--config", "git_base", "--dry-run", "HERE", "train.micro_batch=1024"], 2),
        (["--config", "git_base", "--dry-run", "--world-size", "8", "parallel.tp=3"], 2),
        (["--config", "git_base", "--world-size", "8"], 2),
        (["--config", "git_base", "--no-such-option"], 2),
        (["--help"], 0),
    ],
)
def test_of_a_launchers_ranks_the_first_one_speaks(
    arguments: list[str],
    code: int,
    here: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    arguments = [word for item in arguments for word in (here if item == "HERE" else [item])]
    for name, value in {"WORLD_SIZE": "2", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1"}.items():
        monkeypatch.setenv(name, value)
    said = []
    for rank in ("0", "1"):
        monkeypatch.setenv("RANK", rank)
        try:
            assert pretrain.main(arguments) == code
        except SystemExit as end:
            assert end.code == code
        said.append("".join(capsys.readouterr()))
    assert said[0] != ""
    assert said[1] == ""


def test_a_size_without_a_dry_run_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert pretrain.main(["--config", "git_base", "--world-size", "8"]) == 2
    assert "--world-size goes with --dry-run" in capsys.readouterr().err
