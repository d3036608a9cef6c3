"""Held-out data of single sources: figures and pictures under the source's name, each as if it were alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from git_scale.config import RunConfig
from git_scale.contradictions import contradictions
from git_scale.data.store import open_store
from git_scale.errors import ConfigError
from git_scale.evaluation.checkpoint_evaluation import evaluate_checkpoint
from git_scale.evaluation.evaluator import EvaluationResult
from git_scale.metrics.metric import Predictions
from git_scale.monitoring.writers import NullWriter
from git_scale.parallel.topology import Topology
from git_scale.stop import Stopped, StopRequest
from git_scale.testing.distributed import run_distributed
from git_scale.testing.tiny import tiny_run, write_squares
from git_scale.training.evaluations import Evaluations
from git_scale.training.preflight import ProblemList, check_best, check_data, check_inputs

EVALUATED = (2, 4)


@pytest.fixture
def sources(squares: Path, tmp_path: Path) -> list[dict[str, Any]]:
    """Captions of 40 squares and questions about 12 others, with 7 and 9 held out."""
    write_squares(tmp_path / "few", 12)
    write_squares(tmp_path / "asked", 9)
    return [
        {"path": str(squares / "train"), "heldout": str(squares / "heldout")},
        {"path": str(tmp_path / "few"), "heldout": str(tmp_path / "asked"), "task": "vqa"},
    ]


def mixed_run(
    squares: Path, run_dir: Path, sources: list[dict[str, Any]], dp: int = 1, **data: Any
) -> RunConfig:
    return tiny_run(
        squares,
        run_dir,
        data={"train": None, "sources": sources, "heldout": None, "max_text_tokens": 8, **data},
        train={"steps": EVALUATED[-1], "micro_batch": 4 // dp},
        eval={"every": 2, "images": 100, "pictures": 4},
        checkpoint={"best": "few/loss"},
    )


def fit(topology: Topology, device: torch.device, run: RunConfig) -> int:
    from git_scale.training.build import build_trainer

    trainer = build_trainer(run, {}, topology, device)
    with StopRequest() as stop_request:
        outcome = int(trainer.fit(stop_request))
    trainer.writer.close()
    return outcome


def alone(topology: Topology, device: torch.device, run: Path, data: str, task: str) -> dict[str, float]:
    return evaluate_checkpoint(run, Path(data), task, None, [], {}, topology).metrics


def evaluations(run_dir: Path) -> list[dict[str, float]]:
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if "eval/images" in line or "eval/train/images" in line]


def of(line: dict[str, float], source: str) -> dict[str, float]:
    return {
        name.replace(f"/{source}", "", 1): value
        for name, value in line.items()
        if name.startswith(f"eval/{source}/")
    }


@pytest.mark.distributed
def test_each_source_is_evaluated_as_if_it_were_alone(
    squares: Path, tmp_path: Path, sources: list[dict[str, Any]]
) -> None:
    for ranks in (1, 2):
        run = mixed_run(squares, tmp_path / str(ranks), sources, ranks)
        assert run_distributed(fit, ranks, run) == [0] * ranks
    one, two = (evaluations(tmp_path / name) for name in "12")
    assert [line["step"] for line in one] == list(EVALUATED)
    for first, second in zip(one, two, strict=True):
        assert first.keys() == second.keys()
        assert [first[name] for name in first if name != "time"] == pytest.approx(
            [second[name] for name in first if name != "time"], rel=1e-3, abs=1e-4
        )
    for source, given in zip(("train", "few"), sources, strict=True):
        ((found),) = run_distributed(alone, 1, tmp_path / "1", given["heldout"], given.get("task", "caption"))
        logged = of(one[-1], source)
        assert logged.pop("eval/loss_rise") == max(
            0, one[-1][f"eval/{source}/loss"] - one[0][f"eval/{source}/loss"]
        )
        assert logged == pytest.approx(found, rel=1e-5)
    names = set(one[-1]) - {"step", "time"}
    assert names == {
        f"eval/{source}/{name[5:]}" for source in ("train", "few") for name in of(one[-1], source)
    }
    assert (one[-1]["eval/train/images"], one[-1]["eval/few/images"]) == (7, 9)
    assert "eval/train/cider" in names and "eval/few/vqa_accuracy" in names
    assert "eval/few/cider" not in names and "eval/train/vqa_accuracy" not in names

    board = EventAccumulator(str(tmp_path / "2" / "tensorboard")).Reload().Tags()
    assert set(board["images"]) == {"heldout/train", "heldout/few"} and names <= set(board["scalars"])
    files = {f"step_{step:08d}_{name}.png" for step in EVALUATED for name in ("train", "few")}
    assert {path.name for path in (tmp_path / "2" / "pictures").iterdir()} == files

    best = json.loads((tmp_path / "1" / "checkpoints" / "best.json").read_text())
    lowest = min(one, key=lambda line: line["eval/few/loss"])
    assert (best["metric"], best["step"]) == ("few/loss", lowest["step"])
    assert best["value"] == best["loss"] == lowest["eval/few/loss"]
    before = (tmp_path / "1" / "metrics.jsonl").read_bytes()
    assert run_distributed(fit, 1, mixed_run(squares, tmp_path / "1", sources)) == [0]
    assert (tmp_path / "1" / "metrics.jsonl").read_bytes() == before, "nothing was owed"


@pytest.mark.distributed
def test_data_heldout_keeps_its_names_beside_them(
    squares: Path, tmp_path: Path, sources: list[dict[str, Any]]
) -> None:
    """The same samples are asked the same twice: as data.heldout, and as those of the source."""
    run = mixed_run(squares, tmp_path / "run", [sources[0], {**sources[1], "heldout": None}])
    both = {"data": run.data.model_copy(update={"heldout": str(squares / "heldout")})}
    run = run.model_copy(update=both | {"checkpoint": run.checkpoint.model_copy(update={"best": "loss"})})
    assert run_distributed(fit, 1, run) == [0]
    for line in evaluations(tmp_path / "run"):
        plain = {name: value for name, value in line.items() if name.count("/") == 1}
        assert plain == of(line, "train") and plain["eval/images"] == 7
        sheets = [
            tmp_path / "run" / "pictures" / f"step_{line['step']:08d}{name}.png" for name in ("", "_train")
        ]
        assert np.array_equal(*(np.array(Image.open(sheet)) for sheet in sheets))
    board = EventAccumulator(str(tmp_path / "run" / "tensorboard")).Reload().Tags()
    assert set(board["images"]) == {"heldout", "heldout/train"}


class Scripted:
    """An evaluator that finds the given metrics, one after another."""

    def __init__(self, *found: dict[str, float] | Exception) -> None:
        self.found = list(found)

    def evaluate(self, runner: Any) -> EvaluationResult:
        found = self.found.pop(0)
        if isinstance(found, Exception):
            raise found
        return EvaluationResult(dict(found), Predictions([]), None, [], [])


class Recorder(NullWriter):
    def __init__(self) -> None:
        self.seen: list[Any] = []

    def scalars(self, step: int, values: dict[str, float]) -> None:
        self.seen.append((step, values))

    def text(self, step: int, name: str, text: str) -> None:
        self.seen.append((step, name, text.split(":")[0]))


def test_each_source_is_judged_by_its_own_figures() -> None:
    def at(loss: float, gain: float) -> dict[str, float]:
        return {"eval/loss": loss, "eval/image_gain": gain}

    evaluators: Any = {"": Scripted(at(3, 1), at(2, 1)), "b/few": Scripted(at(1, 0.01), at(1.5, 0.02))}
    past = [{"step": 1, "eval/loss": 1.0, "eval/b/few/loss": 1.25, "eval/b/few/image_gain": 1.0}]
    recorder = Recorder()
    evaluated = Evaluations(evaluators, past)
    for step in (2, 3):
        evaluated.evaluate(step, None, recorder)  # type: ignore[arg-type]
    named = {"eval/b/few/loss": 1.0, "eval/b/few/image_gain": 0.01, "eval/b/few/loss_rise": 0.0}
    assert recorder.seen == [
        (2, {**at(3, 1), "eval/loss_rise": 2.0, **named}),
        (
            3,
            {
                **at(2, 1),
                "eval/loss_rise": 1.0,
                "eval/b/few/loss": 1.5,
                "eval/b/few/image_gain": 0.02,
                "eval/b/few/loss_rise": 0.5,
            },
        ),
        (3, "eval/finding", "over-fitting"),
        (3, "eval/b/few/finding", "the images are not used"),
    ]
    assert evaluated.of_step(1) == past[0] and evaluated.of_step(7) is None


def test_of_an_evaluation_that_is_cut_off_nothing_is_kept() -> None:
    evaluators: Any = {"": Scripted({"eval/loss": 1.0}), "few": Scripted(Stopped("SIGTERM"))}
    recorder = Recorder()
    evaluated = Evaluations(evaluators, [])
    with pytest.raises(Stopped):
        evaluated.evaluate(2, None, recorder)  # type: ignore[arg-type]
    assert recorder.seen == [] and evaluated.past == []


def refusals(run: RunConfig) -> list[str]:
    problems = ProblemList(list(contradictions(run)))
    check_inputs(run, problems)
    if not problems.found:
        stores = [open_store(source.path) for source in run.data.sources]
        heldout = [open_store(source.heldout) for source in run.data.sources if source.heldout]
        problems.of(lambda: check_data(run, stores, heldout))
    return problems.found


def test_what_a_start_refuses(squares: Path, tmp_path: Path, sources: list[dict[str, Any]]) -> None:
    def refused(**changes: Any) -> str:
        second = {**sources[1], **changes}
        (problem,) = refusals(mixed_run(squares, tmp_path / "run", [sources[0], second]))
        return problem

    assert refusals(mixed_run(squares, tmp_path / "run", sources)) == []
    gone = tmp_path / "gone"
    assert refused(heldout=str(gone)).startswith(f"data.sources[1].heldout={gone}: no such folder")
    train = squares / "train"
    trained = refused(heldout=str(train))
    assert trained.startswith(f"data.sources[1].heldout={train}: it is trained on (data.sources[0]={train})")
    assert "take heldout out of data.sources[1]; to overfit on purpose, eval.on_training_data=true" in trained
    allowed = mixed_run(squares, tmp_path / "run", [sources[0], {**sources[1], "heldout": str(train)}])
    allowed = allowed.model_copy(update={"eval": allowed.eval.model_copy(update={"on_training_data": True})})
    assert refusals(allowed) == []
    import webdataset

    (tmp_path / "captions").mkdir()
    with webdataset.TarWriter(str(tmp_path / "captions" / "a-000000.tar"), encoder=False) as tar:
        image = tmp_path / "white.png"
        Image.new("RGB", (16, 16), "white").save(image)
        tar.write({"__key__": "0", "png": image.read_bytes(), "json": b'{"captions": ["a square"]}'})
    asked = refused(heldout=str(tmp_path / "captions"))
    assert (
        f"data.sources[1].heldout={tmp_path / 'captions'}: none of 1 samples looked at has questions" in asked
    )


@pytest.mark.parametrize(
    ("best", "words"),
    [
        (
            "loss",
            "set data.heldout, or checkpoint.best=NAME/loss with a source of data.sources that has heldout",
        ),
        ("fewer/loss", "no source 'fewer' has held-out data: it is one of train/loss, few/loss"),
        ("few/cider", "checkpoint.best='cider': with data.task=vqa it is one of exact_match, vqa_accuracy"),
        ("few/", "checkpoint.best='': with data.task=vqa it is one of"),
        ("/loss", "no source '' has held-out data"),
    ],
)
def test_a_best_that_nothing_measures(
    best: str, words: str, squares: Path, tmp_path: Path, sources: list[dict[str, Any]]
) -> None:
    run = mixed_run(squares, tmp_path / "run", sources)
    run = run.model_copy(update={"checkpoint": run.checkpoint.model_copy(update={"best": best})})
    (problem,) = refusals(run)
    assert words in problem


def test_a_best_of_sources_that_hold_nothing_out(
    squares: Path, tmp_path: Path, sources: list[dict[str, Any]]
) -> None:
    without = [{**source, "heldout": None} for source in sources]
    with pytest.raises(ConfigError, match="no source 'few' has held-out data: none has any"):
        check_best(mixed_run(squares, tmp_path / "run", without))


def test_a_question_of_a_source_must_leave_room_for_its_answer(
    squares: Path, tmp_path: Path, sources: list[dict[str, Any]]
) -> None:
    """A table of 16 positions: 8 of a question and 8 of its answer."""
    assert list(contradictions(mixed_run(squares, tmp_path / "run", sources, max_text_tokens=8))) == []
    longer = mixed_run(squares, tmp_path / "run", sources, max_text_tokens=9)
    (problem,) = contradictions(longer)
    assert problem.startswith("data.max_text_tokens=9 (question) + eval.max_new_tokens=8 (answer) exceed")
    captions = mixed_run(squares, tmp_path / "run", sources[:1], max_text_tokens=9)
    assert list(contradictions(captions)) == [], "captions are not asked for"
