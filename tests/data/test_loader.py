from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterable
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch

from git_scale.config import RunConfig
from git_scale.data import loader
from git_scale.data.batch import Batch, EvalBatch
from git_scale.data.captions import clean_captions
from git_scale.data.images import decode, resize_center_crop
from git_scale.data.loader import build_eval_loader, build_train_loader, eval_indices, step_image_size
from git_scale.data.store import SampleStore, open_store
from git_scale.data.tokenizer import Tokenizer, load_tokenizer
from git_scale.errors import ConfigError
from git_scale.tasks import build_task

WORDS = [
    "shard",
    "sample",
    "caption",
    *map(str, range(10)),
    *(f"##{n}" for n in range(10)),
    "clip",
    "##ption",
]


@pytest.fixture
def tokenizer(tmp_path: Path) -> Tokenizer:
    path = tmp_path / "vocab.txt"
    path.write_text("\n".join(["[UNK]", "[PAD]", "[CLS]", "[SEP]", *WORDS]) + "\n", encoding="utf-8")
    return load_tokenizer(path)  # pad is 1 here, so that a forgotten pad_id shows


def make_run(workers: int = 0, global_batch: int = 8, micro_batch: int = 4, **sections: dict) -> RunConfig:
    tree = {
        "seed": 7,
        "train": {"global_batch": global_batch, "micro_batch": micro_batch},
        "data": {"workers": workers, **sections.pop("data", {})},
        "model": {"encoder": {"image_size": 16}, **sections.pop("model", {})},
    }
    return RunConfig.model_validate({**tree, **sections})


def train_batches(
    run: RunConfig, shards: SampleStore, tokenizer: Tokenizer, *position: int
) -> Iterable[Batch]:
    return build_train_loader(run, shards, build_task(run.data.task, run, tokenizer), *position)


def eval_batches(
    run: RunConfig, shards: SampleStore, tokenizer: Tokenizer, *rank: int
) -> Iterable[EvalBatch]:
    return build_eval_loader(run, shards, build_task(run.data.task, run, tokenizer), *rank)


def take(loader: Iterable[Batch], number: int) -> list[Batch]:
    return list(islice(loader, number))


def content(batch: Batch) -> list[tuple]:
    """Per sample: key, pixels and texts without padding."""
    return [
        (
            batch.keys[b],
            batch.images[b].numpy().tobytes(),
            tuple(tuple(row[row != 1].tolist()) for row in batch.tokens[b]),
            tuple(row.sum().item() for row in targets_of(batch)[b]),
        )
        for b in range(len(batch.keys))
    ]


def targets_of(batch: Batch) -> torch.Tensor:
    """bool [B, K, T]: where a token is predicted from the position before it."""
    flat = torch.zeros(batch.tokens.numel(), dtype=torch.bool)
    flat[batch.rows + 1] = True
    return flat.view(batch.tokens.shape)


def decoded(tokenizer: Tokenizer, row: torch.Tensor) -> str:
    return tokenizer.decode(row.tolist())


def test_a_batch_keeps_its_contract(folder: Path, tokenizer: Tokenizer) -> None:
    shards = open_store(folder)
    batch = take(train_batches(make_run(), shards, tokenizer, 0, 1, 0), 1)[0]
    assert batch.images.shape == (4, 1, 3, 16, 16) and batch.images.dtype == torch.uint8
    assert batch.tokens.shape == (4, 1, 8)  # [CLS] shard S sample K caption C [SEP]
    for b, key in enumerate(batch.keys):
        shard, k = key.split(":")[1].split("-")
        assert decoded(tokenizer, batch.tokens[b, 0])[:-1] == f"shard {shard} sample {k} caption "
        assert (batch.tokens[b, 0, 0], batch.tokens[b, 0, -1]) == (tokenizer.bos_id, tokenizer.eos_id)
        assert targets_of(batch)[b, 0].tolist() == [False] + [True] * 7
    assert batch.num_targets == 28 and batch.problems == []


def test_an_image_is_the_one_of_its_key(folder: Path, tokenizer: Tokenizer) -> None:
    shards = open_store(folder)
    run = make_run(data={"crop_scale": (1.0, 1.0)})  # 40 x 32 has no square of its whole area: the center
    by_key = {shards.key(number): number for number in range(len(shards))}
    for batch in take(train_batches(run, shards, tokenizer, 0, 1, 0), 4):
        for b, key in enumerate(batch.keys):
            image = decode(shards.read(by_key[key]).image or b"").crop((4, 0, 36, 32)).resize((16, 16), 3)
            assert np.array_equal(batch.images[b, 0], np.asarray(image).transpose(2, 0, 1))


@pytest.mark.parametrize(("dp", "micro_batch"), [(1, 2), (2, 4), (4, 1), (4, 2), (8, 1), (2, 1)])
def test_a_step_is_the_same_for_every_layout(
    folder: Path, tokenizer: Tokenizer, dp: int, micro_batch: int
) -> None:
    shards = open_store(folder)

    def steps(dp: int, micro_batch: int, number: int) -> list[list[tuple]]:
        run = make_run(micro_batch=micro_batch, data={"image_sizes": (16, 24, 32)})
        per_step = run.accumulation(dp)
        ranks = [take(train_batches(run, shards, tokenizer, r, dp, 0), number * per_step) for r in range(dp)]
        return [
            [
                sample
                for a in range(step * per_step, (step + 1) * per_step)
                for rank in ranks
                for sample in content(rank[a])
            ]
            for step in range(number)
        ]

    assert steps(dp, micro_batch, 5) == steps(1, 8, 5)


@pytest.mark.parametrize("workers", [0, 2])
def test_resuming_yields_what_the_uninterrupted_run_yields(
    folder: Path, tokenizer: Tokenizer, workers: int
) -> None:
    shards = open_store(folder)
    sections = {"data": {"image_sizes": (16, 24), "texts_per_image": 2}}
    whole = [content(b) for b in take(train_batches(make_run(**sections), shards, tokenizer, 0, 1, 0), 20)]
    for step in (0, 1, 3, 7):  # an epoch has two steps
        loader = train_batches(
            make_run(workers, data={**sections["data"]}), shards, tokenizer, 0, 1, 8 * step
        )
        assert [content(batch) for batch in take(loader, 4)] == whole[2 * step : 2 * step + 4]
    assert whole[0] != whole[4]  # the negative control: another epoch is another order


def test_more_workers_than_shards(folder: Path, tokenizer: Tokenizer) -> None:
    shards = open_store(folder / "tiny-000001.tar")
    batches = take(train_batches(make_run(3, 7, 1), shards, tokenizer, 0, 1, 0), 14)
    keys = [batch.keys[0] for batch in batches]
    assert sorted(keys[:7]) == sorted(keys[7:]) == [f"tiny-000001.tar:1-{k}" for k in range(7)]


def test_the_global_random_state_is_left_alone(folder: Path, tokenizer: Tokenizer) -> None:
    torch.manual_seed(0)
    np.random.seed(0)
    before = torch.get_rng_state(), np.random.get_state()[1].copy()  # type: ignore[index,union-attr]
    take(train_batches(make_run(), open_store(folder), tokenizer, 0, 1, 0), 3)
    assert torch.equal(before[0], torch.get_rng_state())
    assert np.array_equal(before[1], np.random.get_state()[1])  # type: ignore[index]


@pytest.mark.parametrize("workers", [0, 2])
def test_bad_samples_keep_their_place(
    tmp_path: Path,
    write_shard: Callable,
    image: Callable,
    text: Callable,
    tokenizer: Tokenizer,
    workers: int,
) -> None:
    good = {"jpg": image(0), "json": text("shard 0")}
    bad = {
        "truncated": {**good, "jpg": image(0)[:-200]},
        "no-image": {"json": good["json"]},
        "no-text": {"jpg": good["jpg"]},
        "empty": {**good, "json": text("", " \n")},
        "latin": {"jpg": good["jpg"], "txt": b"caf\xe9 noir"},
    }
    write_shard(tmp_path / "s.tar", [*((f"good-{k}", good) for k in range(7)), *bad.items()])
    run = make_run(workers, 12, 4, data={"texts_per_image": 2})
    batches = take(train_batches(run, open_store(tmp_path), tokenizer, 0, 1, 0), 6)
    for epoch in (batches[:3], batches[3:]):
        keys = Counter(key for batch in epoch for key in batch.keys)
        assert keys == Counter([f"s.tar:good-{k}" for k in range(7)] + [f"s.tar:{name}" for name in bad])
        problems = " ".join(sorted(p for batch in epoch for p in batch.problems))
        for message in (
            r"s.tar:empty: no caption, or only empty ones",
            r"s.tar:latin: the text is not UTF-8 (byte 3)",
            r"s.tar:no-image: no image",
            r"s.tar:no-text: no text",
            r"s.tar:truncated: the image",
        ):
            assert message in problems
        assert sum(len(batch.problems) for batch in epoch) == 5
        for batch in epoch:
            assert batch.images.shape == (4, 1, 3, 16, 16) and batch.tokens.shape[:2] == (4, 2)
            assert (batch.tokens[:, :, 0] == tokenizer.bos_id).all()
            for b, key in enumerate(batch.keys):
                used = "good" in key
                assert bool(targets_of(batch)[b].any()) == bool(batch.images[b].any()) == used
                # one caption for two rows: the second is [CLS] [SEP] without targets
                assert targets_of(batch)[b].sum(-1).tolist() == ([3, 0] if used else [0, 0])
                blank = [tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id, tokenizer.pad_id]
                assert batch.tokens[b, 1].tolist() == blank


def test_k_captions_and_one(folder: Path, tokenizer: Tokenizer) -> None:
    shards = open_store(folder)
    run = make_run(data={"texts_per_image": 3})
    for batch in take(train_batches(run, shards, tokenizer, 0, 1, 0), 4):
        for b in range(4):
            texts = [decoded(tokenizer, row) for row in batch.tokens[b]]
            assert sorted(text[-1] for text in texts) == ["0", "1", "2"]
            assert len({text[:-1] for text in texts}) == 1
    seen = Counter[tuple[str, str]]()
    for batch in take(train_batches(make_run(), shards, tokenizer, 0, 1, 0), 4 * 12):
        seen.update((key, decoded(tokenizer, batch.tokens[b, 0])) for b, key in enumerate(batch.keys))
    assert Counter(key for key, _ in seen.elements()) == {shards.key(n): 12 for n in range(16)}
    assert len(seen) > 40  # of 16 x 3: a new draw each epoch


def test_more_texts_than_were_planned_for_are_refused(folder: Path, tokenizer: Tokenizer) -> None:
    run, shards = make_run(), open_store(folder)
    task = build_task("caption", run, tokenizer)
    task.texts = lambda raw, rng: 5 * [task.prompts.caption("a cat")]  # type: ignore[method-assign]
    with pytest.raises(
        ConfigError, match=r"texts_per_image=1, but CaptionTask gave 5 texts of tiny-00000\d\.tar"
    ):
        next(iter(build_train_loader(run, shards, task, 0, 1, 0)))


def test_long_captions_are_cut_and_keep_their_end(folder: Path, tokenizer: Tokenizer) -> None:
    run = make_run(data={"max_text_tokens": 5})
    batch = take(train_batches(run, open_store(folder), tokenizer, 0, 1, 0), 1)[0]
    assert batch.tokens.shape == (4, 1, 5)
    assert (batch.tokens[:, 0, -1] == tokenizer.eos_id).all() and targets_of(batch)[:, 0, 1:].all()
    assert decoded(tokenizer, batch.tokens[0, 0]).endswith("sample")


def test_image_sizes_follow_the_step_alone() -> None:
    run = make_run(data={"image_sizes": (160, 176, 192, 208, 224)})
    sizes = [step_image_size(run, 8 * step) for step in range(1000)]
    assert set(sizes) == {160, 176, 192, 208, 224} and min(Counter(sizes).values()) > 150
    assert sizes != [step_image_size(run.model_copy(update={"seed": 8}), 8 * step) for step in range(1000)]
    assert step_image_size(make_run(), 0) == 16


@pytest.fixture
def clips(tmp_path: Path, write_shard: Callable, image: Callable, text: Callable) -> SampleStore:
    """Clips of 12 frames whose brightness is 20 times their number; the last has none."""
    import io

    from PIL import Image

    def flat(level: int, side: int = 24) -> bytes:
        buffer = io.BytesIO()
        Image.new("RGB", (side, 20), (level,) * 3).save(buffer, "PNG")
        return buffer.getvalue()

    frames = {f"{n}.png": flat(20 * n) for n in range(12)}
    words = text("shard 0", clip_captions=["clip 0"])
    samples = [
        ("clip", {"jpg": image(0), **frames, "json": words}),
        ("short", {**{f"{n}.png": flat(20 * n) for n in (0, 1)}, "txt": b"clip 1"}),
        ("image", {"jpg": image(0), "json": words}),
        ("uneven", {**frames, "5.png": flat(5, 30), "json": words}),
    ]
    write_shard(tmp_path / "s.tar", samples)
    return open_store(tmp_path)


def references_of(batch: EvalBatch) -> list[list[str]]:
    return [[text for query in queries for text in query.references] for queries in batch.queries]


def test_frames_of_clips(clips: SampleStore, tokenizer: Tokenizer) -> None:
    run = make_run(0, 4, 4, model={"encoder": {"image_size": 16}, "frames": 6})
    starts = set()
    for batch in take(train_batches(run, clips, tokenizer, 0, 1, 0), 20):
        assert batch.images.shape == (4, 6, 3, 16, 16)
        rows = {key.split(":")[1]: b for b, key in enumerate(batch.keys)}
        levels = batch.images[rows["clip"]].float().mean((1, 2, 3)).tolist()
        assert np.diff(levels).tolist() == [40] * 5  # equally spaced
        starts.add(levels[0])
        assert batch.images[rows["short"]].float().mean((1, 2, 3)).tolist() == [0, 0, 0, 20, 20, 20]
        assert decoded(tokenizer, batch.tokens[rows["clip"], 0]) == "clip 0"
        assert decoded(tokenizer, batch.tokens[rows["short"], 0]) == "clip 1"
        assert any("s.tar:image: no video, and no frames of a clip" in problem for problem in batch.problems)
    assert starts == {0, 20}  # random within their parts
    batch = next(iter(eval_batches(run, clips, tokenizer, 0, 1)))
    assert batch.images[0].float().mean((1, 2, 3)).tolist() == [20, 60, 100, 140, 180, 220]
    references = references_of(batch)
    assert references == [["clip 0"], ["clip 1"], [], references[3]]


def test_frames_share_one_crop(
    tmp_path: Path, write_shard: Callable, tokenizer: Tokenizer, image: Callable
) -> None:
    frames = {f"{n}.png": image(3, 40, 40, "PNG") for n in range(4)}  # the same image four times
    write_shard(tmp_path / "s.tar", [("a", {**frames, "txt": b"clip"})])
    run = make_run(
        0, 1, 1, model={"encoder": {"image_size": 16}, "frames": 4}, data={"crop_scale": (0.2, 0.5)}
    )
    first, second = take(train_batches(run, open_store(tmp_path), tokenizer, 0, 1, 0), 2)
    assert all(torch.equal(first.images[0, 0], first.images[0, f]) for f in range(4))
    assert not torch.equal(first.images, second.images)  # another epoch, another crop


def test_a_clip_alone_is_no_image(clips: SampleStore, tokenizer: Tokenizer) -> None:
    batch = take(train_batches(make_run(0, 4, 4), clips, tokenizer, 0, 1, 0), 1)[0]
    assert len(batch.problems) == 2 and all("no image, only a clip" in p for p in batch.problems)
    used = targets_of(batch).any(-1)[:, 0].tolist()
    assert {key for key, use in zip(batch.keys, used, strict=True) if use} == {"s.tar:clip", "s.tar:image"}


@pytest.mark.parametrize("dp", [1, 2, 3, 5, 20])
@pytest.mark.parametrize("images", [1, 10, 16])
def test_eval_slots(dp: int, images: int) -> None:
    ranks = [eval_indices(images, 2, r, dp) for r in range(dp)]
    assert len({tuple(map(len, batches)) for batches in ranks}) == 1  # the same batches on every rank
    numbers = [index for batches in ranks for batch in batches for index in batch]
    assert sorted(index for index in numbers if index >= 0) == list(range(images))
    assert all(index == -1 or index % dp == r for r, b in enumerate(ranks) for batch in b for index in batch)


@pytest.mark.parametrize("workers", [0, 2])
def test_eval_loader(
    folder: Path, tokenizer: Tokenizer, workers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loader, "GAIN_IMAGES", 4)
    shards = open_store(folder)
    run = make_run(workers, eval={"images": 7})
    ranks = [list(eval_batches(run, shards, tokenizer, r, 2)) for r in range(2)]
    assert [batch.indices for batch in ranks[0]] == [[0, 2, 4, 6]]
    assert [batch.indices for batch in ranks[1]] == [[1, 3, 5, -1]]
    first, second = ranks[0][0], ranks[1][0]
    for b, index in enumerate(first.indices):
        raw = shards.read(index)
        assert first.keys[b] == raw.key
        assert references_of(first)[b] == clean_captions(raw.text.captions)
        assert np.array_equal(first.images[b, 0], resize_center_crop(decode(raw.image or b""), 16))
    assert not second.images[3].any() and references_of(second)[3] == [] and second.keys[3] == ""
    assert second.problems == []
    assert first.has_other == second.has_other == [True, True, False, False]
    for b, index in enumerate(first.indices[:2]):
        other = decode(shards.read(index + 1).image or b"")
        assert np.array_equal(first.others[b, 0], resize_center_crop(other, 16))


def test_the_heldout_loss_looks_at_more_images_than_texts_are_generated_for(
    folder: Path, tokenizer: Tokenizer
) -> None:
    (batch,) = eval_batches(make_run(0, 16, 16, eval={"images": 7}), open_store(folder), tokenizer, 0, 1)
    assert batch.indices == list(range(16)) and all(batch.has_other)
    assert [bool(queries) for queries in batch.queries] == [True] * 7 + [False] * 9
    assert targets_of(batch.texts).any(-1).any(-1).all()


def test_eval_of_more_images_than_there_are(folder: Path, tokenizer: Tokenizer) -> None:
    batches = list(eval_batches(make_run(eval={"images": 100}), open_store(folder), tokenizer, 0, 1))
    assert [index for batch in batches for index in batch.indices] == list(range(16))


def test_a_bad_sample_of_an_evaluation(
    tmp_path: Path, write_shard: Callable, tokenizer: Tokenizer, image: Callable
) -> None:
    good = {"jpg": image(0), "txt": b"good"}
    write_shard(tmp_path / "s.tar", [("a", good), ("b", {**good, "jpg": b"no image"}), ("c", good)])
    batch = next(iter(eval_batches(make_run(), open_store(tmp_path), tokenizer, 0, 1)))
    assert references_of(batch) == [["good"], [], ["good"]] and batch.indices == [0, 1, 2]
    assert len(batch.problems) == 1 and batch.problems[0].startswith("s.tar:b: the image")
    assert not batch.images[1].any()


def children() -> list[int]:
    path = Path(f"/proc/self/task/{threading.get_native_id()}/children")
    return [int(pid) for pid in path.read_text().split()]


def test_workers_outlive_the_signals_of_a_job_step(folder: Path, tokenizer: Tokenizer) -> None:
    shards, caught = open_store(folder), []
    expected = [batch.keys for batch in take(train_batches(make_run(), shards, tokenizer, 0, 1, 0), 30)]
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
    before = {number: signal.signal(number, lambda *_: caught.append(os.getpid())) for number in numbers}
    try:
        batches = iter(train_batches(make_run(2), shards, tokenizer, 0, 1, 0))
        keys = [next(batches).keys]
        workers = children()
        assert len(workers) >= 2
        for pid in workers:
            for number in numbers:
                os.kill(pid, number)
        keys += [batch.keys for batch in islice(batches, 29)]
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    assert keys == expected and caught == []


def test_a_process_that_still_holds_its_loader_ends(folder: Path, tokenizer: Tokenizer) -> None:
    """Python ends workers that are left with SIGTERM, which they ignore before that."""
    program = """
import sys
from git_scale.config import RunConfig
from git_scale.data.loader import build_train_loader
from git_scale.data.store import open_store
from git_scale.data.tokenizer import load_tokenizer
from git_scale.tasks import build_task
run = RunConfig.model_validate({"train": {"global_batch": 4, "micro_batch": 4}, "data": {"workers": 2},
                                "model": {"encoder": {"image_size": 16}}})
task = build_task("caption", run, load_tokenizer(sys.argv[2]))
loader = build_train_loader(run, open_store(sys.argv[1]), task, 0, 1, 0)
sys.held = iter(loader)
print(len(next(sys.held).keys))
"""
    command = [sys.executable, "-c", program, str(folder), str(tokenizer.path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)
    assert (done.returncode, done.stdout) == (0, "4\n"), done.stderr
