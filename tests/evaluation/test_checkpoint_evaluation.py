"""A checkpoint on data of its own: each sample once, whatever the ranks and however long the texts."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import webdataset

from git_scale.config import RunConfig
from git_scale.errors import ConfigError
from git_scale.evaluation.checkpoint_evaluation import (
    EFFECTIVE,
    OPTION_OF,
    evaluate_checkpoint,
    evaluation_run,
)
from git_scale.parallel.topology import Topology
from git_scale.recipes import known_keys
from git_scale.testing.distributed import run_distributed
from git_scale.testing.tiny import COLOURS, draw_square, tiny_run

SHORT, LONG = "a square", " ".join(["red"] * 60)  # the long one is cut: it never learns to end
LONGEST = 30


def train_on_ragged(topology: Topology, device: torch.device, folder: Path) -> int:
    """A model whose text about black squares goes on and on, and is two words for all others."""
    from git_scale.training.build import build_trainer

    run = ragged_run(folder)
    trainer = build_trainer(run, {}, topology, device)
    for _ in range(run.train.steps):
        trainer.train_step()
        trainer.step += 1
    trainer.save()
    return int(trainer.step)


def ragged_run(folder: Path) -> Any:
    run = tiny_run(
        folder,
        folder / "run",
        data={"max_text_tokens": LONGEST + 4, "texts_per_image": 1, "crop_scale": (1.0, 1.0)},
        train={"steps": 120, "global_batch": 7, "micro_batch": 7, "label_smoothing": 0.0},
        optimizer={"encoder_lr": 3e-3, "decoder_lr": 3e-3, "warmup_steps": 5},
        eval={"max_new_tokens": LONGEST, "images": 7, "on_training_data": True},
    )
    decoder = run.model.decoder.model_copy(update={"positions": 2 * LONGEST})
    return run.model_copy(update={"model": run.model.model_copy(update={"decoder": decoder})})


@pytest.fixture(scope="module")
def ragged(squares: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trained run on 7 samples of which number 1 and 5 have the endless text: one rank's of 2 and of 4."""
    folder = tmp_path_factory.mktemp("ragged")
    (folder / "tokenizer.model").write_bytes((squares / "tokenizer.model").read_bytes())
    for part in ("train", "heldout"):
        (folder / part).mkdir()
        with webdataset.TarWriter(str(folder / part / "s-000000.tar"), encoder=False) as tar:
            for number in range(7):
                is_long = number % 4 == 1
                colour = "black" if is_long else list(COLOURS)[number % 3]
                text = json.dumps({"captions": [LONG if is_long else SHORT], "image_id": 100 + number})
                image = draw_square(colour, "big")
                tar.write({"__key__": f"{number}", "png": image, "json": text.encode()})
    assert run_distributed(train_on_ragged, 1, folder) == [120]
    return folder


def predictions(
    topology: Topology, device: torch.device, checkpoint: Path, data: Path, stage: int, overrides: list[str]
) -> list[tuple[Any, str, str]]:
    ds_config = {"zero_optimization": {"stage": stage}}
    evaluation = evaluate_checkpoint(checkpoint, data, None, None, overrides, ds_config, topology)
    return [(item.identity, item.question, item.generated) for item in evaluation.predictions]


@pytest.mark.distributed
@pytest.mark.parametrize(("beams", "world_sizes"), [(1, (2, 4)), (3, (2,))])
def test_one_ranks_texts_are_ten_times_longer(ragged: Path, beams: int, world_sizes: tuple[int, ...]) -> None:
    """7 samples on 2 and 4 ranks under ZeRO-3, where every forward pass is collective."""
    given = (ragged / "run", ragged / "heldout", 3, [f"eval.beams={beams}", "train.micro_batch=2"])
    alone = run_distributed(predictions, 1, ragged / "run", ragged / "heldout", 0, given[3])[0]
    assert [number for number, _, _ in alone] == list(range(100, 107))
    lengths = {number: len(text.split()) for number, _, text in alone}
    assert all(length >= 20 if number in (101, 105) else length == 2 for number, length in lengths.items())
    for world_size in world_sizes:
        assert run_distributed(predictions, world_size, *given) == [alone] * world_size
    split = [*given[3], "parallel.tp=2"]
    answers = run_distributed(predictions, 4, *given[:3], split, tp=2)
    assert answers == [alone] * 4, "split over two ranks"


def opened(run: RunConfig) -> Any:
    return SimpleNamespace(run=run)


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("data.heldout=other", "set --data"),
        ("data={heldout: other}", "set --data"),
        ("data.tokenizer=x.model", "set --tokenizer"),
        ("init_from=x", "set --checkpoint"),
        *(
            (override, f"{override.partition('=')[0]} has no effect in an evaluation; eval.beams, ")
            for override in (
                "optimizer.encoder_lr=1",
                "checkpoint.every=5",
                "log.every=5",
                "data.train=x",
                "data.crop_scale=[0.5, 1]",
                "train.steps=5",
                "train.compile=true",
                "parallel.sequence=true",
                "eval.every=5",
                "seed=3",
                "model.decoder.dropout=0.5",
            )
        ),
        ("eval={beams: 2, every: 4}", "eval.every has no effect"),
    ],
)
def test_what_has_no_effect_in_an_evaluation_is_refused(override: str, words: str) -> None:
    with pytest.raises(ConfigError) as refused:
        evaluation_run(opened(RunConfig()), Path("heldout"), None, [override, "eval.beams=2"])
    (problem,) = refused.value.problems
    assert words in problem and repr(override) in problem


def test_what_has_an_effect_is_taken() -> None:
    trained = RunConfig.model_validate(
        {"train": {"compile": True, "gradient_precision": "bf16"}, "parallel": {"sequence": True}}
    )
    given = [
        "eval={beams: 2}",
        "data.resize=pad",
        "train.precision=fp32",
        "parallel.tp=2",
        "train.micro_batch=3",
    ]
    run = evaluation_run(opened(trained), Path("heldout"), "vqa", given)
    assert (run.eval.beams, run.data.resize, run.train.precision, run.train.micro_batch) == (
        2,
        "pad",
        "fp32",
        3,
    )
    assert (run.data.heldout, run.data.task, run.parallel.tp) == ("heldout", "vqa", 2)
    with pytest.raises(ConfigError, match=r"did you mean eval\.beams"):
        evaluation_run(opened(trained), Path("heldout"), None, ["eval.beam=2"])


def test_keys_with_an_effect_are_keys() -> None:
    known = set(known_keys())
    assert {key.rstrip("*") for key in EFFECTIVE} | OPTION_OF.keys() <= known
