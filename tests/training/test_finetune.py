"""Fine-tuning: what a run starts from, what stays frozen, which checkpoint is the best, and its evaluation."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from git_scale.checkpoint import layout
from git_scale.config import RunConfig
from git_scale.errors import ConfigError
from git_scale.models.build import build_model
from git_scale.parallel.topology import Topology
from git_scale.recipes import load_run
from git_scale.stop import StopRequest
from git_scale.testing.distributed import run_distributed
from git_scale.testing.taught import write_taught
from git_scale.testing.tiny import load_weights, tiny_run

ROOM = {"max_text_tokens": 24}
MODEL_POSITIONS = 40


@pytest.fixture(scope="module")
def taught(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder that speaks of squares."""
    return write_taught(tmp_path_factory.mktemp("taught") / "model")


def vqa_run(squares: Path, run_dir: Path, taught: Path, **sections: dict[str, Any]) -> RunConfig:
    """The tiny run on questions, from the taught model and with its tokenizer."""
    data = {"task": "vqa", "texts_per_image": 2, "tokenizer": str(taught / "tokenizer.model"), **ROOM}
    sections["data"] = data | sections.get("data", {})
    run = tiny_run(squares, run_dir, **sections)
    decoder = run.model.decoder.model_copy(update={"positions": MODEL_POSITIONS})
    model = run.model.model_copy(update={"decoder": decoder})
    return run.model_copy(update={"model": model, "init_from": str(taught)})


def train(
    topology: Topology, device: torch.device, run: RunConfig, stage: int, steps: int
) -> tuple[int, list[float], dict[str, float], list[tuple[Any, str]]]:
    """The first step, losses, metrics and answers of some steps, with a checkpoint at the end."""
    from git_scale.training.build import build_trainer

    trainer = build_trainer(run, {"zero_optimization": {"stage": stage}}, topology, device)
    first, losses = trainer.step, []
    for _ in range(steps):
        losses.append(trainer.train_step().loss)
        trainer.step += 1
    trainer.save()
    evaluation = trainer.evaluations.evaluators[""].evaluate(trainer.engine)
    return first, losses, evaluation.metrics, [(p.identity, p.generated) for p in evaluation.predictions]


@pytest.mark.distributed
@pytest.mark.parametrize(("world_size", "stage"), [(1, 0), (2, 2), (2, 3)])
def test_it_starts_from_the_checkpoint_and_frozen_weights_stay(
    squares: Path, tmp_path: Path, taught: Path, world_size: int, stage: int
) -> None:
    frozen = {"freeze": ["encoder.*", "*.positions.*"], "micro_batch": 8 // world_size}
    run = vqa_run(squares, tmp_path / "run", taught, train=frozen)
    answers = run_distributed(train, world_size, run, stage, 3)
    _, losses, metrics, texts = answers[0]
    assert losses[0] < 0.6, "the taught model knows most answers; a random one begins at 3.2"
    assert metrics["eval/texts"] == 12 == len(texts), "7 images, of which 2 have one question"
    assert metrics["eval/vqa_accuracy"] == metrics["eval/exact_match"] > 0.7
    assert all(answer[3] == texts for answer in answers)

    before = _weights_of(taught)
    after = load_weights(tmp_path / "run" / "checkpoints" / "step_00000003")
    assert before.keys() == after.keys()
    for name, tensor in after.items():
        stays = name.startswith("encoder.") or ".positions." in name
        assert torch.equal(tensor, before[name]) == stays, name

    # the same command goes on with the run's own copy of the tokenizer, whatever became of the first one
    own = run.data.model_copy(update={"tokenizer": str(tmp_path / "run" / "tokenizer.model")})
    resumed = run.model_copy(update={"data": own, "init_from": str(taught)})
    assert run_distributed(train, world_size, resumed, stage, 1)[0][0] == 3


def _weights_of(folder: Path) -> dict[str, torch.Tensor]:
    from git_scale.checkpoint.detect import open_checkpoint

    weights = open_checkpoint(folder).weights
    return {name: weights.read(name) for name in weights.shapes}


def fit(topology: Topology, device: torch.device, run: RunConfig) -> list[str]:
    from git_scale.training.build import build_trainer

    trainer = build_trainer(run, {"zero_optimization": {"stage": 3}}, topology, device)
    scores = iter([(0.2, 1.0), (0.9, 0.3), (0.5, 0.2), (0.9, 0.4), (0.1, 0.1)])  # with the held-out loss
    real = trainer.evaluations.evaluators[""].evaluate

    def evaluate(engine: Any) -> Any:
        evaluation = real(engine)
        evaluation.metrics["eval/vqa_accuracy"], evaluation.metrics["eval/loss"] = next(scores)
        return evaluation

    trainer.evaluations.evaluators[""].evaluate = evaluate
    trainer.fit(StopRequest())
    trainer.writer.close()
    return sorted(path.name for path in (Path(run.run_dir) / "checkpoints").iterdir())


@pytest.mark.distributed
def test_the_best_checkpoint_outlives_newer_ones(squares: Path, tmp_path: Path, taught: Path) -> None:
    sections = {"eval": {"every": 2}, "checkpoint": {"every": 2, "keep": 2, "best": "vqa_accuracy"}}
    run = vqa_run(squares, tmp_path / "run", taught, train={"micro_batch": 4}, **sections)
    (names, _) = run_distributed(fit, 2, run)
    assert names == ["best", "best.json", "step_00000004", "step_00000008", "step_00000010"]
    folder = tmp_path / "run" / "checkpoints"
    assert (folder / "best").resolve() == (folder / "step_00000004").resolve()
    best = json.loads((folder / "best.json").read_text())
    assert best == {"step": 4, "metric": "vqa_accuracy", "value": 0.9, "loss": 0.3}
    assert layout.find_checkpoint(folder / "best").name == "step_00000004"
    assert layout.find_checkpoint(tmp_path / "run").name == "step_00000010"


def is_best(topology: Topology, device: torch.device, run: RunConfig) -> list[bool]:
    from git_scale.training.build import build_trainer

    trainer = build_trainer(run, {}, topology, device)
    trainer.step = 1
    trainer.keep_best({"eval/texts": 0.0})  # no held-out text has a reference: nothing to keep, no error
    trainer.keep_best({"eval/vqa_accuracy": 0.5})
    asked = [("vqa_accuracy", 0.4), ("vqa_accuracy", 0.6), ("exact_match", 0.1)]
    return [trainer.checkpoints.is_best(layout.BestEvaluation(2, *question)) for question in asked]


@pytest.mark.distributed
def test_values_of_two_metrics_are_not_compared(squares: Path, tmp_path: Path, taught: Path) -> None:
    run = vqa_run(squares, tmp_path / "run", taught, checkpoint={"every": 10, "best": "vqa_accuracy"})
    assert run_distributed(is_best, 1, run) == [[False, True, True]]


def test_a_frozen_batch_norm_keeps_its_statistics() -> None:
    from git_scale.config import ModelConfig
    from git_scale.models.freezing import freeze

    options = {"layers": [1, 1, 1, 1], "channels": [8, 8, 8, 8]}
    encoder = {"name": "resnet18", "image_size": 32, "options": options}
    decoder = {"layers": 1, "width": 32, "heads": 2, "ffn": 32, "positions": 8}
    config = ModelConfig.model_validate({"encoder": encoder, "decoder": decoder, "vocab_size": 10})
    for patterns, moves in (((), True), (("encoder.*",), False)):
        torch.manual_seed(0)
        model = build_model(config)
        freeze(model, patterns)
        model.eval()
        model.train()
        before = model.encoder.backbone.bn1.running_mean.clone()
        model(torch.randn(2, 1, 3, 32, 32), torch.ones(2, 1, 3, dtype=torch.long), torch.arange(2))
        assert torch.equal(before, model.encoder.backbone.bn1.running_mean) != moves
        assert model.decoder.training


def refused(topology: Topology, device: torch.device, run: RunConfig) -> str:
    from git_scale.training.build import build_trainer

    try:
        build_trainer(run, {}, topology, device)
    except ConfigError as error:
        return str(error)
    return "built"


@pytest.mark.distributed
@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"train": {"freeze": ["encode.*"]}}, "train.freeze: 'encode.*' matches no parameter"),
        ({"train": {"freeze": ["*"]}}, "leaves nothing to learn"),
        ({"checkpoint": {"best": "cider"}}, "with data.task=vqa it is one of exact_match, vqa_accuracy"),
    ],
)
def test_what_cannot_be_is_refused(
    squares: Path, tmp_path: Path, taught: Path, section: dict[str, Any], message: str
) -> None:
    run = vqa_run(squares, tmp_path / "run", taught, **section)
    assert message in run_distributed(refused, 1, run)[0]


def test_a_recipe_takes_model_and_tokenizer_from_the_checkpoint(taught: Path, tmp_path: Path) -> None:
    from git_scale.training.init_model import inherited_from

    given = [f"init_from={taught}", f"run_dir={tmp_path / 'run'}", "eval.max_new_tokens=8"]
    run = load_run(
        "finetune_vqa", [*given, "data.max_text_tokens=24", "model.encoder.image_size=48"], inherited_from
    )
    assert run.model.vocab_size == 34 and run.model.decoder.width == 32
    assert run.data.tokenizer == str(taught / "tokenizer.model")
    assert run.model.encoder.image_size == 48, "what is typed lies above the checkpoint"
    assert (run.data.task, run.optimizer.encoder_lr) == ("vqa", 1e-5), "and so does the recipe"


def test_a_run_that_has_begun_does_not_need_what_it_started_from(tmp_path: Path, squares: Path) -> None:
    from git_scale.training.init_model import inherited_from

    run = tiny_run(squares, tmp_path / "run")
    checkpoint = tmp_path / "run" / "checkpoints" / "step_00000010"
    checkpoint.mkdir(parents=True)
    (checkpoint / layout.MANIFEST).touch()
    (tmp_path / "run" / "config.yaml").write_text(run.to_yaml(), encoding="utf-8")
    settled = inherited_from(str(tmp_path / "gone"), str(tmp_path / "run"))
    assert settled["model"] == run.model.model_dump(mode="json")
    assert settled["data"] == {"tokenizer": str(tmp_path / "run" / "tokenizer.model")}


def test_the_answer_alone_is_learned(squares: Path, tmp_path: Path, taught: Path) -> None:
    """Against a loss written by hand: the mean over answer and end tokens of the negative log-probabilities."""
    from git_scale.data.images import normalise
    from git_scale.data.loader import build_train_loader
    from git_scale.data.store import open_store
    from git_scale.data.tokenizer import load_tokenizer
    from git_scale.objectives.language_model import language_model_loss
    from git_scale.tasks import build_task

    run = vqa_run(squares, tmp_path / "run", taught)
    tokenizer = load_tokenizer(run.data.tokenizer)
    task = build_task(run.data.task, run, tokenizer)
    batch = next(iter(build_train_loader(run, open_store(run.data.train), task, 0, 1, 0)))
    torch.manual_seed(0)
    model = build_model(run.model).double().eval()
    images = normalise(batch.images, torch.float64)
    everywhere = torch.arange(batch.tokens.numel())
    with torch.no_grad():
        ours = float(language_model_loss(model(images, batch.tokens, batch.rows), batch.labels, 0.0))
        logits = model(images, batch.tokens, everywhere).view(*batch.tokens.shape, -1).numpy()
    by_hand, answers = 0.0, set()
    for b, k in np.ndindex(batch.tokens.shape[:2]):
        ids = batch.tokens[b, k].tolist()
        text = tokenizer.decode(ids)
        if not text:
            continue
        question, _, answer = text.partition("? ")
        answers.add(answer)
        first = 1 + len(tokenizer.encode(f"{question}?"))
        for t in range(first, ids.index(tokenizer.eos_id) + 1):
            row = logits[b, k, t - 1]
            by_hand += float(np.log(np.exp(row - row.max()).sum()) + row.max() - row[ids[t]])
    assert answers <= {"red", "green", "blue", "black", "tiny", "small", "big"} and len(answers) > 3
    assert ours == pytest.approx(by_hand, rel=1e-5)  # the loss is summed in fp32
