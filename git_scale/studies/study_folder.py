"""The folder in which a study's runs lie: which have ended, which are next, and what came of them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from git_scale.config import RunConfig, check_world
from git_scale.data.heldout import heldout_data
from git_scale.data.mixture import training_sources
from git_scale.errors import ConfigError, UserError
from git_scale.objectives.training_loss import check_objectives
from git_scale.planning.local_model import whole_model
from git_scale.recipes import load_run
from git_scale.studies.outcomes import Outcome, has_ended, outcome_of
from git_scale.studies.report import by_setting, header_of, rows_of, write_report
from git_scale.studies.study import (
    StudyRun,
    all_runs,
    chains,
    command_of,
    judged_runs,
    overrides_of,
    own_keys,
    read_study,
)
from git_scale.tasks import check_metric
from git_scale.training.init_model import inherited_from
from git_scale.training.preflight import ProblemList, check_inputs

REPORT = "report"


class StudyFolder:
    """Raises ConfigError with the problems of all runs, before any of them begins."""

    def __init__(self, study: str, runs: Path, overrides: Sequence[str]) -> None:
        self.study, self.overrides = read_study(study), list(overrides)
        self.folder = runs / Path(study).stem
        self.recipes: dict[StudyRun, RunConfig] = {}
        problems: dict[str, Sequence[str]] = {}
        if self_set := own_keys(self.study) & {override.partition("=")[0] for override in overrides}:
            raise ConfigError([f"{key}: a study sets it itself in each run" for key in sorted(self_set)])
        for run in all_runs(self.study):
            if run.finetuned and run.start not in self.recipes:
                continue  # what is wrong with its start is said
            try:
                self.recipes[run] = self._recipe_of(run)
            except ConfigError as error:
                problems[run.name] = error.problems
        _raise_all(problems)
        self._refuse_equal_runs()

    def _recipe_of(self, run: StudyRun) -> RunConfig:
        """The run as its tool will read it. Raises ConfigError."""
        overrides = overrides_of(self.study, run, self.folder, self.overrides)
        before = self.recipes[run.start] if run.finetuned else None
        recipe = load_run(
            self.study.recipe, overrides, inherited_from if before is None else lambda *_: _handed_on(before)
        )
        _check_scored(recipe, self.study.score)
        return recipe

    def _refuse_equal_runs(self) -> None:
        names: dict[str, str] = {}
        for run, recipe in self.recipes.items():
            asked = recipe.model_copy(update={"run_dir": ""}).model_dump_json()
            if (other := names.setdefault(asked, run.name)) != run.name:
                raise ConfigError(
                    [f"{run.name} and {other} are the same run: an override for all takes their difference"]
                )

    def __iter__(self) -> Iterator[StudyRun]:
        """All runs, each behind the one that it goes on from."""
        return iter(self.recipes)

    @property
    def paths(self) -> set[Path]:
        """What the runs read: training and held-out data, and tokenizers."""
        return {
            Path(place)
            for recipe in self.recipes.values()
            for place in (
                recipe.data.tokenizer,
                *(
                    source.path
                    for source in (training_sources(recipe.data) | heldout_data(recipe.data)).values()
                ),
            )
        }

    def check(self, runs: Iterable[StudyRun], processes: int) -> None:
        """Raises ConfigError with what these runs would be refused for when their turn comes."""
        _raise_all({run.name: _problems_of(self.recipes[run], processes) for run in runs})

    def has_ended(self, run: StudyRun) -> bool:
        return has_ended(self.recipes[run])

    def samples_of(self, run: StudyRun) -> int:
        """That the run itself sees."""
        train = self.recipes[run].train
        return train.steps * train.global_batch

    def command_of(self, run: StudyRun) -> list[str]:
        """The tool and its arguments."""
        return command_of(self.study, run, self.folder, self.overrides)

    @property
    def chains(self) -> list[list[StudyRun]]:
        """Runs that need nothing of one another, each with the one that goes on from it."""
        return chains(self.study)

    @cached_property
    def outcomes(self) -> list[Outcome]:
        """Of the compared runs that have ended."""
        ended = (run for run in judged_runs(self.study) if self.has_ended(run))
        return [
            outcome_of(
                run,
                self.recipes[run],
                self.recipes[run.start] if run.finetuned else None,
                self.study.score,
            )
            for run in ended
        ]

    @property
    def missing(self) -> list[str]:
        """Names of the compared runs that have not ended."""
        return [run.name for run in judged_runs(self.study) if not self.has_ended(run)]

    def table(self) -> tuple[list[str], list[list[str]]]:
        """Header and rows of the settings that have an outcome."""
        return header_of(self.study), rows_of(by_setting(self.outcomes))

    def write_report(self) -> Path:
        """The folder with table and pictures. Raises UserError where no run has ended."""
        if not self.outcomes:
            raise UserError(
                f"{self.folder}: none of the study's runs has ended: run it first, without --report"
            )
        write_report(self.folder / REPORT, self.study, self.outcomes, self.missing)
        return self.folder / REPORT


def _handed_on(recipe: RunConfig) -> dict[str, Any]:
    """What a run that goes on from this one takes over, as from its checkpoint, which may not be there yet."""
    return {"model": recipe.model.model_dump(mode="json"), "data": {"tokenizer": recipe.data.tokenizer}}


def _check_scored(recipe: RunConfig, score: str) -> None:
    """Raises ConfigError for a run of whose evaluations nothing could be compared."""
    if recipe.data.heldout is None:
        raise ConfigError(
            ["data.heldout is not set, and a study compares held-out scores: set data.heldout=FOLDER"]
        )
    check_metric(recipe.data.task, score, "score")


def _problems_of(recipe: RunConfig, processes: int) -> list[str]:
    found = ProblemList([])
    found.of(lambda: check_world(recipe, processes))
    found.of(lambda: check_objectives(recipe, processes))
    found.of(lambda: whole_model(recipe.model))
    check_inputs(recipe, found)
    return found.found


def _raise_all(problems: Mapping[str, Sequence[str]]) -> None:
    """Raises ConfigError with each of the problems of runs by name once."""
    runs: dict[str, list[str]] = {}
    for name, of_run in problems.items():
        for problem in of_run:
            runs.setdefault(problem, []).append(name)
    if runs:
        raise ConfigError([f"{problem} ({_in_words(names)})" for problem, names in runs.items()])


def _in_words(runs: Sequence[str]) -> str:
    return runs[0] + (f" and {len(runs) - 1} more" if len(runs) > 1 else "")
