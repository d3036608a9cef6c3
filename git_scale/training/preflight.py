"""What a start would refuse, looked for before anything is begun and reported all at once.

A dry run asks the same, so that it ends with the code of a start.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from itertools import combinations
from pathlib import Path
from typing import Literal, TypeVar

import numpy as np

from git_scale.checkpoint.encoder_start import check_encoder_start
from git_scale.checkpoint.layout import published
from git_scale.config import DataConfig, RunConfig
from git_scale.data.coverage import report_coverage
from git_scale.data.heldout import heldout_data
from git_scale.data.images import longest_side
from git_scale.data.mixture import Mixture, tasks_of, training_sources
from git_scale.data.store import SampleStore, problem_of
from git_scale.data.tokenizer import Tokenizer, load_tokenizer
from git_scale.errors import ConfigError, DataError, UserError
from git_scale.models.encoders import ImageEncoder
from git_scale.tasks import TASKS, check_metric
from git_scale.tasks.task import TextRequirement
from git_scale.training.continuation import check_continuation
from git_scale.training.run_folder import check_run_folder

log = logging.getLogger(__name__)

LOOKED_AT = 64  # samples, over all shards, whose texts say which task the data can serve
IMAGES_LOOKED_AT = 8
Result = TypeVar("Result")


class ProblemList:
    """Collects what is wrong; ConfigError holds all of it."""

    def __init__(self, found: list[str]) -> None:
        self.found = found

    def of(self, check: Callable[[], Result]) -> Result | None:
        """The result of a check, or None and its problems noted."""
        try:
            return check()
        except ConfigError as error:
            self.found += [problem for problem in error.problems if problem not in self.found]
        except UserError as error:
            self.found.append(str(error))
        return None

    def raise_all(self) -> None:
        if self.found:
            raise ConfigError(self.found)


def check_inputs(run: RunConfig, problems: ProblemList) -> None:
    """Notes everything that the run reads or continues and that is not there or does not fit; opens no shard."""
    has_fitting_model = (
        not problems.found
    )  # else the model may be the default's, and not what the tokenizer is for
    problems.of(lambda: check_best(run))
    for task in tasks_of(run.data):
        problems.found += TASKS[task].problems_of(run) if not TASKS.problem_of(task) else []
    for key, given in (training_sources(run.data) | heldout_data(run.data)).items():
        if problem := problem_of(given.path):
            problems.found.append(f"{key}: {problem}")
    if has_fitting_model:
        problems.of(lambda: load_fitting_tokenizer(run))
    elif run.data.tokenizer != DataConfig().tokenizer:  # that of init_from, where this is not there
        problems.of(lambda: load_tokenizer(run.data.tokenizer))
    problems.of(lambda: check_run_folder(run))
    if not any(problem.startswith("continue_from: ") for problem in problems.found):
        problems.of(lambda: check_continuation(run))
    if run.init_from is None and run.continue_from is None and not published(Path(run.run_dir)):
        problems.of(lambda: check_encoder_start(run.model.encoder))


def check_best(run: RunConfig) -> None:
    """Raises ConfigError when checkpoint.best names what no held-out data of the run has, or what is not measured.

    `cider` is of data.heldout; `coco/train/cider` of what the source coco/train holds out.
    """
    best = run.checkpoint.best
    if best is None or "/" not in best:
        check_metric(run.data.task, best)
        return
    source, _, metric = best.rpartition("/")
    tasks = {one.name: one.task for one in heldout_data(run.data).values() if one.name}
    if source not in tasks:
        known = [f"{name}/{metric}" for name in tasks]
        remedy = f"it is one of {', '.join(known)}" if known else "none has any"
        raise ConfigError([f"checkpoint.best={best!r}: no source {source!r} has held-out data: {remedy}"])
    check_metric(tasks[source], metric)


def load_fitting_tokenizer(run: RunConfig) -> Tokenizer:
    """Raises ConfigError when it is another model's, DataError when it cannot be read."""
    tokenizer = load_tokenizer(run.data.tokenizer)
    if tokenizer.vocab_size != run.model.vocab_size:
        raise ConfigError(
            [
                f"model.vocab_size={run.model.vocab_size}, but {run.data.tokenizer} has {tokenizer.vocab_size}"
                f" pieces: set model.vocab_size={tokenizer.vocab_size} or take the fitting tokenizer"
            ]
        )
    return tokenizer


def check_image_sizes(run: RunConfig, encoder: ImageEncoder) -> bool:
    """True; raises ConfigError for sizes of which the encoder would see a part."""
    problems = [
        f"{key}={size}: {problem}"
        for key, sizes in (
            ("model.encoder.image_size", [run.model.encoder.image_size]),
            ("data.image_sizes", run.data.image_sizes),
        )
        for size in sizes
        if (problem := encoder.problem_of_size(size))
    ]
    if problems:
        raise ConfigError(problems)
    return True


def training_shapes(run: RunConfig) -> list[tuple[int, int]]:
    """(height, width) of the images to come; of data.resize=fit, which has any, a wide and a high one."""
    squares = [(size, size) for size in run.train_image_sizes]
    if run.data.resize != "fit":
        return squares
    wide = [(size, longest_side(run.data, size)) for size, _ in squares]
    return squares + wide + [(width, height) for height, width in wide]


def check_data(run: RunConfig, train: Sequence[SampleStore], heldout: Sequence[SampleStore | None]) -> None:
    """Raises ConfigError for samples that cannot serve their task, or that are trained on and held out.

    `train`: of the training_sources. `heldout`: of heldout_data; None where they cannot be opened.
    """
    problems = list[str]()
    learned = list(zip(training_sources(run.data).items(), train, strict=True))
    for (key, source), store in learned:
        problems.append(_problem_of_task(run, store, key, str(source.task), "learns_from"))
    for (key, one), held in zip(heldout_data(run.data).items(), heldout, strict=True):
        if held is None:
            continue
        shared = [(where, what) for (where, _), store in learned if (what := _shared(store, held))]
        for where, what in shared if not run.eval.on_training_data else ():
            problems.append(
                f"{key}: {what} is trained on ({where}), so its scores would say nothing of other images: hold out"
                f" other shards, or {one.removal}; to overfit on purpose, eval.on_training_data=true"
            )
        problems.append(_problem_of_task(run, held, key, one.task, "asks_about"))
    if found := list(filter(None, problems)):
        raise ConfigError(found)


def report_sources(run: RunConfig, train: Mixture, tokenizer: Tokenizer) -> None:
    """Logs what the run sees of each source, and how the tokenizer spells it."""
    lines = train.describe(run.train.steps * run.train.global_batch)
    sources = training_sources(run.data)
    keys = list(sources)
    counts = train.schedule.counts(run.train.steps * run.train.global_batch)
    for key, store, line, count in zip(keys, train.stores, lines, counts, strict=True):
        log.log(logging.INFO if count else logging.WARNING, "%s: %s", key, line)
        report_coverage(tokenizer, store, key)
    for (key, store), (other_key, other) in combinations(zip(keys, train.stores, strict=True), 2):
        if store.fingerprint == other.fingerprint and sources[key].task != sources[other_key].task:
            continue  # one folder for two tasks
        if count := int((np.isin(store.contents, other.contents) & (store.contents != 0)).sum()):
            log.warning("%s: %d of its %d parts lie in %s as well", key, count, len(store.counts), other_key)


def _shared(train: SampleStore, heldout: SampleStore) -> str:
    """What of the held-out samples is trained on, in words; empty for nothing."""
    shared = np.isin(heldout.contents, train.contents) & (heldout.contents != 0)
    if shared.all() or _is_same_content(train, heldout):
        return "it"
    if not shared.any():
        return ""
    part = int(np.flatnonzero(shared)[0])
    first = heldout.key(int(heldout.counts[:part].sum()))
    return f"{int(shared.sum())} of its {len(shared)} parts, as that of {first},"


def _is_same_content(train: SampleStore, heldout: SampleStore) -> bool:
    """As far as names, sizes and counts, and the texts of some samples, say."""
    if train.fingerprint != heldout.fingerprint:
        return False
    return all(_read(train.read_text, number) == _read(heldout.read_text, number) for number in _some(train))


def _some(store: SampleStore) -> list[int]:
    """Numbers of at most LOOKED_AT samples, over all shards."""
    return [int(number) for number in np.unique(np.linspace(0, len(store) - 1, LOOKED_AT).astype(int))]


def _problem_of_task(
    run: RunConfig, store: SampleStore, key: str, wanted: str, kind: Literal["learns_from", "asks_about"]
) -> str:
    """What a look at some samples says of the task and model.frames; empty when one of them serves, or none says."""
    numbers = _some(store)
    texts = [text for number in numbers if (text := _read(store.read_text, number)) is not None]
    needs: dict[str, TextRequirement] = {
        task: getattr(TASKS[task], kind) for task in TASKS if not TASKS.problem_of(task)
    }
    served = [task for task, need in needs.items() if any(map(need.is_met_by, texts))]
    if texts and wanted not in served:
        setting = "its task" if key.startswith("data.sources") else "data.task"
        # of several tasks for what is there the first, and none that lacks something else
        others = {needs[task].what: task for task in reversed(served) if not TASKS[task].problems_of(run)}
        remedy = "".join(f"they have {what}: set {setting}={task}, or " for what, task in others.items())
        return (
            f"{key}: none of {len(texts)} samples looked at has {needs[wanted].what},"
            f" for {setting}={wanted}; {remedy}take other shards"
        )
    if not TASKS[wanted].has_images:
        return ""
    raws = [raw for number in numbers[:IMAGES_LOOKED_AT] if (raw := _read(store.read, number)) is not None]
    if run.model.frames > 1 and raws and not any(raw.is_clip for raw in raws):
        return (
            f"{key}: none of {len(raws)} samples looked at has a video or frames (KEY.0.jpg, KEY.1.jpg, ...), for"
            f" model.frames={run.model.frames}: set model.frames=1, or take shards of clips"
        )
    if run.model.frames == 1 and raws and not any(raw.image for raw in raws):
        return f"{key}: none of {len(raws)} samples looked at has an image, but frames of clips: set model.frames"
    return ""


def _read(read: Callable[[int], Result], number: int) -> Result | None:
    try:
        return read(number)
    except DataError:  # the loader's to count
        return None
