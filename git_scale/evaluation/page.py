"""One page of an evaluation that opens in a browser without a server: scores, and texts beside their images.

    write_page(Path("results/page.html"), "runs/git on data/heldout", cards, table, "most disagreeing")

It shows the best and the worst texts by each metric, some at random, and those of which the metrics disagree most;
the reader sorts and searches. Everything is in the one file. Texts are data, never markup.
"""

from __future__ import annotations

import base64
import html
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from git_scale.data.images import decode
from git_scale.data.store import SampleStore
from git_scale.data.video import read_frames
from git_scale.errors import DataError
from git_scale.files import replaced_atomically
from git_scale.metrics import METRICS
from git_scale.metrics.scores import lower_is_better

TEMPLATE = Path(__file__).with_name("page.html")
SIDE = 224
"""Pixels of the longer side of an image on the page: some 8 kB as JPEG."""
OF_EACH_END = 25
"""Texts from the best and from the worst end of each metric."""
AT_RANDOM, SPREAD = 50, 50


@dataclass(frozen=True)
class Card:
    """Holds a text on the page."""

    number: int
    """Of its sample in the data."""
    key: str
    question: str
    said: str
    right: Sequence[str]
    values: Mapping[str, float]
    spread: float
    """How much the metrics disagree of it, or two evaluations."""
    other: str | None = None
    """What another model said."""


def disagreement(cards_values: Sequence[Mapping[str, float]], metrics: Sequence[str]) -> list[float]:
    """Of each text the difference between its highest and its lowest rank (0 to 1) among the metrics."""
    ranks = []
    for metric in metrics:
        values = np.array([each.get(metric, np.nan) for each in cards_values])
        known = values[~np.isnan(values)]
        # the middle of where equal values stand, so that a metric of 0 and 1 says little
        first, last = (np.searchsorted(np.sort(known), values, side) for side in ("left", "right"))
        ranks.append(np.where(np.isnan(values), np.nan, (first + last) / 2 / max(1, len(known))))
    if len(ranks) < 2:
        return [0.0] * len(cards_values)
    spread = np.fmax.reduce(ranks) - np.fmin.reduce(ranks)  # of those that are known
    return np.nan_to_num(spread).tolist()


def chosen(cards: Sequence[Card], metrics: Sequence[str]) -> list[Card]:
    """The ends of each metric, some at random, and those of the largest spread: each once, in their order."""
    numbers = set(np.random.default_rng(0).permutation(len(cards))[:AT_RANDOM].tolist())
    for metric in metrics:
        known = [number for number, card in enumerate(cards) if metric in card.values]
        ranked = sorted(known, key=lambda number: cards[number].values[metric])
        numbers |= {*ranked[:OF_EACH_END], *ranked[-OF_EACH_END:]}
    by_spread = sorted(range(len(cards)), key=lambda number: -cards[number].spread)
    numbers |= {number for number in by_spread[:SPREAD] if cards[number].spread > 0}
    return [cards[number] for number in sorted(numbers)]


def write_page(
    path: Path,
    title: str,
    cards: Sequence[Card],
    table: Iterable[Sequence[str]],
    spread: str,
    store: SampleStore | None,
) -> None:
    """`table`: what stands at the top, its header first. `spread`: what sorting by it is called.

    `store`: of the images; none: the page has texts alone. Raises OSError.
    """
    metrics = list(dict.fromkeys(name for card in cards for name in card.values))
    shown = chosen(cards, metrics)
    order = np.random.default_rng(1).permutation(len(shown)).tolist()
    data = {
        "table": [list(row) for row in table],
        "metrics": metrics,
        "lower": [name for name in metrics if name in METRICS and lower_is_better(name)],
        "spread": spread,
        "texts": len(cards),
        "cards": [
            {
                "key": card.key,
                "question": card.question,
                "said": card.said,
                "right": list(card.right),
                "values": dict(card.values),
                "spread": card.spread,
                "random": place,
                "image": _inline(store, card.number),
                **({} if card.other is None else {"other": card.other}),
            }
            for card, place in zip(shown, order, strict=True)
        ],
    }
    before, after = TEMPLATE.read_text(encoding="utf-8").split("DATA")
    before = before.replace("TITLE", html.escape(title))
    # "<" ends a script in HTML wherever it stands; lone surrogates have no UTF-8
    said = json.dumps(data).replace("<", "\\u003c")
    with replaced_atomically(path) as temporary:
        temporary.write_text(f"{before}{said}{after}", encoding="utf-8", errors="backslashreplace")


def _inline(store: SampleStore | None, number: int) -> str | None:
    """The sample's image as an address that holds it; None where it cannot be read.

    Of a video it is the frame in the middle, of a clip that is stored as frames the first.
    """
    if store is None:
        return None
    try:
        raw = store.read(number)
        (small,) = (
            read_frames(raw.video, 1) if raw.video and not raw.image else [decode(raw.image or raw.frames[0])]
        )
        small = small.convert("RGB")
    except (DataError, IndexError):
        return None
    small.thumbnail((SIDE, SIDE), Image.Resampling.BICUBIC)
    buffer = io.BytesIO()
    small.save(buffer, "JPEG", quality=80)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}"
