"""What a study asks, and the runs that answer it.

    recipe: demo
    score: exact_match
    axes:
      attention: {joint: [], cross: [model.decoder.attention=cross]}
      data: {all: [], 1/16: [data.share=0.0625]}
    grids:
      - {values: {attention: [joint, cross], data: [1/16, all]}}
    seeds: [0, 1]

These are four settings, each run twice. An axis that a grid leaves out stays at its first value. All runs of a study
see the same number of samples, whatever their share of the data.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import AfterValidator, Field, ValidationError, model_validator

from git_scale import text_files
from git_scale.errors import ConfigError
from git_scale.registry import did_you_mean
from git_scale.section import NonEmptyText, Section
from git_scale.yaml_tree import read_tree

STUDIES = Path(__file__).parent


def _value_name(text: str) -> str:
    if text[0] in " _" or set(text) & set("|$\n"):
        raise ValueError("a name begins with a letter or a digit, and has no | $ or end of a line")
    return text


def _on_one_line(text: str) -> str:
    if "\n" in (stripped := text.strip()):
        raise ValueError("an override stands on one line: in YAML >- makes one of several")
    return stripped


ValueName = Annotated[NonEmptyText, AfterValidator(_value_name)]
"""It is a cell of a table, a line of a legend and, with signs replaced, a part of a folder's name."""
Override = Annotated[NonEmptyText, AfterValidator(_on_one_line)]


class Grid(Section):
    """Crosses values of several axes."""

    values: dict[NonEmptyText, Annotated[list[NonEmptyText], Field(min_length=1)]]
    """Of an axis, the values that are crossed with those of the others."""
    finetuned: bool = False
    """Whether a run is fine-tuned when it has ended, and judged after that."""


class Study(Section):
    """Holds what a study's file says."""

    recipe: NonEmptyText
    """A recipe's name or path, as `--config` takes it."""
    score: NonEmptyText
    """The metric of the recipe's task that is compared, as `exact_match`."""
    overrides: list[Override] = Field([])
    """Of all runs, as behind a tool: `train.steps=180`."""
    axes: dict[ValueName, dict[ValueName, list[Override]]] = Field(min_length=1)
    """Of each axis its values, of each value its overrides. The first value is that of settings which do not say."""
    grids: list[Grid] = Field(min_length=1)
    seeds: list[int] = Field([0], min_length=1)
    finetuning: list[Override] = Field([])
    """Overrides of the run that goes on from another one, in grids with `finetuned`."""
    data_axis: str | None = None
    """The axis whose values differ in the amount of data: the score is drawn against it."""
    size_axis: str | None = None
    """The axis whose values differ in the size of the model."""

    @model_validator(mode="after")
    def _names_are_known(self) -> Study:
        for grid in self.grids:
            for axis, values in grid.values.items():
                _refuse_unknown("grids: axis", axis, self.axes)
                for value in values:
                    _refuse_unknown(f"grids: {axis}", value, self.axes[axis])
            if grid.finetuned and not self.finetuning:
                raise ValueError(
                    "grids: finetuned=true, but finetuning has no overrides: say what it changes"
                )
        if len(set(self.seeds)) < len(self.seeds):
            raise ValueError(f"seeds={self.seeds}: each seed once")
        for named in (self.data_axis, self.size_axis):
            if named is not None:
                _refuse_unknown("axis", named, self.axes)
        for axis, choices in self.axes.items():
            if not choices or len(set(map(_slug, choices))) < len(choices):
                raise ValueError(f"axes.{axis}: needs values whose names differ in more than signs")
            asked = {
                next(iter(choices)),
                *(value for grid in self.grids for value in grid.values.get(axis, [])),
            }
            if unasked := choices.keys() - asked:
                raise ValueError(
                    f"axes.{axis}: no grid has {', '.join(sorted(unasked))}: add it to one, or leave it out"
                )
        return self


def _refuse_unknown(what: str, name: str, known: Iterable[str]) -> None:
    if name not in known:
        raise ValueError(
            f"{what} {name!r} is unknown{did_you_mean(name, known)}; there are {', '.join(known)}"
        )


@dataclass(frozen=True)
class StudyRun:
    """One run of a study: a value of each axis, and a seed."""

    values: tuple[str, ...]
    """In the order of the study's axes."""
    seed: int
    finetuned: bool = False
    """Whether it goes on from the run of the same values that is not."""

    @property
    def name(self) -> str:
        """Of its folder."""
        parts = [*map(_slug, self.values), *(["finetuned"] if self.finetuned else []), f"seed{self.seed}"]
        return "-".join(parts)

    @property
    def start(self) -> StudyRun:
        """The run that a fine-tuned one goes on from."""
        return StudyRun(self.values, self.seed)


def _slug(value: str) -> str:
    return re.sub(r"[^\w.]+", "_", value)


def read_study(name: str) -> Study:
    """A study of git_scale/studies/ by its name, or any YAML file by its path. Raises ConfigError."""
    path = Path(name) if name.endswith((".yaml", ".yml")) else STUDIES / f"{name}.yaml"
    known = sorted(file.stem for file in STUDIES.glob("*.yaml"))
    if not path.is_file():
        raise ConfigError(
            [f"{name}: no such study or file{did_you_mean(name, known)}; studies: {', '.join(known)}"]
        )
    try:
        tree, problems = read_tree(text_files.read_text(path), Study)
        if not isinstance(tree, dict):
            raise ValueError(f"a study is a mapping, found {type(tree).__name__}")
        study = Study.model_validate(tree)
    except ValidationError as error:
        raise ConfigError([f"{path}: {_explain(item)}" for item in error.errors()]) from None
    except (yaml.YAMLError, ValueError, OSError) as error:
        raise ConfigError([f"{path}: {error}"]) from None
    if problems:
        raise ConfigError([f"{path}: {problem}" for problem in problems])
    return study


def _explain(error: Mapping[str, Any]) -> str:
    place = ".".join(map(str, error["loc"]))
    message = error["msg"].removeprefix("Value error, ")
    return f"{place}={error['input']!r:.200}: {message}" if place else message


def judged_runs(study: Study) -> list[StudyRun]:
    """Every run that the study compares: all settings of one seed, then those of the next."""
    return list(
        dict.fromkeys(
            run for seed in study.seeds for grid in study.grids for run in _of_grid(study, grid, seed)
        )
    )


def _of_grid(study: Study, grid: Grid, seed: int) -> Iterator[StudyRun]:
    choices = (grid.values.get(axis, [next(iter(values))]) for axis, values in study.axes.items())
    return (StudyRun(values, seed, grid.finetuned) for values in itertools.product(*choices))


def all_runs(study: Study) -> list[StudyRun]:
    """The compared runs, and before each of them the one that it goes on from."""
    return list(dict.fromkeys(needed for run in judged_runs(study) for needed in (run.start, run)))


def chains(study: Study) -> list[list[StudyRun]]:
    """The runs in lists that need nothing of one another: a run, and the fine-tuned one that goes on from it."""
    by_start: dict[StudyRun, list[StudyRun]] = {}
    for run in all_runs(study):
        by_start.setdefault(run.start, []).append(run)
    return list(by_start.values())


def own_keys(study: Study) -> set[str]:
    """What a study sets itself, in each of its runs."""
    return {"seed", "run_dir", *(["init_from"] if any(grid.finetuned for grid in study.grids) else [])}


def overrides_of(study: Study, run: StudyRun, folder: Path, given: Sequence[str] = ()) -> list[str]:
    """What makes it this run of the recipe. `folder`: of the study's runs; `given`: overrides of all of them."""
    of_values = [
        override
        for values, value in zip(study.axes.values(), run.values, strict=True)
        for override in values[value]
    ]
    own = [f"seed={run.seed}", f"run_dir={folder / run.name}"]
    if run.finetuned:
        own += [f"init_from={folder / run.start.name}"]
    last: dict[str, str] = {}  # of each key, in the order in which they hold
    for override in [
        *study.overrides,
        *of_values,
        *(study.finetuning if run.finetuned else []),
        *given,
        *own,
    ]:
        key = override.partition("=")[0]
        last.pop(key, None)
        last[key] = override
    return list(last.values())


def command_of(study: Study, run: StudyRun, folder: Path, given: Sequence[str] = ()) -> list[str]:
    """The tool and its arguments."""
    tool = "tools/finetune.py" if run.finetuned else "tools/pretrain.py"
    return [tool, "--config", study.recipe, *overrides_of(study, run, folder, given)]
