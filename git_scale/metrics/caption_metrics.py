"""The published scores of captions: BLEU and ROUGE-L by pycocoevalcap, and CIDEr as it computes that.

METEOR and SPICE need Java programs: meteor.py, spice.py.
"""

from __future__ import annotations

from functools import lru_cache

from pycocoevalcap.bleu.bleu import Bleu  # type: ignore[import-untyped]
from pycocoevalcap.rouge.rouge import Rouge  # type: ignore[import-untyped]

from git_scale.metrics.cider import cider_d
from git_scale.metrics.exact_match import require_references
from git_scale.metrics.metric import Metric, Predictions
from git_scale.metrics.segmentation import is_segmented, words_of


def caption_metrics(generated: list[str], references: list[list[str]]) -> dict[str, float]:
    """bleu_1 .. bleu_4 and rouge_l from 0 to 1, cider (CIDEr-D) from 0 to 10, over all images.

    Papers print them times 100. CIDEr weighs a phrase by how few of the images have it in a reference, so that it
    depends on all references given and is 0 for a single image.
    `segmented_by_character`, only where it is not 0: the share of the texts with a script that has no blanks between
    words, whose characters are counted as words (segmentation.py).
    Raises DataError for lists of different length, for none at all, and for a caption without a reference.
    """
    require_references("caption metrics", generated, references)
    return _scores(generated, references, *_tokenized(generated, references))[0]


def _scores(
    generated: list[str],
    references: list[list[str]],
    generated_words: list[str],
    reference_words: list[list[str]],
) -> tuple[dict[str, float], dict[str, list[float]]]:
    """Of all, and of each caption where the first is the mean."""
    hypotheses = {number: [text] for number, text in enumerate(generated_words)}
    truths = dict(enumerate(reference_words))
    bleu, _ = Bleu(4).compute_score(truths, hypotheses, verbose=0)
    rouge, rouge_of_each = Rouge().compute_score(truths, hypotheses)
    cider_of_each = cider_d(generated_words, reference_words)
    scores = {f"bleu_{n}": value for n, value in enumerate(bleu, start=1)}
    scores |= {"rouge_l": rouge, "cider": sum(cider_of_each) / len(cider_of_each)}
    texts = [*generated, *(text for several in references for text in several)]
    if segmented := sum(map(is_segmented, texts)):
        scores["segmented_by_character"] = segmented / len(texts)
    of_each = {"rouge_l": list(map(float, rouge_of_each)), "cider": cider_of_each}
    return {name: float(value) for name, value in scores.items()}, of_each


def _tokenized(generated: list[str], references: list[list[str]]) -> tuple[list[str], list[list[str]]]:
    return [_join(text) for text in generated], [[_join(text) for text in texts] for texts in references]


@lru_cache(maxsize=200_000)  # references come again at every evaluation
def _join(caption: str) -> str:
    return " ".join(words_of(caption))


def tokenized(texts: Predictions) -> tuple[list[str], list[list[str]]]:
    """The generated texts and their references, with the words that are counted between blanks."""
    return _tokenized(texts.generated, texts.references)


def _all(texts: Predictions) -> tuple[dict[str, float], dict[str, list[float]]]:
    return _scores(texts.generated, texts.references, *texts.shared(tokenized))


def _published(name: str) -> Metric:
    """Of all texts at once: BLEU is no mean of what each of them has."""
    return Metric(lambda texts: texts.shared(_all)[0].get(name))


def _mean(name: str) -> Metric:
    return Metric(
        lambda texts: texts.shared(_all)[0][name], of_each=lambda texts: texts.shared(_all)[1][name]
    )


BLEU_1, BLEU_2, BLEU_3, BLEU_4 = (_published(f"bleu_{n}") for n in (1, 2, 3, 4))
ROUGE_L, CIDER = _mean("rouge_l"), _mean("cider")
SEGMENTED_BY_CHARACTER = Metric(
    lambda texts: texts.shared(_all)[0].get("segmented_by_character"), better=None
)
