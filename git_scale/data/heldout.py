"""Which held-out data a run has: data.heldout, and that of single sources.

    data.sources[1]={path: data/vqav2/train, heldout: data/vqav2/heldout, task: vqa}

is asked what vqa asks, and named `vqav2/train` as the source is.
"""

from __future__ import annotations

from dataclasses import dataclass

from git_scale.config import DataConfig
from git_scale.data.mixture import source_names, training_sources


@dataclass(frozen=True)
class HeldOut:
    """Says where held-out samples lie, what is asked of them, and how the log names them."""

    name: str
    """Of its source, as in data/samples/NAME; empty for data.heldout."""
    path: str
    task: str
    removal: str
    """How a user does without it."""


def heldout_data(data: DataConfig) -> dict[str, HeldOut]:
    """By where it was given, in the order of evaluations: `data.heldout=PATH`, `data.sources[1].heldout=PATH`."""
    given = {}
    if data.heldout is not None:
        removal = "set data.heldout=null"
        given[f"data.heldout={data.heldout}"] = HeldOut("", data.heldout, data.task, removal)
    sources = list(training_sources(data).values())
    for number, (source, name) in enumerate(zip(sources, source_names(sources), strict=True)):
        if source.heldout is not None:
            removal = f"take heldout out of data.sources[{number}]"
            key = f"data.sources[{number}].heldout={source.heldout}"
            given[key] = HeldOut(name, source.heldout, str(source.task), removal)
    return given


def named(name: str, source: str) -> str:
    """A name in the log as that of a source: `eval/cider` of coco/train is `eval/coco/train/cider`."""
    section, _, own = name.partition("/")
    return "/".join(filter(None, (section, source, own)))
