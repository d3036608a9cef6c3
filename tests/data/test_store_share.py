"""The first samples of each part of a source."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from git_scale.config import DataConfig, SourceConfig
from git_scale.data.fingerprint import compare_fingerprints
from git_scale.data.mixture import Mixture
from git_scale.data.store import open_store
from git_scale.data.store_share import StoreShare


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    for name, count in (("a", 10), ("b", 7), ("c", 1)):
        (tmp_path / f"{name}.txt").write_text("\n".join(f"{name}{number}" for number in range(count)))
    return tmp_path


def said(store: StoreShare) -> list[str]:
    texts = [store.read(number).text.meta["text"] for number in range(len(store))]
    assert texts == [store.read_text(number).meta["text"] for number in range(len(store))]
    return texts


def test_the_first_of_each_part(texts: Path) -> None:
    store = open_store(texts)
    third = StoreShare(store, 0.3)
    assert third.counts.tolist() == [3, 3, 1]
    assert said(third) == ["a0", "a1", "a2", "b0", "b1", "b2", "c0"]
    assert third.key(3) == store.key(10)
    assert set(said(StoreShare(store, 0.1))) < set(said(third)) < set(said(StoreShare(store, 0.9)))
    assert np.array_equal(third.contents, store.contents), "held-out parts are still told by their content"
    for number in (-1, 7):
        with pytest.raises(IndexError):
            third.read(number)


def test_another_share_is_other_training_data(texts: Path) -> None:
    store = open_store(texts)
    whole, third, half = (
        store.fingerprint,
        StoreShare(store, 0.3).fingerprint,
        StoreShare(store, 0.5).fingerprint,
    )
    assert len({whole, third, half}) == 3
    assert compare_fingerprints(third, half).difference and compare_fingerprints(whole, third).difference
    assert not compare_fingerprints(third, StoreShare(open_store(texts), 0.3).fingerprint).difference


def test_a_run_takes_it_of_every_source(texts: Path) -> None:
    stores = [open_store(texts), open_store(texts / "a.txt")]
    sources = tuple(SourceConfig(path=str(path)) for path in (texts, texts / "a.txt"))
    data = DataConfig(train=None, sources=sources, share=0.5)
    mixture = Mixture(data, stores)
    assert len(mixture) == 5 + 4 + 1 + 5
    assert Mixture(data.model_copy(update={"share": 1.0}), stores).stores == stores
    epoch = [mixture.order(0).sample(position)[1] for position in range(20)]
    assert sorted(number for number in epoch if number < 10) == list(range(10)), "an epoch holds each once"
