"""Several sources as one stream: who comes when, in which order, and under which names."""

from __future__ import annotations

import math
import shutil
from collections import Counter
from collections.abc import Callable
from itertools import islice
from pathlib import Path

import numpy as np
import pytest

from git_scale.config import DataConfig, RunConfig, SourceConfig
from git_scale.data.batch import Batch
from git_scale.data.fingerprint import compare_fingerprints
from git_scale.data.index_folder import fill_folder
from git_scale.data.loader import build_train_loader
from git_scale.data.mixture import (
    Mixture,
    PerSourceTask,
    SourceSchedule,
    short_names,
    source_names,
    training_sources,
)
from git_scale.data.order import SampleOrder
from git_scale.data.store import open_store
from git_scale.data.tokenizer import Tokenizer, load_tokenizer
from git_scale.errors import DataError
from git_scale.recipes import draft_run
from git_scale.tasks import build_task

WEIGHTS = [[1.0], [0.7, 0.3], [1, 1, 1], [5, 1e-3, 3, 1], [math.pi, math.e, 1, 0.1, 7], [1.0] * 17, [1e9, 1]]


@pytest.mark.parametrize("weights", WEIGHTS, ids=str)
def test_every_prefix_follows_the_weights(weights: list[float]) -> None:
    schedule, bound = SourceSchedule(weights), math.ceil(math.log2(len(weights))) / 2
    seen = [0] * len(weights)
    for position in range(3000):
        source, before = schedule.at(position)
        assert (seen[source], schedule.counts(position)) == (before, seen)
        seen[source] += 1
        for count, weight in zip(seen, weights, strict=True):
            assert abs(count - (position + 1) * weight / sum(weights)) <= bound + 1e-6


def test_drawn_sources_would_not() -> None:
    """The negative control: what the bound is worth."""
    drawn = np.random.default_rng(0).random(3000) < 0.7
    off = np.abs(np.cumsum(drawn) - 0.7 * np.arange(1, 3001)).max()
    assert off > 10


def test_a_position_far_away_is_exact() -> None:
    schedule = SourceSchedule([0.7, 0.2, 0.1])
    start = 10**18 + 1
    counts = schedule.counts(start)
    assert sum(counts) == start and abs(counts[0] - 0.7 * start) < 1e3  # as exact as a float is there
    for position in range(start, start + 50):
        source, before = schedule.at(position)
        assert before == counts[source]
        counts[source] += 1


@pytest.fixture
def folders(
    folder: Path, tmp_path: Path, write_shard: Callable, image: Callable, text: Callable
) -> list[Path]:
    """captions/train: 16 samples in three shards; questions/train: 5 in one of the same name as one of these."""
    captions, questions = tmp_path / "captions" / "train", tmp_path / "questions" / "train"
    for each in (captions, questions):
        each.mkdir(parents=True)
    for path in folder.glob("*.tar"):
        shutil.move(path, captions)
    asked = [{"question": "shard", "answers": ["sample"]}]
    samples = [(f"q{n}", {"jpg": image(900 + n), "json": text(questions=asked)}) for n in range(5)]
    write_shard(questions / "tiny-000000.tar", samples)
    return [captions, questions]


@pytest.fixture
def tokenizer(tmp_path: Path) -> Tokenizer:
    path, numbers = tmp_path / "vocab.txt", [*map(str, range(10)), *(f"##{n}" for n in range(10))]
    vocabulary = ["[UNK]", "[PAD]", "[CLS]", "[SEP]", "shard", "sample", "caption", *numbers]
    path.write_text("\n".join(vocabulary) + "\n")
    return load_tokenizer(path)


def data_of(folders: list[Path], weights: tuple[float, ...] = (3, 1), **more: object) -> DataConfig:
    tasks = ["caption", "vqa"]
    sources = [
        {"path": str(path), "weight": weight, "task": task}
        for path, weight, task in zip(folders, weights, tasks, strict=False)
    ]
    return DataConfig.model_validate({"sources": sources, "workers": 0, **more})


def opened(data: DataConfig) -> Mixture:
    return Mixture(data, [open_store(source.path) for source in training_sources(data).values()])


def batches_of(
    data: DataConfig, tokenizer: Tokenizer, rank: int = 0, dp: int = 1, start: int = 0, micro: int = 8
) -> list[Batch]:
    """Those of three steps of 8 samples."""
    run = RunConfig.model_validate(
        {
            "seed": 7,
            "train": {"global_batch": 8, "micro_batch": micro},
            "model": {"encoder": {"image_size": 16}},
            "data": data.model_dump(),
        }
    )
    store = opened(data)
    task = PerSourceTask([build_task(str(source.task), run, tokenizer) for source in store.sources])
    loader = build_train_loader(run, store, task, rank, dp, start, order=store.order(run.seed))
    return list(islice(loader, 3 * run.accumulation(dp)))


def contents(batch: Batch) -> list[tuple]:
    """Of each sample, without padding."""
    return [
        (key, batch.images[b].numpy().tobytes(), batch.tokens[b][batch.tokens[b] != 1].tolist())
        for b, key in enumerate(batch.keys)
    ]


def test_each_source_is_in_its_own_order(folders: list[Path]) -> None:
    store = opened(data_of(folders))
    order, own = store.order(seed=3), SampleOrder(store.stores[1].counts, 3, stream=1)
    seen: list[list[tuple[int, int]]] = [[], []]
    for position in range(400):
        epoch, number = order.sample(position)
        seen[number >= 16].append((epoch, number))
    assert [len(each) for each in seen] == [300, 100] == list(store.samples_of_each(400).values())
    for samples, first, size in ((seen[0], 0, 16), (seen[1], 16, 5)):
        for epoch in range(len(samples) // size):
            each = samples[epoch * size : (epoch + 1) * size]
            assert {number for number, _ in each} == {epoch}
            assert sorted(number for _, number in each) == list(range(first, first + size))
    assert [(epoch, number - 16) for epoch, number in seen[1]] == [own.sample(n) for n in range(100)]
    assert [order.sample(350)] == [store.order(seed=3).sample(350)]  # from anywhere


def test_sources_of_equal_counts_are_shuffled_apart() -> None:
    counts = np.full(4, 25)
    first, second = (SampleOrder(counts, 0, stream=stream) for stream in (0, 1))
    assert [first.sample(n)[1] for n in range(100)] != [second.sample(n)[1] for n in range(100)]


def test_one_source_is_what_data_train_is(folders: list[Path], tokenizer: Tokenizer) -> None:
    plain = DataConfig(train=str(folders[0]), workers=0)
    single = data_of(folders[:1], (0.3,))
    assert opened(plain).fingerprint == opened(single).fingerprint == open_store(folders[0]).fingerprint
    ours, theirs = (batches_of(data, tokenizer) for data in (single, plain))
    assert list(map(contents, ours)) == list(map(contents, theirs))
    run = RunConfig.model_validate(
        {"seed": 7, "train": {"global_batch": 8, "micro_batch": 8}, "model": {"encoder": {"image_size": 16}}}
    ).model_copy(update={"data": plain})
    direct = build_train_loader(run, open_store(folders[0]), build_task("caption", run, tokenizer), 0, 1, 0)
    assert list(map(contents, islice(direct, 3))) == list(map(contents, theirs))
    assert opened(single).samples_of_each(9) == {}


def test_tasks_share_a_batch_and_keys_name_their_source(folders: list[Path], tokenizer: Tokenizer) -> None:
    batches = batches_of(data_of(folders), tokenizer)
    for batch in batches:
        assert Counter(key.split("/")[0] for key in batch.keys) == {"captions": 6, "questions": 2}
        targets = Counter((batch.rows // batch.tokens.shape[-1]).tolist())  # one text per sample
        for b, (key, tokens) in enumerate(zip(batch.keys, batch.tokens, strict=True)):
            said = tokenizer.decode(tokens[0].tolist())
            if key.startswith("captions/train/"):
                assert said.startswith("shard ") and "caption" in said and targets[b] == 7
            else:
                assert key.startswith("questions/train/tiny-000000.tar:q")
                assert said == "shard sample" and targets[b] == 2  # the answer and the end alone
        assert batch.problems == []


@pytest.mark.parametrize(("dp", "micro"), [(2, 4), (4, 1), (2, 1)])
def test_ranks_and_micro_batches_change_nothing(
    folders: list[Path], tokenizer: Tokenizer, dp: int, micro: int
) -> None:
    data, per_step = data_of(folders), 8 // (micro * dp)
    alone = [contents(batch) for batch in batches_of(data, tokenizer)]
    ranks = [batches_of(data, tokenizer, rank, dp, micro=micro) for rank in range(dp)]
    for step in range(3):
        parts = range(step * per_step, (step + 1) * per_step)
        assert [item for part in parts for rank in ranks for item in contents(rank[part])] == alone[step]
    later = batches_of(data, tokenizer, start=8)
    assert list(map(contents, later[:2])) == alone[1:]


def test_a_sample_that_cannot_be_read_is_named_with_its_source(
    folders: list[Path], write_shard: Callable, tokenizer: Tokenizer
) -> None:
    write_shard(folders[1] / "tiny-000000.tar", [("bad", {"jpg": b"x", "json": b"no json"})])
    store = opened(data_of(folders))
    for read in (store.read, store.read_text):
        with pytest.raises(DataError, match=r"^questions/train/tiny-000000\.tar:bad: the json is not valid"):
            read(16)
    assert store.key(16) == "questions/train/tiny-000000.tar:bad" and store.read(15).source == 0
    (folders[1] / "tiny-000000.tar").unlink()
    again = opened(data_of(folders[:1], (1,)))
    assert again.key(15) == "tiny-000002.tar:2-3"
    problems = {problem for batch in batches_of_gone(store, tokenizer) for problem in batch}
    assert problems and all("tiny-000000.tar" in problem for problem in problems)


def batches_of_gone(store: Mixture, tokenizer: Tokenizer) -> list[list[str]]:
    run = RunConfig.model_validate(
        {"train": {"global_batch": 8, "micro_batch": 8}, "model": {"encoder": {"image_size": 16}}}
    )
    run = run.model_copy(update={"data": DataConfig(workers=0)})
    task = PerSourceTask([build_task("caption", run, tokenizer)] * 2)
    loader = build_train_loader(run, store, task, 0, 1, 0, order=store.order(0))
    return [batch.problems for batch in islice(loader, 2)]


def test_a_mixture_is_known_again_by_shares_tasks_and_contents(folders: list[Path]) -> None:
    first = opened(data_of(folders)).fingerprint
    assert opened(data_of(folders, (6, 2))).fingerprint == first  # the same shares
    moved = [shutil.copytree(path, path.parents[1] / "moved" / str(n)) for n, path in enumerate(folders)]
    assert opened(data_of(moved)).fingerprint == first  # elsewhere
    for other in (
        data_of(folders, (2, 1)),
        data_of(folders[:1], (1,)),
        DataConfig(train=str(folders[0])),
        DataConfig.model_validate({"sources": [{"path": str(path)} for path in folders]}),
    ):
        assert "another mixture" in compare_fingerprints(first, opened(other).fingerprint).difference
    swapped = opened(data_of(folders[::-1])).fingerprint
    assert "other shards" in compare_fingerprints(first, swapped).difference
    fill_folder(folders[0], workers=1)
    fill_folder(folders[1], workers=1)
    whole = opened(data_of(folders)).fingerprint
    assert whole != first and compare_fingerprints(first, whole) == ("", "", whole)
    assert compare_fingerprints(whole, first) == ("", "", whole)


def test_names_are_as_long_as_they_must_be() -> None:
    assert short_names(["/data/coco", "/data/vqa"]) == ["coco", "vqa"]
    assert short_names(["/data/coco/train", "vqa/train/"]) == ["coco/train", "vqa/train"]
    assert short_names(["a/b/c", "x/b/c", "c"]) == ["a/b/c", "x/b/c", "c"]
    assert short_names(["data"]) == ["data"]


def test_a_folder_for_two_tasks_is_named_with_them() -> None:
    sources = [
        SourceConfig(path=path, task=task)
        for path, task in (("a/t", "caption"), ("b", "vqa"), ("a/t", "vqa"))
    ]
    assert source_names(sources) == ["t:caption", "b", "t:vqa"]


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["data.sources=[]", "data.train=null"], "data.sources=[]: nothing to train on; name a source"),
        (["data.sources=[{path: a, weight: -1}]", "data.train=null"], "data.sources.0.weight=-1"),
        (["data.sources=[{path: a, weight: 0}]", "data.train=null"], "data.sources.0.weight=0"),
        (["data.sources=[{weight: 1}]", "data.train=null"], "data.sources.0.path"),
        (["data.sources=[{path: a, wieght: 1}]", "data.train=null"], "data.sources.0.wieght=1: unknown key"),
        (
            ["data.sources=[{path: a}, {path: ./a}]", "data.train=null"],
            "data.sources[1]=./a: the same folder and task as data.sources[0]=a: name it once",
        ),
        (
            ["data.sources=[{path: a}, {path: a, task: caption}]", "data.train=null"],
            "data.sources[1]=a: the same folder and task as",
        ),
        (
            ["data.sources=[{path: a, task: captoin}]", "data.train=null"],
            "data.sources[0]=a: data.task='captoin': there is none of that name; did you mean caption?",
        ),
        (
            ["data.sources=[{path: a}, {path: b}]"],
            "data.train=runs/demo-data/train and data.sources=['a', 'b'] are both given: set data.train=null",
        ),
    ],
)
def test_what_cannot_be_a_mixture_is_refused(overrides: list[str], said: str) -> None:
    _, problems = draft_run("demo", overrides)
    assert any(problem.startswith(said) for problem in problems), problems


def test_a_folder_may_serve_two_tasks() -> None:
    _, problems = draft_run("demo", ["data.sources=[{path: a}, {path: a, task: vqa}]", "data.train=null"])
    assert problems == []


def test_a_mixture_comes_back_from_its_yaml(tmp_path: Path) -> None:
    sources = "data.sources=[{path: 2024_01_05, weight: 2}, {path: b, task: vqa}]"
    run, problems = draft_run("demo", ["data.train=null", sources])
    assert problems == [] and [source.weight for source in run.data.sources] == [2, 1]
    assert list(training_sources(run.data)) == ["data.sources[0]=2024_01_05", "data.sources[1]=b"]
    assert [source.task for source in training_sources(run.data).values()] == ["caption", "vqa"]
    (tmp_path / "again.yaml").write_text(run.to_yaml())
    assert draft_run(str(tmp_path / "again.yaml"), []) == (run, [])
    assert DataConfig().train == "data/train"
