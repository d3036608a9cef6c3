from __future__ import annotations

import pickle

from git_scale.data.problems import ProblemCounts, describe_share


def test_reasons_are_counted_whatever_numbers_they_name() -> None:
    reasons = ProblemCounts(
        f"s.tar:{k}: the image ({100 + k} bytes) cannot be decoded: cut" for k in range(5)
    )
    reasons += ProblemCounts(["t.tar:x: no caption, or only empty ones"])
    assert str(reasons).splitlines() == [
        "  5 x the image (N bytes) cannot be decoded: cut (s.tar:0, s.tar:1, s.tar:2)",
        "  1 x no caption, or only empty ones (t.tar:x)",
    ]
    assert str(pickle.loads(pickle.dumps(reasons))) == str(reasons)
    assert not ProblemCounts() and reasons


def test_any_number_of_reasons_stays_small() -> None:
    reasons = ProblemCounts(f"s.tar:{k}: reason {'x' * k}" for k in range(1000))
    assert len(pickle.dumps(reasons)) < 20_000
    assert str(reasons).splitlines()[0].startswith("  900 x other reasons (s.tar:100, ")
    assert str(reasons).splitlines()[-1] == "  95 for 95 other reasons"


def test_share() -> None:
    assert describe_share(3, 2000) == "3 of 2,000 (0.15 %)" and describe_share(0, 0) == "0 of 0 (0 %)"
