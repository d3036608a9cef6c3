"""The scans: split without overlap, written at the height that was asked for."""

from __future__ import annotations

import numpy as np
import pytest

from git_scale.data.builders import handwriting
from git_scale.errors import DataError

sklearn_datasets = pytest.importorskip("sklearn.datasets")


def test_heldout_handwriting_is_never_trained_on() -> None:
    train, heldout = (handwriting.scans_of(split) for split in ("train", "heldout"))
    flat = [set().union(*scans) for scans in (train, heldout)]
    assert not flat[0] & flat[1]
    assert flat[0] | flat[1] == set(range(1797))
    assert (len(flat[0]), len(flat[1])) == (1401, 396)
    assert all(38 <= len(scans) <= 42 for scans in heldout)  # every digit has its share


def test_scans_show_the_digit_they_are_filed_under() -> None:
    target = sklearn_datasets.load_digits().target
    for split in handwriting.SPLITS:
        for digit, scans in enumerate(handwriting.scans_of(split)):
            assert set(target[list(scans)]) == {digit}


def test_unknown_split_is_named() -> None:
    with pytest.raises(DataError, match="split 'test': unknown; the splits are train, heldout"):
        handwriting.scans_of("test")


def test_without_scikit_learn_the_package_to_install_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    handwriting._scans.cache_clear()
    monkeypatch.setitem(__import__("sys").modules, "sklearn.datasets", None)
    with pytest.raises(DataError, match=r"pip install 'git_scale\[demo\]'"):
        handwriting._scans()


@pytest.mark.parametrize("height", [14, 27])
def test_ink_has_the_height_asked_for_and_reaches_its_edges(height: int) -> None:
    rng = np.random.default_rng(0)
    for scan in range(0, 1797, 97):
        ink = handwriting.write_digit(rng, scan, height, int(0.75 * height))
        assert ink.shape[0] == height and ink.shape[1] <= 0.75 * height
        assert ink.dtype == np.float32 and ink.min() >= 0 and ink.max() <= 1
        assert ink[:2].max() > 0.3 and ink[-2:].max() > 0.3  # a box that fits
        assert ink.mean() > 0.1


def test_the_same_scan_is_never_written_twice_alike() -> None:
    rng = np.random.default_rng(0)
    first, second = (handwriting.write_digit(rng, 5, 27, 20) for _ in range(2))
    assert first.shape != second.shape or np.abs(first - second).max() > 0.1


def test_paper_is_light_and_every_pen_is_dark() -> None:
    rng = np.random.default_rng(0)
    papers = [handwriting.draw_paper(rng, 64) for _ in range(50)]
    pens = [handwriting.pick_pen(rng) for _ in range(50)]
    luminance = np.array((0.299, 0.587, 0.114))
    assert min((paper @ luminance).min() for paper in papers) > 185
    assert max((pen @ luminance).max() for pen in pens) < 110
    assert len({paper.tobytes() for paper in papers}) == 50


def test_ink_covers_the_paper_as_much_as_it_is_dense() -> None:
    image = np.full((4, 4, 3), 200, np.float32)
    ink = np.array([[1.0, 0.5]], np.float32)
    handwriting.lay_ink(image, ink, left=1, top=2, pen=np.array((0, 100, 200), np.float32))
    assert image[2, 1].tolist() == [0, 100, 200]
    assert image[2, 2].tolist() == [100, 150, 200]
    assert (image == 200).sum() == 48 - 4
