"""CIDEr-D (arXiv 1411.5726) of captions whose words stand between blanks.

    cider_d(["a dog"], [["a dog runs", "the dog"]])   ->  [0.0]: of one image no phrase is rarer than another

pycocoevalcap's program, which the tests hold this against, takes several times as long: on many GPUs longer than the
captions themselves.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

LONGEST = 4
"""Words of a phrase."""
SIGMA = 6.0
"""How fast the score falls with a difference in length."""


def cider_d(generated: Sequence[str], references: Sequence[Sequence[str]]) -> list[float]:
    """The score (0 to 10) of each caption; that of all is their mean.

    A phrase weighs the more the fewer images have it in a reference. Each caption needs a reference.
    """
    split = [text.split() for text in (*generated, *(text for texts in references for text in texts))]
    images, count = len(generated), len(split)
    image_of = np.concatenate(  # of each text: the generated ones come first
        [np.arange(images), np.repeat(np.arange(images), [len(texts) for texts in references])]
    )
    known: dict[str, int] = {}
    words = np.array([known.setdefault(word, len(known)) for text in split for word in text], np.int64)
    text_of = np.repeat(np.arange(count), [len(text) for text in split])  # of each word
    phrases, cosines, pairs = words, np.zeros(count), np.zeros(count)
    for length in range(1, LONGEST + 1):
        places = max(0, len(words) - length + 1)
        if length > 1:  # a phrase is one that is a word shorter, and that word
            codes = phrases[:places] * len(known) + words[length - 1 :]
            phrases = np.unique(codes, return_inverse=True)[1]
        is_within = text_of[:places] == text_of[length - 1 :]
        text = text_of[:places][is_within]
        cosines += _cosines(text, phrases[is_within], image_of, images)
        if length == 2:
            pairs = np.bincount(text, minlength=count).astype(float)
    difference = pairs[image_of] - pairs
    found = (cosines * np.exp(-(difference**2) / (2 * SIGMA**2)))[images:]
    sums = np.bincount(image_of[images:], found, images)
    scores: list[float] = (10 * sums / LONGEST / np.bincount(image_of[images:], minlength=images)).tolist()
    return scores


def _cosines(text_of: np.ndarray, phrases: np.ndarray, image_of: np.ndarray, images: int) -> np.ndarray:
    """float64 [texts]: of each reference the clipped cosine with the generated text, over phrases of one length."""
    kinds = int(phrases.max(initial=0)) + 1
    entries, times = np.unique(text_of * kinds + phrases, return_counts=True)  # sorted by text
    text, phrase = entries // kinds, entries % kinds
    is_right = text >= images
    with_phrase = np.unique(image_of[text[is_right]] * kinds + phrase[is_right]) % kinds
    rarity = np.log(images) - np.log(np.maximum(1, np.bincount(with_phrase, minlength=kinds)))
    weights = times * rarity[phrase]
    norms = np.sqrt(np.bincount(text, weights**2, len(image_of)))
    said, wanted = entries[~is_right], image_of[text[is_right]] * kinds + phrase[is_right]
    at = np.searchsorted(said, wanted)
    is_said = np.append(said, -1)[at] == wanted
    mine, its = np.append(weights[~is_right], 0)[at] * is_said, weights[is_right]
    products = np.bincount(text[is_right], np.minimum(mine, its) * its, len(image_of))
    scale = norms * norms[image_of]
    return np.divide(products, scale, out=np.zeros(len(image_of)), where=scale > 0)
