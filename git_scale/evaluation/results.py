"""What an evaluation leaves behind, in the formats that the evaluation servers take.

    metrics.json         {"eval/cider": 1.23, ...}
    intervals.json       {"eval/cider": [1.21, 1.25], ...}: 95 % intervals over images, of the metrics that have any
    results.json         the rows of the task: [{"image_id": 42, "caption": "..."}, ...]
    predictions.jsonl    one line per text: index, key, identity, question, generated, references, values of metrics
    submission.json      with eval.submission: what the benchmark's server takes, under the name that it wants
    captions.png         the first images with reference and text
    page.html            scores, and texts beside their images to sort and to search, in a browser

The ids are `image_id` of a sample's json and `question_id` of its questions. Where they are missing the sample's key
stands instead, "coco-000000.tar:42", and "coco-000000.tar:42#1" for its second question; no server takes those.
"""

from __future__ import annotations

import json
import logging
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from itertools import groupby
from pathlib import Path
from typing import Any

from git_scale.data.store import SampleStore
from git_scale.errors import DataError
from git_scale.evaluation.evaluator import EvaluationResult
from git_scale.evaluation.page import Card, disagreement, write_page
from git_scale.files import replaced_atomically
from git_scale.metrics.intervals import OfEach, intervals, values_of_each
from git_scale.metrics.metric import Prediction
from git_scale.tasks import SUBMISSIONS
from git_scale.tasks.submissions import Asked, Id, Submission, problems_of

log = logging.getLogger(__name__)


def write_results(folder: Path, evaluation: EvaluationResult) -> bool:
    """All files of an evaluation; each appears whole or not at all, and replaces one of an earlier evaluation.

    Returns whether the submission that was asked for is as its server takes it, True where none was. What the server
    would refuse is said, and no reason to lose the other files.
    """
    folder.mkdir(parents=True, exist_ok=True)
    try:
        write_rows(folder / "results.json", evaluation.results)
        for problem in id_problems(evaluation.predictions):
            log.warning("%s: %s", folder / "results.json", problem)
        problems = _write_submission(folder, evaluation)
        for problem in problems:
            log.warning("%s", problem)
        if evaluation.sheet:
            with replaced_atomically(folder / "captions.png") as temporary:
                evaluation.sheet.save(temporary, "PNG")
        write_scores(folder, evaluation)
    except OSError:
        with suppress(OSError):
            folder.rmdir()  # which an empty one alone lets
        raise
    return not problems


def write_scores(folder: Path, evaluation: EvaluationResult) -> None:
    """The files that hold values of metrics: to be written again where some were added later."""
    of_each = values_of_each(evaluation.metric_names, evaluation.predictions)
    lines = (_line(number, item, of_each) for number, item in enumerate(evaluation.predictions))
    _write(folder / "predictions.jsonl", "".join(lines))
    found = intervals(of_each, [item.index for item in evaluation.predictions])
    named = {f"eval/{name}": [low, high] for name, (low, high) in found.items()}
    _write(folder / "intervals.json", json.dumps(named, indent=1) + "\n")
    _write_page(folder / "page.html", evaluation, of_each, named)
    _write(folder / "metrics.json", json.dumps(evaluation.metrics, indent=1) + "\n")


def _write_submission(folder: Path, evaluation: EvaluationResult) -> list[str]:
    """What the server would refuse about it; nothing is written where no form is named."""
    run, store = evaluation.run, evaluation.store
    if run is None or store is None or run.eval.submission is None:
        return []
    form = SUBMISSIONS[run.eval.submission]
    path = folder / form.file_name.format(data=_word(run.data.heldout or ""), run=_word(run.run_dir))
    try:
        names = Path(run.data.class_names) if run.data.class_names else None
        asked = form.asked(store, range(len(store)), names)
        _write(path, form.write(_answers(form, store, asked, evaluation.predictions)))
        return [f"{path}: a server would refuse it: {problem}" for problem in problems_of(form, path, asked)]
    except DataError as error:
        return [f"{path}: {error}"]


def _answers(
    form: Submission, store: SampleStore, asked: Mapping[Id, Asked], predictions: Sequence[Prediction]
) -> Iterator[tuple[Asked, str]]:
    """The answers of each sample beside its ids; a question without words has none."""
    for number, said in groupby(predictions, key=lambda item: item.index):
        ids = form.ids(store.read_text(number))
        for item in said:
            wanted = asked[item.identity if item.identity in ids else ids[0]]
            yield wanted, form.answer(wanted, item)


def _word(path: str) -> str:
    """The last name of a path, of letters, digits and _ alone."""
    return re.sub(r"\W+", "_", Path(path).name)


def _write_page(
    path: Path, evaluation: EvaluationResult, of_each: OfEach, found: dict[str, list[float]]
) -> None:
    said = evaluation.predictions
    values = [values_of(of_each, number) for number in range(len(said))]
    spreads = disagreement(values, list(of_each))
    cards = [
        Card(item.index, item.key, item.question, item.generated, item.references, each, spread)
        for item, each, spread in zip(said, values, spreads, strict=True)
    ]
    rows = [("metric", "value", "95 % interval")]
    for name, value in evaluation.metrics.items():
        low_high = " to ".join(f"{bound:.4g}" for bound in found.get(name, ()))
        rows.append((name.removeprefix("eval/"), f"{value:.4g}", low_high))
    write_page(path, path.parent.name, cards, rows, "metrics disagree", evaluation.store)


def values_of(of_each: OfEach, number: int) -> dict[str, float]:
    """Those that prediction `number` has."""
    return {name: found for name, every in of_each.items() if (found := every[number]) is not None}


def id_problems(predictions: Sequence[Prediction]) -> list[str]:
    """Why an evaluation's server would not take the results: ids that are keys of samples, or stand twice."""
    counts = Counter(item.identity for item in predictions)
    keys = [item.identity for item in predictions if str(item.identity).startswith(item.key)]
    twice = [number for number, count in counts.items() if count > 1]
    problems = []
    if keys:
        problems.append(
            f"{len(keys)} texts have no image_id or question_id but a sample's key, as {keys[0]!r}"
        )
    if twice:
        problems.append(f"{len(twice)} ids stand more than once, as {twice[0]!r}")
    return [f"{problem}: no evaluation server takes that" for problem in problems]


def write_rows(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    """A JSON array with one row per line, so that two evaluations can be compared line by line."""
    _write(path, "[" + ",\n ".join(json.dumps(row, ensure_ascii=False) for row in rows) + "]\n")


def _line(number: int, item: Prediction, of_each: OfEach) -> str:
    names = ("index", "key", "identity", "question", "generated", "references")
    tree = {name: getattr(item, name) for name in names}
    if item.ranking:
        tree["ranking"] = item.ranking
    if item.domain:
        tree["domain"] = item.domain
    return json.dumps({**tree, "values": values_of(of_each, number)}, ensure_ascii=False) + "\n"


def _write(path: Path, text: str) -> None:
    with replaced_atomically(path) as temporary:
        # a half surrogate, which a json can spell, becomes that json's escape
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace")
