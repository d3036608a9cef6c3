"""Attention of image tokens alone: 256 of them, and 257 with the class token, by each kernel that torch has."""

from __future__ import annotations

import time
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from benchmarks.gpu.shapes import BenchmarkShapes
from benchmarks.gpu.training import Case, synchronise

LENGTHS = (256, 257, 264)  # patches; with the class token; the next multiple of 8
HEAD_WIDTH = 64
BACKENDS = {
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "flash": SDPBackend.FLASH_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
    "math": SDPBackend.MATH,
}
REPEATS = 20


def measure_attention(shapes: BenchmarkShapes, device: torch.device) -> Iterator[Case]:
    """Milliseconds of a layer's attention, forward and backward, for the micro-batch of git_large."""
    images = max(shapes.micro_batches)
    for name, backend in BACKENDS.items():
        for length in LENGTHS:
            case = {"backend": name, "tokens": length, "images": images, "heads": shapes.heads}
            try:
                ms = _milliseconds(images, shapes.heads, length, backend, device)
                yield case | {"ms": round(ms, 4), "us_per_token": round(1e3 * ms / (images * length), 5)}
            except RuntimeError as error:  # no such kernel here
                yield case | {"skipped": str(error).splitlines()[0]}


def _milliseconds(images: int, heads: int, length: int, backend: SDPBackend, device: torch.device) -> float:
    generator = torch.Generator(device).manual_seed(0)
    q, k, v = (
        torch.randn(
            images, heads, length, HEAD_WIDTH, device=device, dtype=torch.bfloat16, generator=generator
        ).requires_grad_()
        for _ in range(3)
    )
    upstream = torch.ones_like(q)
    with sdpa_kernel(backend):
        repeats = REPEATS if device.type == "cuda" else 1
        for count in (1, repeats):  # the first one warms up
            synchronise(device)
            started = time.perf_counter()
            for _ in range(count):
                F.scaled_dot_product_attention(q, k, v).backward(upstream)
            synchronise(device)
    return (time.perf_counter() - started) / repeats * 1e3
