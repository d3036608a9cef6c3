"""What two values of a run may be alone, and not together."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterator
from typing import Any

from git_scale.config import RunConfig
from git_scale.objectives import OBJECTIVES
from git_scale.schedules import SCHEDULES
from git_scale.section import MAX_IMAGE_SIZE
from git_scale.tasks import TASKS, problem_of_submission, problems_of_task

# Options of timm's encoders that mean the same in all of them
SIZES = {
    "depth",
    "depths",
    "num_heads",
    "embed_dim",
    "embed_dims",
    "dims",
    "patch_size",
    "mlp_ratio",
    "layers",
}
DROPPED = re.compile(r"(\w+_)?drop(_path)?_rate")


def contradictions(run: RunConfig) -> Iterator[str]:
    """Problems between fields, each with what to change."""
    decoder, data, train = run.model.decoder, run.data, run.train
    if decoder.width % decoder.heads:
        yield (
            f"model.decoder.heads={decoder.heads} does not divide model.decoder.width={decoder.width}:"
            f" set model.decoder.heads={_nearest_divisor(decoder.width, decoder.heads)}"
        )
    if data.max_text_tokens > decoder.positions:
        yield (
            f"data.max_text_tokens={data.max_text_tokens} exceeds model.decoder.positions={decoder.positions}:"
            f" set data.max_text_tokens={decoder.positions} or less"
        )
    if run.eval.max_new_tokens >= decoder.positions:
        yield (
            f"eval.max_new_tokens={run.eval.max_new_tokens} exceeds model.decoder.positions={decoder.positions}"
            f" minus the begin token: set eval.max_new_tokens={decoder.positions - 1} or less"
        )
    yield from _of_sources(run)
    yield from _of_task(run)
    if data.resize == "fit" and train.micro_batch > 1:
        yield (
            f"train.micro_batch={train.micro_batch} cannot be stacked with data.resize=fit, which gives each image"
            " its own shape: set train.micro_batch=1 or data.resize=pad"
        )
    yield from _of_objectives(run)
    yield from _of_computation(run)
    if run.parallel.sequence and train.micro_batch % run.parallel.tp:
        yield (
            f"train.micro_batch={train.micro_batch} is no multiple of parallel.tp={run.parallel.tp}, over which"
            f" parallel.sequence divides its images: set"
            f" train.micro_batch={-(-train.micro_batch // run.parallel.tp) * run.parallel.tp} or"
            " parallel.sequence=false"
        )
    if (best := run.checkpoint.best) is not None and data.heldout is None and "/" not in best:
        yield (
            f"checkpoint.best={best!r} is measured on held-out data: set data.heldout, or checkpoint.best=NAME/{best}"
            " with a source of data.sources that has heldout"
        )
    yield from _of_encoder(run)
    low, high = data.crop_scale
    if not 0 < low <= high <= 1:
        yield f"data.crop_scale={[low, high]} is no range within (0, 1]: the paper's is [0.8, 1.0]"
    if any(not 8 <= size <= MAX_IMAGE_SIZE for size in data.image_sizes):
        yield f"data.image_sizes={list(data.image_sizes)}: sides of 8 to {MAX_IMAGE_SIZE} pixels are needed"
    yield from _of_schedule(run)
    if not all(0 <= beta < 1 for beta in run.optimizer.betas):
        yield f"optimizer.betas={list(run.optimizer.betas)}: both lie in [0, 1)"
    if run.eval.weights == "ema" and run.optimizer.ema is None:
        yield (
            "eval.weights=ema is of an average of the weights, and optimizer.ema is not set: set optimizer.ema=0.9999"
            " or eval.weights=trained"
        )


def _of_schedule(run: RunConfig) -> Iterator[str]:
    warmup, name, decay = run.optimizer.warmup_steps, run.optimizer.schedule, run.optimizer.decay_steps
    steps = run.train.steps
    if warmup >= steps:
        yield (
            f"optimizer.warmup_steps={warmup} leaves nothing of train.steps={steps}: set"
            f" optimizer.warmup_steps={steps // 10}"
        )
    if problem := SCHEDULES.problem_of(name):
        yield problem
    elif SCHEDULES[name].decays and decay is None:
        yield (
            f"optimizer.schedule={name} ends in a decay, and optimizer.decay_steps is not set: set"
            f" optimizer.decay_steps={max(1, steps // 10)}"
        )
    elif decay is not None and not SCHEDULES[name].decays:
        yield (
            f"optimizer.decay_steps={decay} has no effect with optimizer.schedule={name}: leave it out, or set"
            " optimizer.schedule=wsd"
        )
    elif decay is not None and warmup < steps < warmup + decay:
        yield (
            f"optimizer.decay_steps={decay} and optimizer.warmup_steps={warmup} are more than train.steps={steps}:"
            f" set optimizer.decay_steps={steps - warmup} or less"
        )


def _of_objectives(run: RunConfig) -> Iterator[str]:
    if not run.train.objectives:
        yield f"train.objectives={{}} leaves nothing to learn: name one of {', '.join(OBJECTIVES)}"
    yield from filter(None, map(OBJECTIVES.problem_of, run.train.objectives))
    share = run.train.parallel_share
    if share > 0 and (tasks := _learned_tasks(run)) and all(TASKS[task].has_questions for task in tasks):
        yield (
            f"train.parallel_share={share} is of captions, and {', '.join(tasks)} has questions alone: set"
            " train.parallel_share=0, or add a source of captions to data.sources"
        )


def _learned_tasks(run: RunConfig) -> list[str]:
    named = [source.task or run.data.task for source in run.data.sources] or [run.data.task]
    return [task for task in dict.fromkeys(named) if not problems_of_task(task)]


def _of_sources(run: RunConfig) -> Iterator[str]:
    data = run.data
    keys = [f"data.sources[{number}]={source.path}" for number, source in enumerate(data.sources)]
    if data.sources and data.train is not None:
        yield (
            f"data.train={data.train} and data.sources={[source.path for source in data.sources]} are both given: set"
            " data.train=null, or leave data.sources out"
        )
        return
    if not data.sources and data.train is None:
        yield "data.sources=[]: nothing to train on; name a source, or give data.train"
    # a folder may serve two tasks: captions and questions about the same images
    places = [(os.path.realpath(source.path), source.task or data.task) for source in data.sources]
    for number, (source, place) in enumerate(zip(data.sources, places, strict=True)):
        if place in places[:number]:
            first = keys[places.index(place)]
            yield f"{keys[number]}: the same folder and task as {first}: name it once, with both weights"
        if source.task is not None:
            yield from (f"{keys[number]}: {problem}" for problem in problems_of_task(source.task))


def _of_task(run: RunConfig) -> Iterator[str]:
    data, positions = run.data, run.model.decoder.positions
    if run.eval.submission and (problem := problem_of_submission(run.eval.submission, data.task)):
        yield problem
    asked = [data.task, *(source.task for source in data.sources if source.heldout and source.task)]
    if problems := problems_of_task(data.task):
        yield from problems
    elif (
        any(TASKS[task].has_questions for task in asked if not TASKS.problem_of(task))
        and data.max_text_tokens + run.eval.max_new_tokens > positions
    ):
        yield (
            f"data.max_text_tokens={data.max_text_tokens} (question) + eval.max_new_tokens={run.eval.max_new_tokens}"
            f" (answer) exceed model.decoder.positions={positions}: set eval.max_new_tokens lower"
        )


def _of_computation(run: RunConfig) -> Iterator[str]:
    train = run.train
    if train.precision == "fp32" and train.gradient_precision == "bf16":
        yield (
            "train.gradient_precision=bf16 is for runs in bf16, and train.precision=fp32: leave"
            " train.gradient_precision out or set train.precision=bf16"
        )
    if train.compile and run.parallel.tp > 1:
        yield (
            f"train.compile=true does not go with parallel.tp={run.parallel.tp}, whose layers exchange numbers within"
            " a block: set train.compile=false"
        )
    if train.compile and run.data.resize == "fit":
        yield (
            "train.compile=true with data.resize=fit would compile for every shape of image: set"
            " train.compile=false or data.resize=pad"
        )


def _of_encoder(run: RunConfig) -> Iterator[str]:
    encoder = run.model.encoder
    for name, value in _values("", encoder.options):
        if value is None:
            yield (
                f"model.encoder.options: {name!r} has no value"
                + (": a space is needed behind its colon" if ":" in name else ", and timm would pass over it")
            )
        elif problem := _problem_of_number(name, value):
            yield f"model.encoder.options.{name}={value}: {problem}"
    if encoder.position_std is not None and encoder.start != "scratch" and run.init_from is None:
        yield (
            f"model.encoder.position_std={encoder.position_std} is of a first table of positions, but"
            f" model.encoder.start={encoder.start} brings one: leave it out, or set model.encoder.start=scratch"
        )


def _values(name: str, value: Any) -> Iterator[tuple[str, Any]]:
    """Each value below, with the name that it stands under: items of a list have the list's."""
    if isinstance(value, dict):
        for key, item in value.items():
            yield from _values(key, item)
    elif isinstance(value, list):
        for item in value:
            yield from _values(name, item) if item is not None else ()
    else:
        yield name, value


def _problem_of_number(name: str, value: Any) -> str:
    """What no encoder can have; empty for what may be."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return ""
    if not math.isfinite(value):
        return "a finite number is needed"
    if name in SIZES and value <= 0:
        return "a number above 0 is needed"
    if DROPPED.fullmatch(name) and not 0 <= value < 1:
        return "a share of what is dropped lies in [0, 1)"
    return ""


def _nearest_divisor(number: int, wish: int) -> int:
    divisors = [candidate for candidate in range(1, number + 1) if number % candidate == 0]
    return min(divisors, key=lambda candidate: abs(candidate - wish))
