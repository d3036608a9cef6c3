"""A study's table: how its settings differ, and by how much the seeds of one setting do."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import fmean
from typing import Any

from git_scale.files import write_text
from git_scale.studies.outcomes import Outcome
from git_scale.studies.plots import save_plots
from git_scale.studies.study import Study


def write_report(folder: Path, study: Study, outcomes: Sequence[Outcome], missing: Sequence[str]) -> None:
    """results.json (every evaluation), results.md (the table), curves.png and, where there are sizes, scaling.png.

    `missing`: names of the runs that have not ended.
    """
    folder.mkdir(parents=True, exist_ok=True)
    settings = by_setting(outcomes)
    runs = [_finite(asdict(one)) for one in outcomes]
    write_text(folder / "results.json", json.dumps({"runs": runs, "missing": list(missing)}, indent=1) + "\n")
    table = _markdown(header_of(study), rows_of(settings))
    note = f"\nNot ended: {', '.join(missing)}\n" if missing else ""
    write_text(folder / "results.md", table + note)
    save_plots(folder, study, settings)


def _finite(tree: Any) -> Any:
    """JSON knows no nan."""
    if isinstance(tree, dict):
        return {key: _finite(value) for key, value in tree.items()}
    if isinstance(tree, list | tuple):
        return [_finite(value) for value in tree]
    return None if isinstance(tree, float) and not math.isfinite(tree) else tree


def by_setting(outcomes: Iterable[Outcome]) -> list[list[Outcome]]:
    """The outcomes of one setting together, in the order in which they come."""
    found: dict[tuple[tuple[str, ...], bool], list[Outcome]] = {}
    for one in outcomes:
        found.setdefault((one.run.values, one.run.finetuned), []).append(one)
    return list(found.values())


def header_of(study: Study) -> list[str]:
    score = study.score.replace("_", " ")
    return [*study.axes, "fine-tuned", "samples seen", "nats per word", score, "seeds"]


def rows_of(settings: Iterable[Sequence[Outcome]]) -> list[list[str]]:
    """Means of the last evaluations over the seeds, and least and most."""
    return [
        [
            *runs[0].run.values,
            "yes" if runs[0].run.finetuned else "no",
            f"{runs[0].last.samples:,}",
            _spread([one.last.nats_per_word for one in runs]),
            _spread([one.last.score for one in runs]),
            str(len(runs)),
        ]
        for runs in settings
    ]


def _spread(values: Sequence[float]) -> str:
    if not all(map(math.isfinite, values)):
        return f"{sum(not math.isfinite(value) for value in values)} of {len(values)} diverged"
    mean = f"{fmean(values):.3f}"
    return mean if len(values) == 1 else f"{mean} ({min(values):.3f} to {max(values):.3f})"


def _markdown(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)
