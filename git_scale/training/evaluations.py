"""The evaluations of a run: its held-out data in turn, each under its own name in the log.

    eval/cider             heldout               data.heldout
    eval/coco/train/cider  heldout/coco/train    what the source coco/train holds out

An evaluation is one line of metrics.jsonl, so that it is there whole or not at all.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from git_scale.data.heldout import named
from git_scale.evaluation.evaluator import Evaluator
from git_scale.evaluation.health import Metrics, findings, loss_rise
from git_scale.models.interface import Runner
from git_scale.monitoring.writers import LogWriter


class Evaluations:
    """Asks each evaluator in turn, the same on all ranks, and judges each by its own earlier figures."""

    def __init__(self, evaluators: Mapping[str, Evaluator], past: Sequence[Metrics]) -> None:
        """`evaluators`: by the name of the source, empty for data.heldout. `past`: evaluations of the run so far."""
        self.evaluators = dict(evaluators)
        self.past = list(past)

    def __bool__(self) -> bool:
        return bool(self.evaluators)

    def of_step(self, step: int) -> Metrics | None:
        """The last one of that step in an earlier start; None where there was none."""
        found = [metrics for metrics in self.past if metrics.get("step") == step]
        return found[-1] if found else None

    def evaluate(self, step: int, runner: Runner, writer: LogWriter) -> Metrics:
        """Logs metrics, findings and pictures. Collective; raises Stopped, on all ranks, before it logs anything."""
        found = {name: evaluator.evaluate(runner) for name, evaluator in self.evaluators.items()}
        metrics: dict[str, float] = {}
        for source, evaluation in found.items():
            if (rise := loss_rise(self._past_of(source), evaluation.metrics)) is not None:
                evaluation.metrics["eval/loss_rise"] = rise
            metrics |= {named(name, source): value for name, value in evaluation.metrics.items()}
        self.past.append(metrics)
        writer.scalars(step, metrics)
        for source, evaluation in found.items():
            for finding in findings(self._past_of(source)):
                writer.text(step, named("eval/finding", source), finding)
            if evaluation.sheet is not None:
                writer.pictures(step, named("heldout", source), evaluation.sheet)
        return metrics

    def _past_of(self, source: str) -> list[Metrics]:
        """What was found of that source so far, by the names that data.heldout has."""
        section = f"{named('eval', source)}/"
        return [
            {
                f"eval/{name.removeprefix(section)}": value
                for name, value in metrics.items()
                if name.startswith(section)
            }
            for metrics in self.past
        ]
