"""The peak rate of a device: from `accelerators.yaml` if known there, else measured by a short product."""

from __future__ import annotations

import logging
import re
import time
from functools import cache
from pathlib import Path

import torch
import yaml

logger = logging.getLogger(__name__)

TABLE = Path(__file__).with_name("accelerators.yaml")
DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}
MEASURE_S = 0.3  # long enough to leave turbo and cold caches behind, short enough for every start


@cache
def peak_flops(device: torch.device, precision: str) -> float:
    """Dense peak of one device in FLOP/s for `precision` bf16 or fp32 (TF32 where there is one).

    A device that the table does not know, the CPU among them, is measured once and the log says so: its
    utilisation is then relative to the best product this machine does, not to a datasheet.
    """
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    known = known_peak(name, precision)
    if known is not None:
        return known
    measured = measure_peak(device, DTYPES[precision])
    logger.info(
        "peak of %s at %s is measured, not from a datasheet: %.3g TFLOP/s", name, precision, measured / 1e12
    )
    return measured


def known_peak(name: str, precision: str) -> float | None:
    """Peak in FLOP/s of the table's longest name within the device's name; None when no name matches."""
    words = _words(name)
    if " mig " in words:  # a slice of a GPU carries the name of the whole
        return None
    table = yaml.safe_load(TABLE.read_text(encoding="utf-8"))
    matches = [row for row in table if _words(row["name"]) in words]
    if not matches:
        return None
    return 1e12 * float(max(matches, key=lambda row: len(row["name"]))[precision])


def measure_peak(device: torch.device, dtype: torch.dtype) -> float:
    """Best rate in FLOP/s of a few square products within about 0.3 s."""
    side = 1024 if device.type == "cpu" else 8192
    left = torch.rand(side, side, device=device, dtype=dtype)
    best_s = float("inf")
    _time_product(left)  # the first one loads kernels and starts threads
    deadline = time.perf_counter() + MEASURE_S
    while time.perf_counter() < deadline or best_s == float("inf"):
        best_s = min(best_s, _time_product(left))
    return 2 * side**3 / best_s


def _time_product(left: torch.Tensor) -> float:
    started = time.perf_counter()
    torch.mm(left, left)[0, 0].item()  # reading one value waits for the device
    return time.perf_counter() - started


def _words(text: str) -> str:
    return " " + " ".join(re.findall(r"[a-z0-9]+", text.lower())) + " "
