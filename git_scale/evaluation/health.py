"""What the evaluations of a run say about its health: plain sentences, before days are spent on it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

Metrics = Mapping[str, float | None]
"""Of one evaluation, by their names in the log; None: it was not finite."""

LEAST_GAIN = 0.05
"""Nats per token that the right image saves in a model that looks at its images, at the least."""

LEAST_DISTINCT = 0.1
"""Distinct generated texts, as a share of the distinct references."""

OVERFIT = 0.05
"""Nats per token by which the held-out loss has risen above its lowest when a run only learns by heart."""

IN_A_ROW = 2
"""Evaluations that must agree: one alone may be the first of a run, or chance."""


def loss_rise(past: Sequence[Metrics], metrics: Metrics) -> float | None:
    """Nats per token by which the held-out loss lies above the lowest one so far; None where there is no loss."""
    losses = [loss for item in (*past, metrics) if (loss := item.get("eval/loss")) is not None]
    loss = metrics.get("eval/loss")
    return None if loss is None else loss - min(losses)


def findings(evaluations: Sequence[Metrics], in_a_row: int = IN_A_ROW) -> list[str]:
    """A sentence for each thing that is wrong in the last `in_a_row` evaluations, oldest first in `evaluations`."""
    last = evaluations[-in_a_row:]
    if len(last) < in_a_row:
        return []
    return [say(last[-1]) for is_wrong, say in _CHECKS if all(map(is_wrong, last))]


def _ignores_images(metrics: Metrics) -> bool:
    gain = metrics.get("eval/image_gain")
    return gain is not None and gain < LEAST_GAIN


def _say_ignores_images(metrics: Metrics) -> str:
    return (
        f"the images are not used: the right one saves {_shown(metrics, 'eval/image_gain')} nats per token against"
        f" another sample's (less than {LEAST_GAIN}). Usual reasons: learning rates that are too high, captions that"
        " do not belong to their images, an image encoder that is frozen or from random weights, too few steps"
    )


def _shown(metrics: Metrics, name: str) -> str:
    return f"{round(metrics[name] or 0.0, 3) + 0.0:.3f}"  # + 0.0: no "-0.000"


def _says_the_same(metrics: Metrics) -> bool:
    distinct, references = metrics.get("eval/distinct"), metrics.get("eval/distinct_references")
    return distinct is not None and references is not None and distinct < LEAST_DISTINCT * references


def _say_says_the_same(metrics: Metrics) -> str:
    return (
        f"nearly the same text for every image: {metrics['eval/distinct']:.1%} of the generated texts are distinct,"
        f" {metrics['eval/distinct_references']:.1%} of the references. Usual reasons: learning rates that are too"
        " high, too few steps, a set of captions that mostly say the same"
    )


def _overfits(metrics: Metrics) -> bool:
    return (metrics.get("eval/loss_rise") or 0.0) > OVERFIT


def _say_overfits(metrics: Metrics) -> str:
    return (
        f"over-fitting: the held-out loss has risen to {metrics['eval/loss']:.3f}, {metrics['eval/loss_rise']:.3f}"
        " above its lowest. Take fewer steps, lower rates or more data; checkpoint.best=loss keeps the lowest"
    )


_CHECKS: tuple[tuple[Callable[[Metrics], bool], Callable[[Metrics], str]], ...] = (
    (_ignores_images, _say_ignores_images),
    (_says_the_same, _say_says_the_same),
    (_overfits, _say_overfits),
)
