"""The metrics of an evaluation, and in which direction each is better."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from numbers import Real

from git_scale.metrics import METRICS
from git_scale.metrics.metric import DOMAINS, Metric, Prediction, Predictions

HELDOUT_LOSS = "loss"
"""What every evaluation measures beside the metrics of its task; the lower the better."""


def score(names: Iterable[str], predictions: Sequence[Prediction]) -> dict[str, float]:
    """These of METRICS by name, and how many images and texts there were; those without a reference are counted only.

    A metric that nothing can be said of is left out. Those that judge by a value of each text are also given of each
    domain of the data that there is: `cider_out_domain`. CIDEr's weights of phrases stay those of all references,
    as on nocaps' server: the CIDEr of all images that it prints is the mean of its three, by their sizes (GIT:
    1,311 x 122.40 + 7,406 x 123.92 + 1,883 x 122.04 over 10,600 images are 123.40, and 123.39 is published).
    """
    everything = Predictions.of(predictions)
    found: dict[str, float] = {}
    for name in names:
        metric = METRICS[name]
        texts = everything.with_references if metric.needs_references else everything
        if texts and (value := _value(name, metric, texts)) is not None:
            found[name] = value
            found |= _by_domain(name, metric, texts)
    images = len({item.index for item in predictions})
    return found | {"images": float(images), "texts": float(len(predictions))}


def _by_domain(name: str, metric: Metric, texts: Predictions) -> dict[str, float]:
    given = {item.domain for item in texts}
    domains = [domain for domain in DOMAINS if domain in given]
    values = metric.of_each(texts) if domains and metric.better and metric.of_each else None
    if values is None:
        return {}
    pairs = list(zip(texts, values, strict=True))
    parts = {domain: [value for item, value in pairs if item.domain == domain] for domain in domains}
    return {
        f"{name}_{domain.replace('-', '_')}": float(sum(part)) / len(part) for domain, part in parts.items()
    }


def _value(name: str, metric: Metric, texts: Predictions) -> float | None:
    try:
        value = metric.compute(texts)
    except Exception as error:
        error.add_note(f"in the metric {name}")
        raise
    if value is not None and not isinstance(value, Real):
        raise TypeError(f"the metric {name} gave {value!r}: a number is wanted, or None")
    return value


def judges(names: Iterable[str]) -> list[str]:
    """Those by which one evaluation is better than another: what checkpoint.best may be, the held-out loss last."""
    return [*(name for name in names if METRICS[name].better is not None), HELDOUT_LOSS]


def lower_is_better(name: str) -> bool:
    return name == HELDOUT_LOSS or METRICS[name].better == "lower"
