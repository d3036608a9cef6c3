"""A run on several sources: resumed on other numbers of ranks, watched by source, refused with other sources."""

from __future__ import annotations

import json
import logging
import shutil
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import torch

from git_scale.config import RunConfig
from git_scale.data.mixture import Mixture, training_sources
from git_scale.data.store import open_store
from git_scale.errors import CheckpointError, ConfigError, DataError
from git_scale.parallel.topology import Topology
from git_scale.testing.distributed import run_distributed
from git_scale.testing.tiny import tiny_run, write_squares
from git_scale.training.preflight import load_fitting_tokenizer, report_sources


@pytest.fixture
def sources(squares: Path, tmp_path: Path) -> list[dict[str, Any]]:
    """Captions of 40 squares and questions about 12 others."""
    write_squares(tmp_path / "few", 12)
    return [
        {"path": str(squares / "train"), "weight": 0.75},
        {"path": str(tmp_path / "few"), "weight": 0.25, "task": "vqa"},
    ]


def mixed_run(squares: Path, run_dir: Path, sources: list[dict[str, Any]], dp: int = 1) -> RunConfig:
    data = {"train": None, "sources": sources, "heldout": None}
    return tiny_run(squares, run_dir, data=data, train={"micro_batch": 4 // dp}, log={"every": 1})


def train(
    topology: Topology,
    device: torch.device,
    squares: Path,
    run_dir: Path,
    sources: list[dict[str, Any]],
    until: int,
) -> tuple[list[list[str]], str]:
    """The keys of each step's batches on this rank, up to step `until`, and what was said; or why it was refused."""
    from git_scale.training.build import build_trainer

    said = run_dir.parent / f"said-{topology.global_rank}"
    logging.basicConfig(filename=said, level=logging.INFO, force=True)
    run = mixed_run(squares, run_dir, sources, topology.dp)
    try:
        trainer = build_trainer(run, {}, topology, device)
    except (CheckpointError, ConfigError, DataError) as error:
        return [], str(error)
    steps: list[list[str]] = []
    plain = trainer._load

    def recorded() -> Any:
        batches, failure = plain()
        steps.append([key for batch in batches for key in batch.keys])
        return batches, failure

    trainer._load = recorded  # type: ignore[method-assign]
    while trainer.step < until:
        trainer.train_step()
        trainer.step += 1
        trainer.report()
    trainer.save()
    trainer.writer.close()
    return steps, said.read_text()


@pytest.mark.distributed
def test_a_mixture_goes_on_with_any_number_of_ranks(
    squares: Path, tmp_path: Path, sources: list[dict[str, Any]]
) -> None:
    ((whole, said),) = run_distributed(train, 1, squares, tmp_path / "whole", sources, 6)
    assert "few: 12 samples, task vqa, 25 % of the run: 20 samples, 1.67 epochs" in said
    assert f"of a sample of the texts of data.sources[1]={tmp_path / 'few'}" in said
    assert "as well" not in said
    seen = []
    for ranks, until in ((2, 2), (1, 4), (2, 6)):
        parts = run_distributed(train, ranks, squares, tmp_path / "cut", sources, until)
        seen += [sorted(chain(*step)) for step in zip(*(steps for steps, _ in parts), strict=True)]
    assert seen == [sorted(step) for step in whole]
    lines = [json.loads(line) for line in (tmp_path / "cut" / "metrics.jsonl").read_text().splitlines()]
    counts = {
        name: sum(key.startswith(name) for step in whole for key in step) for name in ("train/", "few/")
    }
    assert counts == {"train/": 36, "few/": 12}
    assert [(line["step"], line["data/samples/train"], line["data/samples/few"]) for line in lines] == [
        (step, 6 * step, 2 * step) for step in range(1, 7)
    ]
    sources[1]["weight"] = 0.5
    ((steps, refused),) = run_distributed(train, 1, squares, tmp_path / "cut", sources, 8)
    assert steps == [] and "training data: another mixture (number, order, weights or tasks" in refused
    assert "there, data.sources[0]=" in refused and " here" in refused


@pytest.mark.distributed
def test_each_source_must_serve_its_task_and_be_spelled(
    squares: Path, tmp_path: Path, sources: list[dict[str, Any]]
) -> None:
    from git_scale.data.builders.writer import SampleToWrite, write_shards

    texts = (SampleToWrite(b"picture", "png", {"captions": ["\u732b\u304c\u3044\u308b"]}) for _ in range(3))
    write_shards(texts, tmp_path / "other", 3)
    sources[1] = {"path": str(tmp_path / "other"), "task": "vqa"}
    ((_, refused),) = run_distributed(train, 1, squares, tmp_path / "run", sources, 1)
    assert f"data.sources[1]={tmp_path / 'other'}: none of 3 samples looked at has questions" in refused
    assert "they have captions: set its task=caption" in refused
    sources[1]["task"] = "caption"
    ((_, refused),) = run_distributed(train, 1, squares, tmp_path / "run", sources, 1)
    assert f"texts of data.sources[1]={tmp_path / 'other'} 100 % of 12 characters are lost" in refused
    assert "too much to learn from" in refused


def test_shards_that_lie_in_two_sources_are_said(
    squares: Path, tmp_path: Path, sources: list[dict[str, Any]], caplog: pytest.LogCaptureFixture
) -> None:
    copy = shutil.copytree(squares / "train", tmp_path / "all" / "copy")
    shutil.copytree(tmp_path / "few", tmp_path / "all" / "few")
    run = mixed_run(squares, tmp_path / "run", [*sources, {"path": str(copy.parent)}])
    stores = [open_store(source.path) for source in training_sources(run.data).values()]
    with caplog.at_level(logging.WARNING):
        report_sources(run, Mixture(run.data, stores), load_fitting_tokenizer(run))
    both = [line for line in caplog.messages if "as well" in line]
    assert both == [
        f"{key}: 1 of its 1 parts lie in data.sources[2]={copy.parent} as well"
        for key in list(training_sources(run.data))[:2]
    ]
