"""METEOR 1.5 of captions, by the Java program of pycocoevalcap, where Java is.

    SCORE ||| a dog runs ||| a dog is running          ->  counts of matches, "3.0 4.0 2.0 ..."
    EVAL ||| COUNTS ||| COUNTS                         ->  a score for each caption, then that of all

The published score is that of all counts together. It is no mean of the captions' scores, so that no interval is
drawn from them. pycocoevalcap's own class gives the same scores, but waits without an end where a text has a line end
or the program dies.
"""

from __future__ import annotations

import math
import re

from git_scale.metrics.caption_metrics import tokenized
from git_scale.metrics.exact_match import require_references
from git_scale.metrics.java import jar_of, java_program, read_line, unless_java_fails
from git_scale.metrics.metric import Metric, Predictions

SECONDS, SECONDS_PER_TEXT = 600, 0.2
"""How long the program may take: to read its tables, which takes 5 to 40 s, and for each caption, some 10 ms."""


def meteor(generated: list[str], references: list[list[str]], seconds: float | None = None) -> float:
    """METEOR (0 to 1) of captions whose words stand between blanks. Raises JavaError where it cannot be had.

    Raises DataError for lists of different length, for none at all, and for a caption without a reference.
    """
    require_references("METEOR", generated, references)
    jar = jar_of("meteor", "meteor-1.5.jar")
    seconds = SECONDS + SECONDS_PER_TEXT * len(generated) if seconds is None else seconds
    arguments = ["-Xmx2G", "-jar", str(jar), "-", "-", "-stdio", "-l", "en", "-norm"]
    with java_program("METEOR", arguments, seconds) as program:
        assert program.stdin is not None, "a pipe"
        counts = []
        for text, right in zip(generated, references, strict=True):
            line = " ||| ".join(["SCORE", *map(_one_field, right), _one_field(text)])
            program.stdin.write(f"{line}\n".encode("utf-8", "replace"))
            program.stdin.flush()
            counts.append(_numbers(read_line(program)))
        program.stdin.write(" ||| ".join(["EVAL", *counts]).encode() + b"\n")
        program.stdin.flush()
        for _ in generated:
            _score(read_line(program))
        return _score(read_line(program))


def _one_field(text: str) -> str:
    """Without line ends and what divides fields."""
    return " ".join(re.sub(r"\|{3,}", " ", text).split())


def _numbers(line: str) -> str:
    if not line or not all(math.isfinite(float(word)) for word in line.split()):
        raise ValueError(f"{line[:80]!r} are no numbers")
    return line


def _score(line: str) -> float:
    if not 0 <= (value := float(_numbers(line))) <= 1 + 1e-9:  # the sums of a perfect caption round
        raise ValueError(f"its score {line[:80]!r} is not within 0 and 1")
    return value


def _published(texts: Predictions) -> float | None:
    return unless_java_fails("METEOR", lambda: meteor(*texts.shared(tokenized)))


METEOR = Metric(_published)
