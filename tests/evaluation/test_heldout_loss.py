"""The held-out loss: that of every right text, whatever the ranks, and what an image saves of it."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

import git_scale
from git_scale.data.images import decode
from git_scale.data.store import open_store
from git_scale.data.tokenizer import load_tokenizer
from git_scale.evaluation.checkpoint_evaluation import evaluate_checkpoint
from git_scale.evaluation.heldout_loss import TextLoss, loss_metrics, perplexity
from git_scale.parallel.topology import Topology
from git_scale.testing.distributed import run_distributed
from git_scale.testing.taught import write_taught


def measured(
    topology: Topology, device: torch.device, checkpoint: Path, data: Path, stage: int, overrides: list[str]
) -> dict[str, float]:
    ds_config = {"zero_optimization": {"stage": stage}}
    metrics = evaluate_checkpoint(checkpoint, data, None, None, overrides, ds_config, topology).metrics
    return {name: metrics[f"eval/{name}"] for name in ("loss", "image_gain", "images")}


def by_hand(folder: Path, data: Path) -> tuple[float, float]:
    """Loss and gain through the package's `score`, image by image."""
    model, shards = git_scale.load(folder, device="cpu"), open_store(data)
    tokenizer = load_tokenizer(folder / "tokenizer.model")
    pictures = [decode(shards.read(number).image or b"") for number in range(len(shards))]
    captions = [shards.read(number).text.captions for number in range(len(shards))]
    tokens, right, wrong = 0, 0.0, 0.0
    for number, texts in enumerate(captions):
        others = [(number + step) % len(shards) for step in range(1, len(shards))]
        other = next(other for other in others if captions[other] != texts)
        tokens += sum(len(tokenizer.encode(text)) + 1 for text in texts)
        right -= sum(model.score(pictures[number], [texts])[0])
        wrong -= sum(model.score(pictures[other], [texts])[0])
    return right / tokens, (wrong - right) / tokens


@pytest.mark.distributed
def test_loss_and_gain_are_those_of_the_scores_on_any_ranks(squares: Path, tmp_path: Path) -> None:
    """7 images, in batches of 2 and 3: ranks with another number of images than others, and empty slots."""
    folder, data = write_taught(tmp_path / "taught"), squares / "heldout"
    loss, gain = by_hand(folder, data)
    assert gain > 0.2, "a model that does not look at its images proves nothing"
    # texts are generated for 3 images, and the loss is still that of all
    for world_size, stage, tp, batch in ((1, 0, 1, 3), (2, 3, 1, 2), (2, 0, 2, 2)):
        overrides = [f"train.micro_batch={batch}", "eval.images=3", f"parallel.tp={tp}"]
        answers = run_distributed(measured, world_size, folder, data, stage, overrides, tp=tp)
        for found in answers:
            assert found["loss"] == pytest.approx(loss, rel=1e-5)
            assert found["image_gain"] == pytest.approx(gain, rel=1e-5)
            assert found["images"] == 3


def test_each_token_weighs_the_same_and_the_gain_is_that_of_compared_samples() -> None:
    losses = [TextLoss(0, 2, 3.0, 5.0), TextLoss(1, 6, 5.0, None), TextLoss(2, 8, 4.0, 3.0)]
    assert loss_metrics(losses) == {"loss": 12 / 16, "image_gain": (2 - 1) / 10}
    assert loss_metrics([TextLoss(1, 6, 5.0, None)]) == {"loss": 5 / 6}
    assert loss_metrics([]) == {}


def test_a_run_that_has_diverged_has_a_perplexity_too() -> None:
    assert perplexity(math.log(7)) == pytest.approx(7)
    assert perplexity(800.0) == math.inf and math.isnan(perplexity(math.nan))
