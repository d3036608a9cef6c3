"""Texts to choose from that generation cannot spell are said of their sample, before a rank asks for them."""

from __future__ import annotations

import pytest

from git_scale.data.texts import Query, check_choices
from git_scale.errors import DataError

END = 2


@pytest.mark.parametrize(
    ("choices", "most", "message"),
    [
        (
            {(3, 4): "a b", (3, 4, 5): "a b c"},
            3,
            "'a b c' cannot be chosen: it has 3 tokens, but eval.max_new_tokens=3",
        ),
        (
            {(3, 4): "fox", (3, 4, 5, 6): "fox terrier dog", (3, 4, 5): "fox terrier"},
            2,
            "'fox terrier dog' cannot be chosen: it has 4 tokens.*: set eval.max_new_tokens=5 or more",
        ),
        ({(3, 4, 5): "a b c"}, 2, "set eval.max_new_tokens=4 or more"),
        ({(): "?"}, 9, r"'\?' cannot be chosen: the tokenizer has no words for it"),
        ({(3, END): "a</s>"}, 9, "the tokenizer has no words for it"),
    ],
)
def test_a_choice_that_cannot_be_spelled_is_refused(
    choices: dict[tuple[int, ...], str], most: int, message: str
) -> None:
    with pytest.raises(DataError, match=message):
        check_choices([Query([1], []), Query([1], [], choices=choices)], most, END)


def test_choices_that_fit_pass() -> None:
    check_choices([Query([1], []), Query([1], [], choices={(3, 4): "a b", (3,): "a"})], 3, END)
