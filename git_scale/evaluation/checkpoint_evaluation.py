"""A checkpoint on shards of its own choice, on all ranks: what tools/evaluate.py does."""

from __future__ import annotations

import fnmatch
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from git_scale.checkpoint.detect import open_checkpoint
from git_scale.checkpoint.initial import values_from
from git_scale.checkpoint.opened_checkpoint import OpenedCheckpoint, refuse_encoder_alone, tokenizer_of
from git_scale.checkpoint.state import TRAINED
from git_scale.config import ParallelConfig, RunConfig
from git_scale.data.store import SampleStore
from git_scale.errors import ConfigError
from git_scale.evaluation.evaluator import EvaluationResult, Evaluator
from git_scale.evaluation.health import findings
from git_scale.models.build import build_model
from git_scale.models.deferred import DeferredModel
from git_scale.parallel.collectives import together
from git_scale.parallel.engine import InferenceEngine, start_processes, stop_processes
from git_scale.parallel.materialise import materialise_model
from git_scale.parallel.shared_indexing import open_store_together
from git_scale.parallel.topology import Topology
from git_scale.recipes import adjusted, keys_given, known_keys
from git_scale.tasks import SUBMISSIONS, build_task

log = logging.getLogger(__name__)

EFFECTIVE = (
    *("eval.beams", "eval.images", "eval.length_penalty", "eval.max_new_tokens", "eval.pictures"),
    *("data.max_bad_share", "data.max_side", "data.max_text_tokens", "data.resize", "data.task"),
    *("data.class_names", "eval.submission"),
    *("data.sample_timeout_s", "data.workers", "train.micro_batch", "train.precision"),
    *("parallel.decoder", "parallel.encoder", "parallel.tp"),
    *("model.encoder.image_size", "model.encoder.name", "model.encoder.options*", "model.frames", "plugins"),
)
"""Keys of a recipe that an evaluation reads; what else a model is, its weights say."""
OPTION_OF = {
    "data.heldout": "--data",
    "data.tokenizer": "--tokenizer",
    "eval.weights": "--weights",
    "init_from": "--checkpoint",
    "run_dir": "--checkpoint, and --out for the results",
}


def evaluate_checkpoint(
    checkpoint: Path,
    data: Path,
    task: str | None,
    tokenizer_path: Path | None,
    overrides: list[str],
    ds_config: dict[str, Any],
    topology: Topology,
    weights: str = TRAINED,
) -> EvaluationResult:
    """All samples of `data` (or the first `eval.images=N`). Collective; raises UserError, the same on all ranks.

    `weights`: ema, for the moving average of the checkpoint's.
    """
    opened = open_checkpoint(checkpoint, weights)
    refuse_encoder_alone(opened)
    if opened.average is not None and opened.run.eval.weights != weights:
        log.info("the trained weights are evaluated; the run evaluated their average, as --weights ema does")
    tokenizer = tokenizer_of(opened, tokenizer_path)
    run = evaluation_run(opened, data, task, overrides)
    topology = topology.with_tp(run.parallel.tp)
    device = start_processes(topology)
    store = open_store_together(topology, data)
    refuse_unanswerable(run, store, topology)
    run = fitted(run, device, topology, {} if _asks_for_images(overrides) else {"images": len(store)})
    asked = build_task(run.data.task, run, tokenizer)  # before the model, which takes longer to build
    deferred = DeferredModel(lambda: build_model(run.model), run.seed)
    values, _ = values_from(deferred, run.model, opened)
    materialised = materialise_model(deferred, run, values, ds_config, topology, device)
    runner = InferenceEngine(materialised, run, ds_config, topology, device)
    evaluation = Evaluator(run, store, asked, topology, key=f"--data {data}").evaluate(runner)
    stop_processes()
    for problem in evaluation.problems:
        log.warning("sample left out: %s", problem)
    for finding in findings([evaluation.metrics], in_a_row=1):
        log.warning("%s", finding)
    return evaluation


def refuse_unanswerable(run: RunConfig, store: SampleStore, topology: Topology) -> None:
    """Raises DataError, before any work, where the file of eval.submission cannot be made of these samples.

    Collective: the first rank looks at all of them.
    """
    if name := run.eval.submission:
        classes = Path(run.data.class_names) if run.data.class_names else None
        numbers = range(len(store) if topology.is_writer else 0)
        together(lambda: SUBMISSIONS[name].asked(store, numbers, classes) if numbers else None)


def evaluation_run(opened: OpenedCheckpoint, data: Path, task: str | None, overrides: list[str]) -> RunConfig:
    """The checkpoint's recipe with the given data and task, on one rank per copy.

    Raises ConfigError, for what has no effect in an evaluation as well.
    """
    if problems := list(_without_effect(overrides)):
        raise ConfigError(problems)
    train = opened.run.train.model_copy(update={"compile": False, "gradient_precision": "fp32"})
    run = opened.run.model_copy(update={"parallel": ParallelConfig(), "train": train})
    given = [f"data.heldout={data}"] + ([f"data.task={task}"] if task else [])
    return adjusted(run, [*given, *overrides])


def _without_effect(overrides: list[str]) -> Iterator[str]:
    for override in overrides:
        for key in keys_given(override):
            if key in OPTION_OF:
                yield f"{override!r}: set {OPTION_OF[key]}"
            elif key in known_keys() and not any(fnmatch.fnmatchcase(key, pattern) for pattern in EFFECTIVE):
                yield f"{override!r}: {key} has no effect in an evaluation; {', '.join(EFFECTIVE)} have"


def _asks_for_images(overrides: list[str]) -> bool:
    return any("eval.images" in keys_given(text) for text in overrides)


def fitted(run: RunConfig, device: torch.device, topology: Topology, evaluation: dict[str, int]) -> RunConfig:
    """The run with the precision that the device calculates in and a batch that these ranks make up."""
    precision = run.train.precision if device.type == "cuda" else "fp32"
    batch = {"precision": precision, "global_batch": run.train.micro_batch * topology.dp}
    return run.model_copy(
        update={
            "train": run.train.model_copy(update=batch),
            "eval": run.eval.model_copy(update=evaluation),
        }
    )
