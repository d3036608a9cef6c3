"""What the tasks cost: a choice among 1,000 names beside a caption, the frames of a video beside PyAV alone.

    OMP_NUM_THREADS=2 OMP_WAIT_POLICY=passive python tools/benchmark.py tasks --json benchmarks/results/tasks_cpu.json

git_base with random weights on 8 images at 224: greedy captions of exactly 10 words, the best of 1,000 names of one
to five words alone, and both in one pass, as the task `classification` asks (with 5 beams). All take turns within one
run. A video has 300 frames of 320 x 240 in H.264, of which 6 are wanted; PyAV decodes all of them and picks those.
"""

from __future__ import annotations

import io
import random
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch

from git_scale.data.video import read_frames
from git_scale.inference.generate import FREE, Decoding, Trie, generate
from git_scale.models.build import build_model
from git_scale.recipes import load_run

BEGIN, END = 101, 102  # of the BERT vocabulary
IMAGES, NAMES, WORDS = 8, 1000, 10
SECONDS, RATE, FRAMES = 10, 30, 6
GAPS = {"a key frame in 250": 250, "a key frame in 12": 12}  # x264's default, and what cameras write
AIMS = {"names / caption": "<= 1.5", "rate of frames / PyAV's": ">= 0.7"}


def run(rounds: int = 7, threads: int = 2) -> dict[str, Any]:
    """Ratios of medians over the rounds, after one to warm up."""
    torch.set_num_threads(threads)
    texts = take_turns(text_actions(), rounds)
    videos = {name: take_turns(video_actions(gap), rounds) for name, gap in GAPS.items()}
    caption = texts["caption"]
    return {
        "images": IMAGES,
        "names": NAMES,
        "words of a caption": WORDS,
        "rounds": rounds,
        "threads": threads,
        "seconds per image": {name: round(seconds / IMAGES, 4) for name, seconds in texts.items()},
        "names / caption": round(texts["names"] / caption, 2),
        "caption and names, 5 beams / caption": round(texts["caption and names, 5 beams"] / caption, 2),
        "rate of frames / PyAV's": {
            name: round(seconds["PyAV"] / seconds["read_frames"], 2) for name, seconds in videos.items()
        },
        "aims": AIMS,
    }


def text_actions() -> dict[str, Callable[[], object]]:
    torch.manual_seed(0)
    config = load_run("git_base").model
    model = build_model(config).eval()
    side = config.encoder.image_size
    pixels = torch.randn(IMAGES, 1, 3, side, side)
    draw = random.Random(0)
    names = [
        [draw.randrange(1000, config.vocab_size) for _ in range(draw.randint(1, 5))] for _ in range(NAMES)
    ]
    trie = Trie(names, END)
    one, both = [[[BEGIN]]] * IMAGES, [[[BEGIN]] * 2] * IMAGES
    exactly = Decoding(WORDS, WORDS)
    five = Decoding(WORDS, beams=5, n_best=5)
    return {
        "caption": lambda: generate(model, pixels, one, END, exactly),
        "names": lambda: generate(model, pixels, one, END, Decoding(WORDS), trie),
        "caption and names, 5 beams": lambda: generate(
            model, pixels, both, END, five, trie, roots=[[FREE, 0]] * IMAGES
        ),
    }


def video_actions(gap: int) -> dict[str, Callable[[], object]]:
    import av

    written = io.BytesIO()
    with av.open(written, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=RATE, options={"g": str(gap)})
        stream.width, stream.height, stream.pix_fmt = 320, 240, "yuv420p"
        sheet = torch.nn.functional.interpolate(
            torch.rand(1, 3, 55, 65, generator=torch.Generator().manual_seed(0)) * 255, scale_factor=8.0
        )
        for number in range(SECONDS * RATE):
            shift = number % 200
            part = sheet[0, :, shift : shift + 240, shift : shift + 320].byte().permute(1, 2, 0).contiguous()
            container.mux(stream.encode(av.VideoFrame.from_ndarray(part.numpy())))
        container.mux(stream.encode())
    data = written.getvalue()

    def all_of_them() -> object:
        with av.open(io.BytesIO(data), "r") as container:
            frames = list(container.decode(video=0))
        return [frames[int((part + 0.5) * len(frames) / FRAMES)].to_image() for part in range(FRAMES)]

    return {"PyAV": all_of_them, "read_frames": lambda: read_frames(data, FRAMES)}


def take_turns(actions: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Median CPU seconds of each."""
    taken: dict[str, list[float]] = {name: [] for name in actions}
    for _ in range(rounds + 1):
        for name, action in actions.items():
            started = time.process_time()
            action()
            taken[name].append(time.process_time() - started)
    return {name: statistics.median(values[1:]) for name, values in taken.items()}
