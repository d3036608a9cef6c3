"""Questions of a file under the images that they are about: what all formats of questions have in common.

asked = QuestionList(path)
asked.ask({"question": "what brand?"}, number=7, image="a1", answers=["x", "x"])
asked.rows(lambda image: f"{image}.jpg")  ->  SourceRow("a1.jpg", (), {"image_id": "a1"}, ({"question": ...},))
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from git_scale.data.builders.json_records import Id, MalformedRecordError, kind_of, not_text, value_of
from git_scale.data.builders.source_images import SourceRow, refuse_shared_files
from git_scale.data.builders.writer import Skipped
from git_scale.data.captions import clean_caption
from git_scale.errors import DataError

NO_ANSWER = "question without an answer"


@dataclass(frozen=True)
class QuestionList:
    """What has been read of a file of questions: no question_id comes twice."""

    path: Path
    skipped: list[Skipped] = field(default_factory=list)
    seen: set[Id] = field(default_factory=set)
    of_image: dict[Id, list[dict[str, Any]]] = field(default_factory=dict)

    def take_id(self, place: str, number: Id, question: object) -> None:
        """Raises DataError for a question_id that was there before."""
        if number in self.seen:
            raise DataError(
                f"{self.path}: question_id {number!r:.200} stands twice, again at {place} ({question!r:.200}); give"
                " each question an id of its own"
            )
        self.seen.add(number)

    def ask(
        self, record: dict[str, Any], number: Id, image: Id, answers: list[str] | None, **more: Any
    ) -> None:
        """Keeps the record's question under its image, with `more` beside it.

        `answers`: None where a test split gives none. A question that is no text, or of which no answer can be used,
        is skipped.
        """
        question = value_of(f"question {number}", record, "question")
        if answers is not None and not answers:
            self.skipped.append(Skipped(f"question_id {number}", NO_ANSWER, "question"))
        elif isinstance(question, str):
            asked = {"question": question, "answers": answers or [], "question_id": number, **more}
            self.of_image.setdefault(image, []).append(asked)
        else:
            self.skipped.append(Skipped(f"question_id {number}", not_text("question", question), "question"))

    def given_answers(self, place: str, record: dict[str, Any], number: Id) -> list[str] | None:
        """Those under `answers`, a list of texts; None where there are none. Raises MalformedRecordError."""
        given = record.get("answers", [])
        if not isinstance(given, list):
            raise MalformedRecordError(f"{place}.answers is {kind_of(given)}, not a list")
        return self.texts(given, number) if given else None

    def texts(self, answers: list[Any], number: Id) -> list[str]:
        """The answers that are texts with a word in them; the others are skipped."""
        usable: list[str] = []
        for answer in answers:
            if isinstance(answer, str) and clean_caption(answer):
                usable.append(answer)
            else:
                reason = "empty answer" if isinstance(answer, str) else not_text("answer", answer)
                self.skipped.append(Skipped(f"question_id {number}", reason, "answer"))
        return usable

    def rows(self, file_of: Callable[[Id], str]) -> list[SourceRow | Skipped]:
        """What was skipped, then a row per image in order of first mention. Raises DataError for a file of two."""
        rows = [
            SourceRow(file_of(image), (), {"image_id": image}, tuple(questions))
            for image, questions in self.of_image.items()
        ]
        refuse_shared_files(self.path, rows)
        return [*self.skipped, *rows]
