"""95 % intervals of an evaluation's metrics: what other images of the same kind would have given (bootstrap).

Images are drawn anew, with what was asked about each: the texts of one image are not independent of each other.
CIDEr's weights of phrases stay those of all references, as is usual.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from git_scale.metrics import METRICS
from git_scale.metrics.metric import Prediction, Predictions

RESAMPLES = 1000
LOW, HIGH = 2.5, 97.5
"""Percentiles of the resampled means."""

OfEach = dict[str, list[float | None]]
"""Metric -> its value of each prediction; None for one without a right text, or whose value is not finite."""


def values_of_each(names: Iterable[str], predictions: Sequence[Prediction]) -> OfEach:
    """Of the metrics that are means of a value of each prediction."""
    everything = Predictions.of(predictions)
    found: OfEach = {}
    for name in names:
        metric = METRICS[name]
        texts = everything.with_references if metric.needs_references else everything
        values = metric.of_each(texts) if metric.of_each and len(texts) else None
        if values is not None:
            given = (float(value) if math.isfinite(value) else None for value in values)
            found[name] = [
                next(given) if item.references or not metric.needs_references else None
                for item in predictions
            ]
    return found


def intervals(
    of_each: Mapping[str, Sequence[float | None]], images: Sequence[int]
) -> dict[str, tuple[float, float]]:
    """Metric -> its 95 % interval. `images`: the image that each value belongs to."""
    names = [name for name, values in of_each.items() if any(value is not None for value in values)]
    if not names:
        return {}
    groups = np.unique(np.asarray(images), return_inverse=True)[1]
    sums, counts = zip(*(_by_image(of_each[name], groups) for name in names), strict=True)
    means = _resampled(np.array(sums).T, np.array(counts).T)
    low, high = np.nanpercentile(means, [LOW, HIGH], axis=0)
    return {name: (float(low[n]), float(high[n])) for n, name in enumerate(names)}


def _by_image(values: Sequence[float | None], groups: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """float64 [images]: the sum of an image's values, and how many it has."""
    given = np.array([np.nan if value is None else value for value in values])
    is_known, size = ~np.isnan(given), int(groups.max()) + 1
    return np.bincount(groups[is_known], given[is_known], size), np.bincount(groups[is_known], minlength=size)


def _resampled(sums: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """[RESAMPLES, metrics]: means over as many images, drawn with repetition. Both are [images, metrics]."""
    rng, size = np.random.default_rng(0), len(sums)
    means = []
    for _ in range(RESAMPLES):
        times = np.bincount(rng.integers(size, size=size), minlength=size)
        with np.errstate(invalid="ignore"):  # none of the images drawn may have a right text
            means.append((times @ sums) / (times @ counts))
    return np.array(means)
