"""The tasks by name, and the files that servers take.

A task is one new file here and one line in a table, a form of files is a few lines in submissions.py and one in the
other table; a plugin calls TASKS.add and SUBMISSIONS.add.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from git_scale.errors import ConfigError
from git_scale.metrics import METRICS
from git_scale.metrics.scores import judges
from git_scale.registry import Registry, did_you_mean

if TYPE_CHECKING:
    from git_scale.config import RunConfig
    from git_scale.data.tokenizer import Tokenizer
    from git_scale.tasks.submissions import Submission
    from git_scale.tasks.task import Task

TASKS: Registry[type[Task]] = Registry(
    "data.task",
    {
        "caption": "git_scale.tasks.caption:CaptionTask",
        "vqa": "git_scale.tasks.vqa:QuestionTask",
        "classification": "git_scale.tasks.classification:ClassificationTask",
        "scene_text": "git_scale.tasks.scene_text:SceneTextTask",
        "text_only": "git_scale.tasks.text_only:TextOnlyTask",
    },
    flaw_of="git_scale.tasks.task:flaw_of",
)

SUBMISSIONS: Registry[Submission] = Registry(
    "eval.submission",
    {
        "coco": "git_scale.tasks.submissions:COCO",
        "captions": "git_scale.tasks.submissions:CAPTIONS",
        "vqa": "git_scale.tasks.submissions:VQA",
        "vizwiz_vqa": "git_scale.tasks.submissions:VIZWIZ_VQA",
        "vatex": "git_scale.tasks.submissions:VATEX",
        "tvc": "git_scale.tasks.tvc:TVC",
        "imagenet": "git_scale.tasks.imagenet:IMAGENET",
    },
)


def build_task(name: str, run: RunConfig, tokenizer: Tokenizer) -> Task:
    """The task of that name, for samples of this run. Raises ConfigError where it, or a metric of it, is missing."""
    return _usable(name)(run, tokenizer)


def check_metric(task: str, name: str | None, key: str = "checkpoint.best") -> None:
    """Raises ConfigError when `key` names what the task does not measure."""
    known = judges(_usable(task).metrics)
    if name is not None and name not in known:
        raise ConfigError(
            [
                f"{key}={name!r}: with data.task={task} it is one of {', '.join(known)}"
                f"{did_you_mean(name, known)}"
            ]
        )


def problems_of_task(name: str) -> list[str]:
    """What is missing: the task itself, or metrics that it names."""
    if problem := TASKS.problem_of(name):
        return [problem]
    missing = filter(None, map(METRICS.problem_of, TASKS[name].metrics))
    return [f"data.task={name}: {problem}" for problem in missing]


def problem_of_submission(name: str, task: str) -> str:
    """Why evaluations of the task cannot write such a file; empty where they can."""
    if problem := SUBMISSIONS.problem_of(name):
        return problem
    wanted = SUBMISSIONS[name].task
    if task in TASKS and wanted in TASKS and issubclass(TASKS[task], TASKS[wanted]):
        return ""
    return f"eval.submission={name} is a file of data.task={wanted}, not {task}: set eval.submission=null"


def _usable(name: str) -> type[Task]:
    if problems := problems_of_task(name):
        raise ConfigError(problems)
    return TASKS[name]
