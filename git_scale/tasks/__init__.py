"""The tasks by name. A task is one new file here and one line in this table; a plugin adds its own with TASKS.add."""

from __future__ import annotations

from typing import TYPE_CHECKING

from git_scale.registry import Registry

if TYPE_CHECKING:
    from git_scale.config import RunConfig
    from git_scale.data.tokenizer import Tokenizer
    from git_scale.tasks.task import Task

TASKS: Registry[type[Task]] = Registry(
    "data.task",
    {
        "caption": "git_scale.tasks.caption:CaptionTask",
        "vqa": "git_scale.tasks.vqa:QuestionTask",
    },
)


def build_task(name: str, run: RunConfig, tokenizer: Tokenizer) -> Task:
    """The task of that name, for the samples of this run. Raises ConfigError where there is none."""
    return TASKS[name](run, tokenizer)
