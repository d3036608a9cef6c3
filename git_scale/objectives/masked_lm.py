"""Masked language modelling: some words of a text from the image and all the other words (BERT, arXiv 1810.04805).

GIT's paper compares its objective with this one.
"""

from __future__ import annotations

import numpy as np

from git_scale.data.texts import Example, Text
from git_scale.data.tokenizer import Tokenizer
from git_scale.objectives.language_model import LanguageModelObjective

SHARE = 0.15  # of a text's words; at least one
BY_MASK, BY_ANOTHER = 0.8, 0.1  # of these become the mask token, and a word drawn at random; the others stay


class MaskedLanguageModelObjective(LanguageModelObjective):
    """A mean over the masked words of the global batch. Begin, end and question are never masked."""

    def example(self, text: Text, tokenizer: Tokenizer, rng: np.random.Generator) -> Example:
        words = [
            position
            for position, is_target in enumerate(text.targets)
            if is_target and text.tokens[position] != tokenizer.eos_id
        ]
        if not words:
            return Example(text.tokens, [], [], sees_ahead=True)
        count = max(1, round(SHARE * len(words)))
        masked = sorted(rng.choice(words, count, replace=False).tolist())
        tokens = list(text.tokens)
        for position in masked:
            drawn = rng.random()
            if drawn < BY_MASK:
                tokens[position] = tokenizer.mask_id
            elif drawn < BY_MASK + BY_ANOTHER:
                tokens[position] = _any_word(tokenizer, rng)
        return Example(tokens, masked, [text.tokens[position] for position in masked], sees_ahead=True)


def _any_word(tokenizer: Tokenizer, rng: np.random.Generator) -> int:
    word = int(rng.integers(tokenizer.vocab_size - len(tokenizer.special_ids)))
    for special in sorted(tokenizer.special_ids):
        word += word >= special
    return word
