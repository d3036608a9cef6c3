"""SPICE of captions, by the Java program of pycocoevalcap, for those who have the parser that it needs.

Stanford CoreNLP 3.6.0 is no part of pycocoevalcap: `python -m pycocoevalcap.spice.get_stanford_models` downloads it.
The published score is the mean of the captions' F-scores.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

from git_scale.metrics.caption_metrics import tokenized
from git_scale.metrics.exact_match import require_references
from git_scale.metrics.java import jar_of, java_program, unless_java_fails
from git_scale.metrics.metric import Metric, Predictions

JARS = ("spice-1.0.jar", "lib/stanford-corenlp-3.6.0.jar", "lib/stanford-corenlp-3.6.0-models.jar")
SECONDS, SECONDS_PER_TEXT = 600, 2.0


def spice(generated: list[str], references: list[list[str]], seconds: float | None = None) -> list[float]:
    """The F-score (0 to 1) of each caption. Raises JavaError where it cannot be had.

    Raises DataError for lists of different length, for none at all, and for a caption without a reference.
    """
    require_references("SPICE", generated, references)
    jar = jar_of("spice", *JARS)
    seconds = SECONDS + SECONDS_PER_TEXT * len(generated) if seconds is None else seconds
    pairs = enumerate(zip(generated, references, strict=True))
    texts = [{"image_id": number, "test": text, "refs": right} for number, (text, right) in pairs]
    with tempfile.TemporaryDirectory() as folder:
        asked, answered = Path(folder, "texts.json"), Path(folder, "scores.json")
        asked.write_text(json.dumps(texts), encoding="utf-8")
        arguments = ["-Xmx8G", "-jar", str(jar), str(asked), "-out", str(answered), "-subset", "-silent"]
        with java_program("SPICE", arguments, seconds) as program:
            assert program.stdout is not None, "a pipe"
            program.stdout.read()  # to its end
            return _scores(answered.read_bytes(), len(texts))


def _scores(data: bytes, count: int) -> list[float]:
    """Raises ValueError for anything but a score of each caption."""
    try:
        found = {item["image_id"]: float(item["scores"]["All"]["f"]) for item in json.loads(data)}
        scores = [found[number] for number in range(count)]
    except (TypeError, KeyError):
        raise ValueError("its scores are not of the form that was asked for") from None
    if not all(0 <= score <= 1 for score in scores):
        raise ValueError("its scores are not within 0 and 1")
    return scores


def _all(texts: Predictions) -> list[float] | None:
    return unless_java_fails("SPICE", lambda: spice(*texts.shared(tokenized)))


SPICE = Metric.mean_of(lambda texts: texts.shared(_all))
