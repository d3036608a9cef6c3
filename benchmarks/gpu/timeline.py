"""Where the time of a step goes on a GPU: how busy it is, at which clock, and with which kind of kernel.

A step is traced by torch's profiler. Kernels are told apart by their names, convolutions with one filter per channel
(depthwise) by the shapes of the operators that launched them.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import threading
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch._C._autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from benchmarks.gpu.training import BenchmarkSetting, Case, TrainingSession, synchronise

# The first pattern that matches decides. Names are those of CUDA kernels, or of operators on a CPU.
CLASSES = {
    "collectives": r"nccl",
    "attention": r"flash|fmha|sdpa|attention|mha_",
    "convolution": r"conv|dgrad|wgrad|fprop|depthwise",
    "matrix products": r"gemm|nvjet|cutlass|xmma|cublas|splitk|aten::(mm|addmm|bmm)$",
    "optimizer": r"adam|multi_tensor|foreach|l2norm",
    "copies": r"memcpy|memset|copy|catarray|aten::(cat|clone|fill_|zero_)$",
    "norms": r"layer_?norm|batch_?norm",
    "loss and softmax": r"softmax|nll|cross_entropy",
    "element-wise, compiled": r"triton",
    "element-wise": r"elementwise|vectorized|unrolled|dropout|gelu|aten::(add|mul|div|sub)_?$",
    "reductions": r"reduce|aten::sum$",
}
OTHER = "other"
CLOCK_INTERVAL_S = 0.05  # nvidia-smi answers some twenty times a second
Span = tuple[float, float]  # microseconds


class Kernel(NamedTuple):
    """Says when a kernel ran, and for how long."""

    name: str
    span: Span
    us: float


def measure_timeline(session: TrainingSession, setting: BenchmarkSetting, micro_batch: int) -> Case:
    """One step of all micro-batches, traced after one that warms up."""
    session.switch_to(setting)
    batch = session.batch(micro_batch, setting.texts)
    session.step(batch)
    synchronise(session.device)
    clocks: list[float] = []
    activities = [ProfilerActivity.CPU]
    if session.device.type == "cuda":
        activities.append(ProfilerActivity.CUDA)
    with sampled_clock(session.device, clocks):
        started = time.perf_counter()
        session.step(batch)
        synchronise(session.device)
        untraced_s = time.perf_counter() - started
    with profile(activities=activities, record_shapes=True) as trace:
        session.step(batch)
        synchronise(session.device)
    kernels = kernels_of(trace.events(), session.device)
    by_class = defaultdict[str, float](float)
    for kernel in kernels:
        by_class[class_of(kernel.name)] += kernel.us
    return {
        "recipe": session.recipe,
        "compile": setting.compile,
        "micro_batch": micro_batch,
        "accumulation": session.shapes.accumulation,
        "step_ms": round(untraced_s * 1e3, 2),
        "kernels": len(kernels),
        "busy_share": round(busy_share([kernel.span for kernel in kernels]), 4),
        "sm_clock_mhz": round(sum(clocks) / len(clocks)) if clocks else None,
        "ms_by_class": {
            name: round(us / 1e3, 3) for name, us in sorted(by_class.items(), key=lambda item: -item[1])
        },
        "depthwise_ms": round(depthwise_us(trace.events(), session.device) / 1e3, 3),
    }


def kernels_of(events: Iterable[Any], device: torch.device) -> list[Kernel]:
    """What ran on the device: kernels and copies on a GPU; on a CPU operators, without those that they call."""
    on_gpu = device.type == "cuda"
    found = []
    for event in events:
        span = event.time_range.start, event.time_range.end
        if on_gpu and event.device_type == DeviceType.CUDA:
            found.append(Kernel(event.name, span, span[1] - span[0]))
        elif not on_gpu and event.name.startswith("aten::"):
            found.append(Kernel(event.name, span, event.self_cpu_time_total))
    return found


def class_of(name: str) -> str:
    return next((kind for kind, pattern in CLASSES.items() if re.search(pattern, name.lower())), OTHER)


def busy_share(spans: list[Span]) -> float:
    """Time in which at least one kernel ran, as a share of that from the first one's start to the last one's end."""
    busy, reached = 0.0, min((begin for begin, _ in spans), default=0.0)
    first = reached
    for begin, end in sorted(spans):
        busy += max(0.0, end - max(begin, reached))
        reached = max(reached, end)
    return busy / (reached - first) if reached > first else 0.0


def depthwise_us(events: Iterable[Any], device: torch.device) -> float:
    """Device time of convolutions with one filter per channel, forward and backward."""
    total = 0.0
    for event in events:
        where = {"aten::convolution": 1, "aten::convolution_backward": 2}.get(event.name)
        if where is not None and _is_depthwise(event.input_shapes, where):
            total += event.device_time_total if device.type == "cuda" else event.cpu_time_total
    return total


def _is_depthwise(shapes: list[list[int]], where: int) -> bool:
    """`where` the weight stands among the arguments; the input stands before it."""
    weight, pixels = shapes[where], shapes[where - 1]
    return len(weight) == 4 and len(pixels) == 4 and weight[1] == 1 and pixels[1] == weight[0] > 1


@contextmanager
def sampled_clock(device: torch.device, clocks: list[float]) -> Iterator[None]:
    """Appends the clock of the multiprocessors in MHz, as nvidia-smi tells it, while the block runs."""
    if device.type != "cuda" or not shutil.which("nvidia-smi"):
        yield
        return
    command = [
        "nvidia-smi",
        "--query-gpu=clocks.sm",
        "--format=csv,noheader,nounits",
        "-i",
        str(device.index),
    ]
    done = threading.Event()

    def sample() -> None:
        while not done.wait(CLOCK_INTERVAL_S):
            answer = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False).stdout
            clocks.extend(float(line) for line in answer.split() if line.replace(".", "").isdigit())

    thread = threading.Thread(target=sample)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
