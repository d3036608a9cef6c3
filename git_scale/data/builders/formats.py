"""The formats that tools/prepare_data.py builds shards from, by name.

A format is one new file here and one line in the table; a module under --plugins adds its own:
`ANNOTATION_FORMATS.add("beside", AnnotationFormat("NAME.txt beside each image", (), read_beside))`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from git_scale.data.builders.source_images import SourceRow
from git_scale.data.builders.writer import Skipped
from git_scale.registry import Registry


@dataclass(frozen=True)
class FormatOption:
    """An option of the command line: `name` is its word, in the command with -- before it and - for _."""

    name: str
    help: str = ""
    is_file: bool = False
    required: bool = False
    least: int | None = None
    """Of a whole number, which it then is."""


@dataclass(frozen=True)
class AnnotationFormat:
    """Images in a folder, with texts about them in a form of their own."""

    help: str
    """One line."""
    options: tuple[FormatOption, ...]
    """Beside the folder of the images."""
    read: Callable[[Mapping[str, Any]], Sequence[SourceRow | Skipped]]
    """Rows from the values of the options and `source`, the folder; what cannot be used stands among them as Skipped.

    Raises DataError for a file of another form.
    """
    text_files: Callable[[Mapping[str, Any]], Mapping[str, str]] = lambda given: {}
    """Name -> content of what is written beside the shards, from the same values as `read`."""

    def texts_file(self, given: Mapping[str, Any]) -> Path:
        """What to look at where nothing was found: the file that must be given, else the folder."""
        required = [option.name for option in self.options if option.is_file and option.required]
        return given[required[0] if required else "source"]


ANNOTATION_FORMATS: Registry[AnnotationFormat] = Registry(
    "FORMAT",
    {
        "images": "git_scale.data.builders.tables:FORMAT",
        "flickr": "git_scale.data.builders.flickr:FORMAT",
        "coco": "git_scale.data.builders.coco:FORMAT",
        "karpathy": "git_scale.data.builders.karpathy:FORMAT",
        "textcaps": "git_scale.data.builders.textcaps:FORMAT",
        "vqa": "git_scale.data.builders.vqa:FORMAT",
        "stvqa": "git_scale.data.builders.stvqa:FORMAT",
        "ocrvqa": "git_scale.data.builders.ocrvqa:FORMAT",
        "vizwiz_vqa": "git_scale.data.builders.vizwiz_vqa:FORMAT",
        "classes": "git_scale.data.builders.classes:FORMAT",
        "msrvtt": "git_scale.data.builders.msrvtt:FORMAT",
        "vatex": "git_scale.data.builders.vatex:FORMAT",
        "msvd": "git_scale.data.builders.msvd:FORMAT",
        "tvc": "git_scale.data.builders.tvc:FORMAT",
        "youcook2": "git_scale.data.builders.youcook2:FORMAT",
        "video_qa": "git_scale.data.builders.video_qa:FORMAT",
        "tgif_qa": "git_scale.data.builders.tgif_qa:FORMAT",
    },
)

CAPTIONS = FormatOption("captions", "the file of the captions", is_file=True, required=True)
QUESTIONS = FormatOption("questions", "the file of the questions", is_file=True, required=True)
HELD_OUT = FormatOption("split", "train or heldout, every tenth of the file; all without it")
