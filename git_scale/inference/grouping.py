"""Images of any shapes and any numbers of texts about them, run through a model in batches; results in order."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

from git_scale.data.clips import Clip
from git_scale.errors import UserError

WINDOW = 16  # batches of images in memory at a time, among which those of one shape are found

Query = TypeVar("Query")
Result = TypeVar("Result")


def run_batched(
    prepare: Callable[[int], Clip],
    queries: Sequence[Sequence[Query]],
    most_images: int,
    most_queries: int,
    work: Callable[[list[Clip], list[list[Query]]], list[list[Result]]],
) -> list[list[Result]]:
    """The results of `queries[i]`, all about clip number i, in their order.

    `work` is given clips of one shape with the same number of queries each: at most `most_images` clips, and at most
    `most_queries` queries in all.
    """
    results: list[dict[int, Result]] = [{} for _ in queries]
    window = WINDOW * most_images
    for first in range(0, len(queries), window):
        numbers = range(first, min(first + window, len(queries)))
        clips = {number: prepare(number) for number in numbers}
        groups: dict[tuple[object, int], list[tuple[int, range]]] = {}
        for number in numbers:
            for part in _parts(len(queries[number]), most_queries):
                groups.setdefault((clips[number].pixels.shape, len(part)), []).append((number, part))
        for (_, count), jobs in groups.items():
            for some in _parts(len(jobs), min(most_images, max(1, most_queries // count))):
                batch = [jobs[index] for index in some]
                found = work(
                    [clips[number] for number, _ in batch],
                    [[queries[number][index] for index in part] for number, part in batch],
                )
                for (number, part), answers in zip(batch, found, strict=True):
                    results[number].update(zip(part, answers, strict=True))
    return [[answers[index] for index in range(len(answers))] for answers in results]


def per_image(texts: str | Sequence[str] | Sequence[Sequence[str]], count: int, what: str) -> list[list[str]]:
    """`texts` as a list for each of `count` images: one text for all of them, one for each, or a list for each.

    Raises UserError naming `what` they are.
    """
    if isinstance(texts, str):
        return [[texts]] * count
    if len(texts) != count:
        raise UserError(
            f"{len(texts)} {what} for {count} images: give one text for all, one for each image, or a list for"
            " each image (several texts about one image are a list within the list)"
        )
    rows = [[text] if isinstance(text, str) else list(text) for text in texts]
    if len({isinstance(text, str) for text in texts}) > 1 or any(not row for row in rows):
        raise UserError(f"{what}: either one text for each image, or a list of at least one for each")
    return rows


def in_shape_of(
    texts: str | Sequence[str] | Sequence[Sequence[str]], found: list[list[Result]]
) -> list[Result] | list[list[Result]]:
    """The results as `texts` were given: a list for each image if those were, else one for each."""
    if isinstance(texts, str) or all(isinstance(text, str) for text in texts):
        return [row[0] for row in found]
    return found


def _parts(count: int, size: int) -> list[range]:
    return [range(first, min(first + size, count)) for first in range(0, count, size)]
