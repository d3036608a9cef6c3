"""The pictures of a study: curves against samples seen, and the final score against the size of data and model."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from statistics import fmean
from typing import Any

from git_scale.errors import UserError
from git_scale.files import replaced_atomically
from git_scale.studies.outcomes import Outcome, Point
from git_scale.studies.study import Study

Setting = Sequence[Outcome]
"""The outcomes of one setting, one for each seed."""


def save_plots(folder: Path, study: Study, settings: Sequence[Setting]) -> None:
    """curves.png and, where settings differ along an axis of data or size, scaling.png."""
    _save(draw_curves(study, settings), folder / "curves.png")
    panels = list(_panels(study, settings))
    if panels:
        _save(draw_scaling(study, panels), folder / "scaling.png")


def draw_curves(study: Study, settings: Sequence[Setting]) -> Any:
    """Nats per word and the score of each setting against samples seen: means, and bands from least to most.

    Returns matplotlib's Figure.
    """
    figure = _figure(width=12)
    quantities = {
        "held-out nats per word": lambda point: point.nats_per_word,
        _spoken(study): lambda point: point.score,
    }
    for place, (name, value_of) in enumerate(quantities.items(), start=1):
        panel = figure.add_subplot(1, 2, place)
        panel.set_xlabel("samples seen")
        panel.set_ylabel(name)
        for runs in settings:
            _draw_curve(panel, study, runs, value_of)
    panel.legend(fontsize="small")
    return figure


def _draw_curve(panel: Any, study: Study, runs: Setting, value_of: Callable[[Point], float]) -> None:
    of_seeds = [{point.samples: value_of(point) for point in one.points} for one in runs]
    seen = [samples for samples in of_seeds[0] if all(samples in one for one in of_seeds)]
    values = [[one[samples] for one in of_seeds] for samples in seen]
    (line,) = panel.plot(seen, list(map(fmean, values)), marker="o", label=_label(study, runs[0]))
    panel.fill_between(
        seen, list(map(min, values)), list(map(max, values)), alpha=0.2, color=line.get_color()
    )


Panel = tuple[str, str, Callable[[Outcome], int], list[list[Setting]]]
"""An axis, what its sizes are, that of an outcome, and lines: settings that differ along the axis alone."""


def _panels(study: Study, settings: Sequence[Setting]) -> Iterator[Panel]:
    data, size = lambda one: one.training_samples, lambda one: one.parameters
    for axis, unit, size_of in (
        (study.data_axis, "training samples", data),
        (study.size_axis, "parameters", size),
    ):
        if axis is not None and (lines := _lines(study, axis, size_of, settings)):
            yield axis, unit, size_of, lines


def _lines(
    study: Study, axis: str, size_of: Callable[[Outcome], int], settings: Sequence[Setting]
) -> list[list[Setting]]:
    place = list(study.axes).index(axis)
    lines: dict[Any, list[Setting]] = {}
    for runs in settings:
        run = runs[0].run
        lines.setdefault((*run.values[:place], *run.values[place + 1 :], run.finetuned), []).append(runs)
    return [sorted(line, key=lambda runs: size_of(runs[0])) for line in lines.values() if len(line) > 1]


def draw_scaling(study: Study, panels: Sequence[Panel]) -> Any:
    """The last score against the size of the data and of the model. Returns matplotlib's Figure."""
    figure = _figure(width=6 * len(panels))
    for place, (axis, unit, size_of, lines) in enumerate(panels, start=1):
        panel = figure.add_subplot(1, len(panels), place)
        panel.set_xscale("log")
        panel.set_xlabel(unit)
        panel.set_ylabel(_spoken(study))
        for line in lines:
            sizes = [size_of(runs[0]) for runs in line]
            scores = [[one.last.score for one in runs] for runs in line]
            means = list(map(fmean, scores))
            # not below 0: a mean may lie a rounding beside equal scores
            below = [max(0.0, mean - min(of_seeds)) for mean, of_seeds in zip(means, scores, strict=True)]
            above = [max(0.0, max(of_seeds) - mean) for mean, of_seeds in zip(means, scores, strict=True)]
            label = _label(study, line[0][0], without=axis)
            panel.errorbar(sizes, means, yerr=[below, above], marker="o", capsize=3, label=label)
        panel.legend(fontsize="small")
    return figure


def _label(study: Study, one: Outcome, without: str | None = None) -> str:
    """The values that not all settings have."""
    told = [
        value
        for (axis, values), value in zip(study.axes.items(), one.run.values, strict=True)
        if axis != without and len(values) > 1
    ]
    return ", ".join([*told, *(["fine-tuned"] if one.run.finetuned else [])])


def _spoken(study: Study) -> str:
    return study.score.replace("_", " ")


def refuse_without_matplotlib() -> None:
    """Raises UserError where the pictures could not be drawn."""
    if find_spec("matplotlib") is None:
        raise UserError("the pictures of a study need matplotlib: pip install 'git_scale[study]'")


def _figure(width: float) -> Any:
    from matplotlib.figure import Figure

    return Figure(figsize=(width, 4.5), layout="constrained")


def _save(figure: Any, path: Path) -> None:
    with replaced_atomically(path) as temporary:
        figure.savefig(temporary, format="png", dpi=100)
