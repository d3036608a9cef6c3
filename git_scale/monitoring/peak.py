"""What is known of accelerators, in `accelerators.yaml`; a rate that is not there is measured by a short product."""

from __future__ import annotations

import logging
import re
import time
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
import yaml

from git_scale.precision import DTYPES

logger = logging.getLogger(__name__)

TABLE = Path(__file__).with_name("accelerators.yaml")
MEASURE_S = 0.3  # long enough to leave turbo and cold caches behind, short enough for every start


@dataclass(frozen=True)
class Accelerator:
    """Describes a device, by datasheet and custom."""

    name: str
    bf16: float
    """Dense peak in FLOP/s."""
    fp32: float
    memory: int
    """Bytes."""
    intra: float
    """Link to the other devices of its node: bytes/s and direction."""
    inter: float
    """Its share of the network between nodes: bytes/s and direction."""

    def peak(self, precision: str) -> float:
        """FLOP/s at `precision` bf16 or fp32."""
        return self.bf16 if precision == "bf16" else self.fp32


@cache
def peak_flops(device: torch.device, precision: str) -> float:
    """Dense peak of one device in FLOP/s for `precision` bf16 or fp32 (TF32 where there is one).

    A device that the table does not know, the CPU among them, is measured once and the log says so: its
    utilisation is then relative to the best product this machine does, not to a datasheet.
    """
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    known = known_accelerator(name)
    if known is not None:
        return known.peak(precision)
    measured = measure_peak(device, DTYPES[precision])
    logger.info(
        "peak of %s at %s is measured, not from a datasheet: %.3g TFLOP/s", name, precision, measured / 1e12
    )
    return measured


def known_accelerator(name: str) -> Accelerator | None:
    """The table's longest name within a device's name; None when no name matches."""
    padded = _padded(name)
    if " mig " in padded:  # a slice of a GPU carries the name of the whole
        return None
    matches = [row for row in _table() if _padded(row.name) in padded]
    return max(matches, key=lambda row: len(row.name), default=None)


def accelerator_names() -> list[str]:
    return [row.name for row in _table()]


@cache
def _table() -> list[Accelerator]:
    rows = yaml.safe_load(TABLE.read_text(encoding="utf-8"))
    return [
        Accelerator(
            name=row["name"],
            bf16=1e12 * row["bf16"],
            fp32=1e12 * row["fp32"],
            memory=int(row["memory_gib"] * 2**30),
            intra=1e9 / 8 * row["intra_gbps"],
            inter=1e9 / 8 * row["inter_gbps"],
        )
        for row in rows
    ]


def measure_peak(device: torch.device, dtype: torch.dtype) -> float:
    """Best rate in FLOP/s of a few square products within about 0.3 s.

    They grow until one takes a tenth of that: a processor without bf16 units needs 7 s for a product that takes
    20 ms in fp32.
    """
    largest = 1024 if device.type == "cpu" else 8192
    side, best_s = 64, 0.0
    while side < largest and best_s < MEASURE_S / 10:
        side *= 2
        left = torch.rand(side, side, device=device, dtype=dtype)
        _time_product(left)  # the first one loads kernels and starts threads
        best_s = _time_product(left)
    deadline = time.perf_counter() + MEASURE_S
    while time.perf_counter() < deadline:
        best_s = min(best_s, _time_product(left))
    return 2 * side**3 / best_s


def _time_product(left: torch.Tensor) -> float:
    started = time.perf_counter()
    torch.mm(left, left)[0, 0].item()  # reading one value waits for the device
    return time.perf_counter() - started


def _padded(text: str) -> str:
    return " " + " ".join(re.findall(r"[a-z0-9]+", text.lower())) + " "
