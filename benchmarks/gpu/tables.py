"""The tables of benchmarks/README.md, made from the results: no figure is copied by hand."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from benchmarks.gpu.stages import STAGES

BEGIN, END = "<!-- made by: python tools/gpu_check.py --tables -->", "<!-- end of what is made -->"
Rows = list[tuple[str, ...]]


def with_tables(text: str, report: dict[str, Any]) -> str:
    """The text with everything between the two marks made anew."""
    before, _, rest = text.partition(BEGIN)
    _, mark, after = rest.partition(END)
    assert mark, "benchmarks/README.md has lost its marks"
    return "\n".join([before + BEGIN, "", *_lines(report), "", END + after])


def _lines(report: dict[str, Any]) -> Iterator[str]:
    yield from _table(("stage", "measured", "outcome"), [_state(stage, report) for stage in STAGES])
    results = {name: stage["results"] for name, stage in report["stages"].items()}
    cases = [case for name in ("base", "large", "large_bf16_gradients", "git2", "git2_bf16_gradients")
             for case in results.get(name, ()) if "mfu" in case]  # fmt: skip
    yield from _titled("Training steps", _TRAINING, [_training(case) for case in cases])
    trainers = [case for case in results.get("trainers", ()) if "images_per_s" in case]
    yield from _titled("Beside transformers", _TRAINERS, [_trainer(case) for case in trainers])
    traces = [case for name in ("timeline", "git2") for case in results.get(name, ()) if "busy_share" in case]
    for case in traces:
        title = f"A step of {case['recipe']}, {_how(case)}"
        yield from _titled(title, ("kernels", "ms", "share"), _timeline(case))
    attention = [case for case in results.get("attention", ()) if "ms" in case]
    yield from _titled(
        "Attention, forward and backward", _ATTENTION, [_attention(case) for case in attention]
    )
    for found in results.get("generation", ()):
        yield from _titled("Generation", ("", "images/s", "ratio"), _generation(found))


def _state(stage: Any, report: dict[str, Any]) -> tuple[str, ...]:
    entry = report["stages"].get(stage.name)
    if entry is None:
        return stage.name, "not yet", stage.shows
    versions = entry.get("versions", {})
    where = f"{entry['date']}, {entry['card']}, torch {versions.get('torch')}, commit {entry.get('commit')}"
    return stage.name, where, " ".join(filter(None, (entry["outcome"], entry.get("summary", ""))))


_TRAINING = (
    "recipe",
    "texts",
    "checkpointing",
    "micro_batch",
    "gradients",
    "",
    "images/s",
    "MFU",
    "peak GiB",
)


def _training(case: dict[str, Any]) -> tuple[str, ...]:
    return (
        case["recipe"],
        str(case["texts"]),
        "on" if case["activation_checkpointing"] else "off",
        str(case["micro_batch"]),
        case["gradient_precision"],
        _how(case),
        f"{case['images_per_s']:,.4g}",
        f"{case['mfu']:.3f}",
        f"{case['peak_gib']:.1f}",
    )


_TRAINERS = ("trainer", "recipe", "micro_batch", "", "images/s", "peak GiB")


def _trainer(case: dict[str, Any]) -> tuple[str, ...]:
    return (
        case["trainer"],
        case["recipe"],
        str(case["micro_batch"]),
        _how(case),
        f"{case['images_per_s']:,.4g}",
        f"{case['peak_gib']:.1f}",
    )


def _timeline(case: dict[str, Any]) -> Rows:
    total = sum(case["ms_by_class"].values())
    rows = [(name, f"{ms:.1f}", f"{ms / total:.1%}") for name, ms in case["ms_by_class"].items()]
    clock = f", {case['sm_clock_mhz']} MHz" if case["sm_clock_mhz"] else ""
    depthwise = (
        "of these depthwise convolutions",
        f"{case['depthwise_ms']:.1f}",
        f"{case['depthwise_ms'] / total:.1%}",
    )
    step = (f"step of {case['accumulation']} x {case['micro_batch']}", f"{case['step_ms']:.1f}",
            f"busy {case['busy_share']:.1%}{clock}")  # fmt: skip
    return [*rows, depthwise, step]


_ATTENTION = ("kernel", "tokens", "ms per layer", "us per token and image")


def _attention(case: dict[str, Any]) -> tuple[str, ...]:
    return case["backend"], str(case["tokens"]), f"{case['ms']:.3f}", f"{case['us_per_token']:.5f}"


def _generation(found: dict[str, Any]) -> Rows:
    rates = found["by wall clock"]
    names = [name.removesuffix(", ratio") for name in rates if name.endswith(", ratio")]
    rows: list[tuple[str, ...]] = []
    for name in names:
        ours, theirs = (f"{rates[f'images/s, {name}, {side}']:.4g}" for side in ("git_scale", "transformers"))
        rows += [
            (f"{name}, git_scale", ours, f"{rates[f'{name}, ratio']:.1f}"),
            (f"{name}, transformers", theirs, ""),
        ]
    return rows


def _how(case: dict[str, Any]) -> str:
    return "compiled" if case["compile"] else "plain"


def _titled(title: str, header: tuple[str, ...], rows: Rows) -> Iterator[str]:
    if rows:
        yield from ("", f"**{title}**", "", *_table(header, rows))


def _table(header: tuple[str, ...], rows: Rows) -> Iterator[str]:
    for row in (header, ("---",) * len(header), *rows):
        yield f"| {' | '.join(row)} |"
