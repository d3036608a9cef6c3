"""Which metrics a task has, over all texts that have a reference."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from git_scale.checkpoint.layout import LOWER_IS_BETTER
from git_scale.errors import ConfigError
from git_scale.evaluation.caption_metrics import caption_metrics
from git_scale.evaluation.exact_match import exact_match, normalize_text
from git_scale.evaluation.vqa_accuracy import vqa_accuracy

METRICS = {
    "caption": ("exact_match", "bleu_1", "bleu_2", "bleu_3", "bleu_4", "rouge_l", "cider"),
    "vqa": ("exact_match", "vqa_accuracy"),
}
"""Names of what `score` measures, for each value of data.task. Higher is better in all of them."""


class Scored(Protocol):
    """What a score needs to know of a text."""

    @property
    def index(self) -> int: ...
    @property
    def generated(self) -> str: ...
    @property
    def references(self) -> list[str]: ...


def score(task: str, predictions: Sequence[Scored]) -> dict[str, float]:
    """METRICS[task], and how many images and texts there were; texts without a reference are counted only.

    `distinct` and `distinct_references`: the share of different texts among those generated, and among the first
    references.
    """
    known = [item for item in predictions if item.references]
    counts = {
        "images": float(len({item.index for item in predictions})),
        "texts": float(len(predictions)),
    }
    if not known:
        return counts
    generated, references = [item.generated for item in known], [item.references for item in known]
    metrics = {"exact_match": exact_match(generated, references)}
    metrics["distinct"] = distinct_share(generated)
    metrics["distinct_references"] = distinct_share([texts[0] for texts in references])
    if task == "vqa":
        metrics["vqa_accuracy"] = vqa_accuracy(generated, references)
    else:
        metrics |= caption_metrics(generated, references)
    return metrics | counts


def distinct_share(texts: Sequence[str]) -> float:
    """Different texts after `normalize_text`, as a share of all."""
    return len(set(map(normalize_text, texts))) / len(texts)


def check_metric(task: str, name: str | None) -> None:
    """Raises ConfigError when checkpoint.best names what the task does not measure."""
    known = (*METRICS[task], *LOWER_IS_BETTER)  # the held-out loss, which every task has
    if name is not None and name not in known:
        raise ConfigError(
            [f"checkpoint.best={name!r}: with data.task={task} it is one of {', '.join(known)}"]
        )
