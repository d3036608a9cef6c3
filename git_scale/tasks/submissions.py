"""Files that evaluation servers take: how they are written, and what a server would refuse about one.

    captions    [{"image_id": 42, "caption": "a dog"}, ...]      nocaps, TextCaps, VizWiz; coco: with COCO's file name
    vqa         [{"question_id": 42001, "answer": "two"}, ...]   VQA v2, TextVQA, ST-VQA
    vizwiz_vqa  [{"image": "VizWiz_test_00000000.jpg", "answer": "a can"}, ...]
    vatex       {"Ptf_2VRj-V0_000122_000132": "a man sings", ...}
    imagenet    ImageId,PredictionString: git_scale/tasks/imagenet.py
    tvc         a line for each clip: git_scale/tasks/tvc.py

Writing and checking share the names of the keys and nothing else: a file from elsewhere is checked as well.
"""

from __future__ import annotations

import json
from codecs import BOM_UTF8
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from git_scale.data.captions import TextRecord, clean_caption
from git_scale.data.class_names import NO_KEYS, ClassKeys
from git_scale.data.store import SampleStore
from git_scale.errors import DataError
from git_scale.metrics.metric import Prediction
from git_scale.text_files import read_json, whole_number

Id = int | str


@dataclass(frozen=True)
class Asked:
    """One thing that a server wants an answer to."""

    id: Id
    sample: Mapping[str, Any]
    """The json of its sample."""
    classes: ClassKeys = NO_KEYS
    """Where the answer names some."""


@dataclass(frozen=True)
class Row:
    """What a file says of one id, not yet looked at."""

    place: str
    id: Any
    answer: Any
    repeated: Mapping[str, Any] = field(default_factory=dict)
    """What it says again of the json of its sample."""


@dataclass(frozen=True)
class Submission:
    """A form of files. Readers raise DataError for a file that is not of the form at all."""

    task: str
    """Of data.task."""
    ids: Callable[[TextRecord], list[Any]]
    """What a sample's texts are known by to the server, in the order of its predictions."""
    id_name: str
    kinds: tuple[type, ...]
    """Of an id: numbers, texts, or both."""
    file_name: str
    """With the names of the data's and the run's folder in the places of {data} and {run}."""
    write: Callable[[Iterable[tuple[Asked, str]]], str]
    read: Callable[[Path], Iterator[Row]]
    answer: Callable[[Asked, Prediction], str] = lambda asked, said: said.generated
    """What `write` is given of a prediction."""
    classes: Callable[[Path | None], ClassKeys] = lambda path: NO_KEYS
    """What the server calls classes, from the file of data.class_names. Raises DataError for one that lacks it."""
    flaw_of_sample: Callable[[Mapping[str, Any]], str] = lambda sample: ""
    """Why a sample with this json cannot be answered, and the remedy; empty for one that can."""
    flaw_of_answer: Callable[[Asked, str], str] = lambda asked, answer: ""
    """Why the server would refuse an answer that is not empty, the same words for all such; empty for a good one."""

    def asked(
        self, store: SampleStore, numbers: Iterable[int], class_names: Path | None = None
    ) -> dict[Id, Asked]:
        """What the server wants of these samples. Raises DataError where one has no id of the right kind, lacks what
        the file is to say of it, or where nothing is asked at all.

        class_names: data.class_names, whose keys the forms want that name classes.
        """
        found: dict[Id, Asked] = {}
        classes = self.classes(class_names)
        for number in numbers:
            record = store.read_text(number)
            for given in self.ids(record):
                if type(given) not in self.kinds:
                    raise DataError(
                        f"{store.key(number)}: its {self.id_name} is {shown(given)}, and the server knows it by"
                        f" {_kinds(self.kinds)}: build the shards with it (tools/prepare_data.py)"
                    )
                if given in found:
                    raise DataError(
                        f"{store.key(number)}: its {self.id_name} {given!r} is another sample's too"
                    )
                found[given] = Asked(given, record.meta, classes)
            if flaw := self.flaw_of_sample(record.meta):
                raise DataError(f"{store.key(number)}: {flaw}")
        if not found:
            raise DataError(
                f"no sample has a {self.id_name}, so that nothing is asked of data.task={self.task}: give shards of"
                " that task, or another form"
            )
        return found


def problems_of(form: Submission, path: Path, asked: Mapping[Id, Asked]) -> list[str]:
    """What the server would refuse, each with how often and the first example; none for a file that it takes.

    Raises DataError for a file that cannot be read.
    """
    found: dict[str, list[str]] = {}
    seen: Counter[Id] = Counter()
    try:
        for row in form.read(path):
            if problem := _problem_of(form, row, asked, seen):
                found.setdefault(problem, []).append(f"{row.place} ({form.id_name} {shown(row.id)})")
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: {error}") from None
    if missing := [number for number in asked if number not in seen]:
        found[f"{form.id_name} without an answer"] = [shown(number) for number in missing]
    return [f"{len(examples)} x {what}: {examples[0]}" for what, examples in found.items()]


def _problem_of(form: Submission, row: Row, asked: Mapping[Id, Asked], seen: Counter[Id]) -> str:
    if type(row.id) not in form.kinds:
        return f"{form.id_name} is not {_kinds(form.kinds)}"
    seen[row.id] += 1
    if row.id not in asked:
        other = str(row.id) if isinstance(row.id, int) else whole_number(row.id)
        kind = f", where it is {_kinds((type(other),))}" if other in asked else ""
        return f"{form.id_name} of no sample{kind}"
    if seen[row.id] > 1:
        return f"{form.id_name} more than once"
    for name, value in row.repeated.items():
        if value != asked[row.id].sample.get(name):
            return f"{name} other than the sample's"
    if not isinstance(row.answer, str):
        return "answer that is no text"
    return form.flaw_of_answer(asked[row.id], row.answer) if clean_caption(row.answer) else "empty answer"


def _kinds(kinds: Sequence[type]) -> str:
    return " or ".join("a whole number" if kind is int else "a text" for kind in kinds)


def shown(value: object) -> str:
    return json.dumps(value)[:80]


def refuse_mark(path: Path) -> None:
    """Raises ValueError for what read_json and read_text pass over, and json.load, as servers call it, does not."""
    with path.open("rb") as file:
        if file.read(len(BOM_UTF8)) == BOM_UTF8:
            raise ValueError(
                "it begins with a byte-order mark, which a server takes for text: save it as UTF-8 without one"
            )


def _rows(id_key: str, answer_key: str) -> dict[str, Any]:
    """A JSON list with an object for each answer."""

    def write(answers: Iterable[tuple[Asked, str]]) -> str:
        rows = ({id_key: item.id, answer_key: text} for item, text in answers)
        return "[" + ",\n ".join(json.dumps(row, ensure_ascii=False) for row in rows) + "]\n"

    def read(path: Path) -> Iterator[Row]:
        tree = read_json(path)
        refuse_mark(path)
        if not isinstance(tree, list):
            raise ValueError(f"a list of {{{id_key}, {answer_key}}} is wanted")
        for number, row in enumerate(tree):
            place = f"row {number}"
            if not isinstance(row, dict) or not row.keys() >= {id_key, answer_key}:
                raise ValueError(f"{place} is {shown(row)}: {{{id_key}, {answer_key}}} is wanted")
            yield Row(place, row[id_key], row[answer_key])

    return {"write": write, "read": read}


def _write_object(answers: Iterable[tuple[Asked, str]]) -> str:
    rows = (f"{json.dumps(item.id)}: {json.dumps(text, ensure_ascii=False)}" for item, text in answers)
    return "{" + ",\n ".join(rows) + "}\n"


def _read_object(path: Path) -> Iterator[Row]:
    tree = read_json(path)
    refuse_mark(path)
    if not isinstance(tree, dict):
        raise ValueError("an object {videoID: caption} is wanted")
    for number, (name, text) in enumerate(tree.items()):
        yield Row(f"entry {number}", name, text)


def image_id(record: TextRecord) -> list[Any]:
    return [record.meta.get("image_id")]


def _question_ids(record: TextRecord) -> list[Any]:
    return [question.get("question_id") for question in record.questions]


COCO = Submission(
    "caption",
    image_id,
    "image_id",
    (int,),
    "captions_{data}_{run}_results.json",
    **_rows("image_id", "caption"),
)
CAPTIONS = Submission(
    "caption", image_id, "image_id", (int, str), "submission.json", **_rows("image_id", "caption")
)
VQA = Submission(
    "vqa", _question_ids, "question_id", (int, str), "submission.json", **_rows("question_id", "answer")
)
VIZWIZ_VQA = Submission("vqa", image_id, "image", (str,), "submission.json", **_rows("image", "answer"))
VATEX = Submission(
    "caption", image_id, "videoID", (str,), "submission.json", write=_write_object, read=_read_object
)
