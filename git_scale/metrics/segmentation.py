"""Words of a caption for the published scores, also where a language puts no blanks between them.

    "a dog 一只棕色的狗。"  ->  a dog 一 只 棕 色 的 狗

BLEU, ROUGE and CIDEr count words that stand between blanks. Chinese, Japanese, Thai, Lao, Khmer, Burmese, Tibetan and
some neighbours have none: a whole caption was one word, and one character's difference made all scores 0. Their
characters, each with the marks that sit on it, are counted as words here, as Chinese and Japanese captioning papers
do; their punctuation is left out. Captions without such characters, Korean among them, are cut by the Penn
Treebank's rules alone.
"""

from __future__ import annotations

import re
import sys
import unicodedata
from typing import TypeAlias

from git_scale.metrics.ptb import tokenize

_Ranges: TypeAlias = tuple[tuple[int, int], ...]

# Code points of scripts without blanks (Unicode 15).
_HAN: _Ranges = ((0x2E80, 0x2FDF), (0x3005, 0x3007), (0x3021, 0x3029), (0x3400, 0x4DBF), (0x4E00, 0x9FFF))
_HAN += ((0xF900, 0xFAFF), (0x20000, 0x323AF))
_KANA = ((0x3031, 0x3035), (0x3041, 0x30FF), (0x31F0, 0x31FF), (0xFF66, 0xFF9F), (0x1AFF0, 0x1B16F))
_BOPOMOFO = ((0x3105, 0x312F), (0x31A0, 0x31BF))
_THAI, _LAO, _TIBETAN = ((0x0E01, 0x0E5B),), ((0x0E80, 0x0EFF),), ((0x0F00, 0x0FFF),)
_BURMESE, _KHMER = ((0x1000, 0x109F), (0xA9E0, 0xA9FF), (0xAA60, 0xAA7F)), ((0x1780, 0x17FF),)
_TAI = ((0x1950, 0x19DF), (0x1A20, 0x1AAF), (0xAA80, 0xAADF))  # Tai Le, New Tai Lue, Tai Tham, Tai Viet
_SCRIPTS = (_HAN, _KANA, _BOPOMOFO, _THAI, _LAO, _TIBETAN, _BURMESE, _KHMER, _TAI)
_RANGES = [pair for script in _SCRIPTS for pair in script]

_WITHOUT_BLANKS = "".join(f"{chr(first)}-{chr(last)}" for first, last in _RANGES)
_MARKS = "\u0300-\u036f\u3099\u309a\u200c\u200d\ufe00-\ufe0f\U000e0100-\U000e01ef" + "".join(
    chr(code)
    for first, last in _RANGES
    if last < 0x20000  # no marks beyond
    for code in range(first, last + 1)
    if unicodedata.category(chr(code)).startswith("M")
)
_CHARACTER = re.compile(f"([{_WITHOUT_BLANKS}][{_MARKS}]*)")
# What ends and divides sentences between such characters; the treebank's list has none of these.
_PUNCTUATION = {
    code: " "
    for code in range(0x3000, min(sys.maxunicode, 0xFF66))
    if (code < 0x3040 or code == 0x30FB or 0xFE30 <= code < 0xFE50 or code > 0xFF00)
    and unicodedata.category(chr(code))[0] in "PZ"
}


def is_segmented(caption: str) -> bool:
    """Whether the caption holds a script without blanks."""
    return _CHARACTER.search(caption) is not None


def words_of(caption: str) -> list[str]:
    """The caption's words in lower case, without punctuation."""
    if not is_segmented(caption):
        return tokenize(caption)
    words: list[str] = []
    # split: every second part is a character, the others are what stands between them
    for number, part in enumerate(_CHARACTER.split(caption.translate(_PUNCTUATION))):
        if number % 2 == 0:
            words += tokenize(part)
        elif unicodedata.category(part[0])[0] in "LMN":
            words.append(part)
    return words
