"""Ways to search that are none, and the score by hand."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from git_scale.errors import ConfigError
from git_scale.inference.decoding import Decoding, log_probabilities


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens=0: at least 1"),
        ({"beams": 0}, "beams=0: at least 1"),
        ({"beams": -3}, "beams=-3: at least 1"),
        ({"beams": 2.5}, "beams=2.5: a whole number"),
        ({"max_new_tokens": True}, "max_new_tokens=True: a whole number"),
        ({"temperature": 1.0, "top_k": 2.5}, "top_k=2.5: a whole number"),
        ({"temperature": float("nan")}, "temperature=nan"),
        ({"temperature": -1.0}, "temperature=-1.0"),
        ({"temperature": 1.0, "top_p": float("nan")}, "top_p=nan"),
        ({"n_best": 0}, "n_best=0: at least 1"),
        ({"min_new_tokens": 41}, "min_new_tokens=41 does not lie in 0..max_new_tokens=40"),
        ({"min_new_tokens": -1}, "min_new_tokens=-1"),
        ({"length_penalty": float("nan")}, "length_penalty=nan"),
        ({"n_best": 3, "beams": 2}, "n_best=3 exceeds beams=2: set beams=3"),
        ({"top_k": 5}, "top_k is of sampling: set temperature"),
        ({"top_p": 0.9}, "top_p is of sampling: set temperature"),
        ({"temperature": 0.0}, "temperature=0.0: a number above 0"),
        ({"temperature": float("inf")}, "temperature=inf"),
        ({"temperature": 1.0, "beams": 4}, "needs beams=1"),
        ({"temperature": 1.0, "top_k": 0}, "top_k=0: a whole number of at least 1"),
        ({"temperature": 1.0, "top_p": 0.0}, r"top_p=0.0 does not lie in \(0, 1\]"),
        ({"temperature": 1.0, "top_p": 1.01}, "top_p=1.01"),
    ],
)
def test_no_way_to_search(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        Decoding(**options)
    assert len(caught.value.problems) == 1


def test_every_problem_is_told_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        Decoding(max_new_tokens=0, beams=-1, top_p=0.5)
    assert len(caught.value.problems) == 3


def test_what_is_possible_is_taken() -> None:
    Decoding(beams=4, n_best=4, min_new_tokens=40)
    Decoding(temperature=0.7, top_k=1, top_p=1.0, n_best=100)


def test_the_score_is_the_sum_over_the_length_penalty() -> None:
    """7 tokens in all: (5 + 7) / 6 = 2."""
    sums = torch.tensor([-4.0, -4.0, -8.0])
    lengths = torch.tensor([7, 1, 7])
    assert Decoding(length_penalty=1.0).length_normalised(sums, lengths).tolist() == [-2.0, -4.0, -4.0]
    assert Decoding(length_penalty=0.0).length_normalised(sums, lengths).tolist() == [-4.0, -4.0, -8.0]
    assert Decoding().length_normalised(sums, lengths)[0].item() == pytest.approx(-4 / 2**0.6)
    assert Decoding(length_penalty=2.0).length_normalised(torch.tensor([-float("inf")]), 7).item() == -float(
        "inf"
    )


def test_half_precision_becomes_single_and_double_stays() -> None:
    logits = torch.tensor([0.0, 0.0, -float("inf")])
    for dtype, expected in ((torch.bfloat16, torch.float32), (torch.float64, torch.float64)):
        logs = log_probabilities(logits.to(dtype))
        assert logs.dtype == expected
        assert logs.exp().tolist() == pytest.approx([0.5, 0.5, 0.0], rel=1e-6)
