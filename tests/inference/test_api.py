"""The Python API on models that have learned to speak of coloured squares."""

from __future__ import annotations

import doctest
import io
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

import git_scale
from git_scale import ImageToText
from git_scale.data.clips import Clip
from git_scale.data.images import decode, normalise
from git_scale.errors import CheckpointError, ConfigError, DataError, UserError
from git_scale.inference import api
from git_scale.inference.grouping import run_batched
from git_scale.inference.predictor import Predictor
from git_scale.testing.taught import write_taught
from git_scale.testing.tiny import COLOUR, COLOURS, SIDES, SIZE, describe, draw_square

SQUARES = [(colour, side) for colour in COLOURS for side in SIDES]
CAPTIONS = [describe(*square) for square in SQUARES]


@pytest.fixture(scope="module", params=["joint", "cross"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_taught(tmp_path_factory.mktemp("taught") / "runs" / "demo", attention=request.param)


@pytest.fixture(scope="module")
def video_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_taught(tmp_path_factory.mktemp("taught") / "clips", frames=3)


@pytest.fixture
def model(folder: Path) -> ImageToText:
    return git_scale.load(folder, device="cpu")


@pytest.fixture
def video_model(video_folder: Path) -> ImageToText:
    return git_scale.load(video_folder, device="cpu")


@pytest.fixture(scope="module")
def squares() -> list[Image.Image]:
    return [decode(draw_square(*square)) for square in SQUARES]


def picture(colour: str, side: str) -> Image.Image:
    return decode(draw_square(colour, side))


def adapted(model: ImageToText, batch_size: int = 16, **data: object) -> ImageToText:
    """The same model with another recipe for its data."""
    old = model.predictor
    run = old.run.model_copy(update={"data": old.run.data.model_copy(update=data)})
    return ImageToText(Predictor(old.model, old.tokenizer, run, old.device, old.dtype, batch_size))


def test_captions_are_those_it_has_learned(model: ImageToText, squares: list[Image.Image]) -> None:
    assert model.caption(squares) == CAPTIONS
    assert model.caption(squares[::-1], beams=1) == CAPTIONS[::-1]
    assert model.caption([]) == []


def test_one_image_of_every_kind(model: ImageToText, tmp_path: Path) -> None:
    data = draw_square("green", "small")
    path = tmp_path / "green.png"
    path.write_bytes(data)
    pixels = np.asarray(decode(data))
    tensor = torch.from_numpy(pixels.copy()).permute(2, 0, 1)
    kinds = [data, path, str(path), Image.open(path), decode(data), pixels, tensor, model.prepare(path)]
    assert model.caption(kinds) == ["a small green square"] * len(kinds)
    for kind in kinds:
        assert model.caption(kind) == ["a small green square"]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (7, "a int is no image"),
        (None, "a NoneType is no image"),
        (np.zeros((8, 8, 3)), r"an array of float64 \[8, 8, 3\] is no image: uint8 \[H, W, 3\] is"),
        (np.zeros((8, 8), np.uint8), r"an array of uint8 \[8, 8\]"),
        (torch.zeros(8, 8, 3, dtype=torch.uint8), r"a tensor of torch.uint8 \[8, 8, 3\].*\[3, H, W\]"),
        (torch.zeros(3, 8, 8), r"a tensor of torch.float32"),
        (b"rubbish", "cannot be decoded"),
        ("none.png", "none.png: No such file"),
        ([Image.new("RGB", (8, 8))], "takes one image at a time"),
        ("clip.mp4", "takes one image at a time"),
    ],
)
def test_what_is_no_image_is_refused_by_its_number(model: ImageToText, wrong: object, message: str) -> None:
    with pytest.raises(DataError, match=f"^image 1: .*{message}"):
        model.caption([picture("red", "big"), wrong])  # type: ignore[list-item]


def test_beams_and_batches_change_nothing(model: ImageToText, squares: list[Image.Image]) -> None:
    rng = np.random.default_rng(0)
    noise = [Image.fromarray(rng.integers(0, 256, (32, 32, 3), np.uint8)) for _ in range(5)]
    pictures = [*noise, *squares[:4]]
    alone = [model.candidates(item, count=3)[0] for item in pictures]
    for batch_size in (1, 4, 16):
        together = adapted(model, batch_size).candidates(pictures, count=3)
        for one, other in zip(alone, together, strict=True):
            assert [item.text for item in one] == [item.text for item in other]
            assert [item.score for item in one] == pytest.approx([item.score for item in other], abs=1e-4)
    assert len({found[0].text for found in alone}) >= 4


def test_candidates_are_distinct_and_in_order(model: ImageToText) -> None:
    (found,) = model.candidates(picture("red", "big"), count=4)
    assert len({item.text for item in found}) == 4
    assert found[0].text == "a big red square"
    assert [item.score for item in found] == sorted((item.score for item in found), reverse=True)


def test_a_prefix_begins_the_caption(model: ImageToText) -> None:
    assert model.caption(picture("red", "big"), prefix="a big") == ["a big red square"]
    (found,) = model.caption(picture("red", "big"), prefix="a tiny")
    assert found.startswith("a tiny")


def test_length_and_its_default(model: ImageToText) -> None:
    (short,) = model.caption(picture("red", "big"), max_new_tokens=2, beams=1)
    assert len(model.predictor.tokenizer.encode(short)) <= 2 and "a big red square".startswith(short)
    with pytest.raises(ConfigError, match="positions"):
        model.caption(picture("red", "big"), max_new_tokens=500)


@pytest.mark.parametrize("name", ["beams", "max_new_tokens"])
@pytest.mark.parametrize("number", [0, -1, 1.5])
def test_numbers_that_are_no_search(model: ImageToText, name: str, number: float) -> None:
    image = picture("red", "big")
    for ask in (
        lambda: model.caption(image, **{name: number}),
        lambda: model.candidates(image, count=1, **{name: number}),
        lambda: model.answer(image, "what colour?", **{name: number}),
    ):
        with pytest.raises(ConfigError, match=f"{name}={number}"):
            ask()
    with pytest.raises(ConfigError, match="max_new_tokens=0"):
        model.sample(image, max_new_tokens=0)
    with pytest.raises(ConfigError, match="n_best=8 exceeds beams=4: set beams=8"):
        model.candidates(image, count=8)


def test_samples(model: ImageToText) -> None:
    pictures = [picture("red", "big"), picture("blue", "tiny")]
    hot = model.sample(pictures, count=6, temperature=5.0, seed=1)
    assert [len(texts) for texts in hot] == [6, 6] and len(set(hot[0])) > 1
    assert hot == model.sample(pictures, count=6, temperature=5.0, seed=1)
    assert hot != model.sample(pictures, count=6, temperature=5.0, seed=2)
    assert hot[1] == model.sample(pictures[1], count=6, temperature=5.0, seed=1)[0], "whoever is beside it"
    assert model.sample(pictures, temperature=5.0, top_k=1) == [["a big red square"], ["a tiny blue square"]]


def test_answers_have_the_shape_of_the_questions(model: ImageToText) -> None:
    red, blue = picture("red", "big"), picture("blue", "tiny")
    assert model.answer([red, blue], COLOUR) == ["red", "blue"]
    assert model.answer([red, blue], [COLOUR, SIZE]) == ["red", "tiny"]
    assert model.answer([red, blue], [[COLOUR, SIZE, COLOUR], [SIZE]]) == [["red", "big", "red"], ["tiny"]]
    assert model.answer(red, [[SIZE]]) == [["big"]]


def test_every_square_answers(model: ImageToText, squares: list[Image.Image]) -> None:
    ragged = [[COLOUR, SIZE][: 1 + number % 2] for number in range(12)]
    expected = [list(square)[: len(row)] for square, row in zip(SQUARES, ragged, strict=True)]
    for batch_size in (1, 5, 16):
        assert adapted(model, batch_size).answer(squares, ragged) == expected


@pytest.mark.parametrize(
    ("questions", "message"),
    [
        ([COLOUR, SIZE, SIZE], "3 questions for 2 images"),
        ([[COLOUR], []], "at least one"),
        ([[COLOUR], SIZE], "either one text"),
        ([COLOUR, " "], "without words"),
    ],
)
def test_wrong_questions(model: ImageToText, questions: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        model.answer([picture("red", "big"), picture("blue", "tiny")], questions)


def test_the_last_of_a_long_questions_first_tokens_count(
    model: ImageToText, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def listen(images: list[object], prefixes: list[list[list[int]]], *more: object) -> list[object]:
        asked.extend(prefixes)
        return []

    monkeypatch.setattr(model.predictor, "generate", listen)
    question = "a big red square " * 10 + COLOUR
    model.answer(picture("red", "big"), question)
    tokens = model.predictor.tokenizer.encode(question)
    first = tokens[:24]  # data.max_text_tokens, as GIT's tokenizer cuts
    assert asked == [[[model.predictor.tokenizer.bos_id, *first[-22:]]]], "24 tokens with begin and end"


def by_hand(model: ImageToText, image: Image.Image, given: list[int], text: list[int]) -> float:
    """Token after token, without a batch, a cache or shared passes."""
    network, end = model.predictor.model, model.predictor.tokenizer.eos_id
    pixels = normalise(torch.from_numpy(model.prepare(image).pixels)[None], torch.float32)
    total = 0.0
    for at, token in enumerate([*text, end]):
        tokens = torch.tensor([[given + text[:at]]])
        logits: Tensor = network(pixels, tokens, torch.tensor([tokens.numel() - 1]))
        total += float(F.log_softmax(logits[0].double(), -1)[token])
    return total


def test_scores_are_sums_of_log_probabilities(model: ImageToText) -> None:
    tokenizer = model.predictor.tokenizer
    red, blue = picture("red", "big"), picture("blue", "tiny")
    texts = [["a big red square", "red", "a tiny red"], ["a tiny blue square"]]
    expected = [
        [by_hand(model, image, [tokenizer.bos_id], tokenizer.encode(text)) for text in row]
        for image, row in zip([red, blue], texts, strict=True)
    ]
    found = model.score([red, blue], texts)
    assert [len(row) for row in found] == [3, 1]
    np.testing.assert_allclose([*found[0], *found[1]], [*expected[0], *expected[1]], atol=1e-4)
    assert model.score(red, "red") == pytest.approx([found[0][1]], abs=1e-4)
    asked = [tokenizer.bos_id, *tokenizer.encode(COLOUR)]
    answer = by_hand(model, red, asked, tokenizer.encode("red"))
    assert model.score(red, "red", question=COLOUR) == pytest.approx([answer], abs=1e-4)
    assert answer > found[0][1] + 1, "as an answer it is likely, as a caption it is not"


def test_many_texts_about_one_image(model: ImageToText) -> None:
    texts = [CAPTIONS[number % 12] for number in range(150)]  # three passes of at most 64
    (found,) = model.score(picture("red", "big"), [texts])
    assert len(found) == 150
    assert found[:12] == pytest.approx(found[144:] + found[6:12], abs=1e-4)
    assert int(np.argmax(found[:12])) == CAPTIONS.index("a big red square")
    with pytest.raises(UserError, match="a text of 91 tokens"):
        model.score(picture("red", "big"), "a big " * 30)


def test_classify_scores_few_names(model: ImageToText, squares: list[Image.Image]) -> None:
    found = model.classify(squares, CAPTIONS, top=3)
    assert [row[0].text for row in found] == CAPTIONS
    scores = model.score(squares[0], [CAPTIONS])[0]
    assert [item.score for item in found[0]] == pytest.approx(sorted(scores, reverse=True)[:3], abs=1e-4)
    assert [row[0].text for row in model.classify(squares, list(COLOURS), question=COLOUR)] == [
        colour for colour, _ in SQUARES
    ]


def test_classify_searches_many_names(model: ImageToText, squares: list[Image.Image]) -> None:
    words = ["a", "big", "red", "square", "tiny", "blue", "how", "colour", "small", "green"]
    rng = np.random.default_rng(0)
    names = [*CAPTIONS, *{" ".join(rng.choice(words, rng.integers(2, 5))) for _ in range(3000)}]
    assert len(names) > 1500
    found = model.classify(squares, names, top=2)
    assert [row[0].text for row in found] == CAPTIONS
    scores = model.score(squares[:3], [names] * 3)
    for row, exhaustive in zip(found, scores, strict=False):
        assert row[0].score == pytest.approx(max(exhaustive), abs=1e-3)
    noise = Image.fromarray(np.random.default_rng(1).integers(0, 256, (32, 32, 3), np.uint8))
    assert model.classify(noise, names)[0][0].text in names, "nothing else can come out"


def test_names_that_cannot_be_told_apart_count_once(model: ImageToText) -> None:
    (found,) = model.classify(picture("red", "big"), ["red", " red", "blue"], top=2, question=COLOUR)
    assert [item.text for item in found] == ["red", "blue"]
    with pytest.raises(UserError, match="top=3: of 2 different names"):
        model.classify(picture("red", "big"), ["red", " red", "blue"], top=3)


def test_a_clip_gives_equally_spaced_frames(video_model: ImageToText) -> None:
    frames = [Image.new("RGB", (32, 32), (number, 0, 0)) for number in range(9)]
    assert video_model.prepare(frames).pixels[:, 0, 0, 0].tolist() == [1, 4, 7]
    assert video_model.prepare(frames[:2]).pixels[:, 0, 0, 0].tolist() == [0, 1, 1]
    assert video_model.prepare(frames[0]).pixels.shape == (1, 3, 32, 32)
    with pytest.raises(DataError, match="image 0: a clip without frames"):
        video_model.caption([[]])
    with pytest.raises(DataError, match="differ in size"):
        video_model.prepare([frames[0], Image.new("RGB", (8, 8))])


def test_clips_videos_and_images_beside_each_other(video_model: ImageToText, tmp_path: Path) -> None:
    av = pytest.importorskip("av")
    path = tmp_path / "red.mp4"
    red, blue = picture("red", "big"), picture("blue", "tiny")
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=5)
        stream.width, stream.height, stream.pix_fmt = 32, 32, "yuv420p"
        stream.bit_rate = 10_000_000
        for _ in range(4):
            container.mux(stream.encode(av.VideoFrame.from_image(red)))
        container.mux(stream.encode(None))
    together = video_model.caption([path, [blue] * 4, blue, [red, red]])
    assert together[0] == together[3] == "a big red square" and together[1] == "a tiny blue square"
    assert together[2] == video_model.caption(blue)[0], "an image is one frame"


def test_images_of_many_shapes_keep_their_order(model: ImageToText) -> None:
    fitting = adapted(model, resize="fit", max_side=48)
    sides = [(32, 32), (48, 32), (64, 64), (32, 48), (96, 64), (33, 32)]
    pictures = [Image.new("RGB", size, (10 * number, 9, 9)) for number, size in enumerate(sides)]
    shapes = [fitting.prepare(item).pixels.shape[2:] for item in pictures]
    assert shapes == [(32, 32), (32, 48), (32, 32), (48, 32), (32, 48), (32, 33)]
    seen: list[tuple[int, ...]] = []

    def work(clips: list[Clip], queries: list[list[int]]) -> list[list[int]]:
        seen.append((len(clips), *clips[0].pixels.shape))
        reds = [int(clip.pixels[0, 0, 0, 0]) for clip in clips]
        return [[red + query for query in row] for red, row in zip(reds, queries, strict=True)]

    found = run_batched(lambda number: fitting.prepare(pictures[number]), [[1, 2]] * 6, 16, 64, work)
    assert found == [[10 * number + 1, 10 * number + 2] for number in range(6)]
    assert sorted(count for count, *_ in seen) == [1, 1, 2, 2]


def test_half_precision_says_the_same(folder: Path, squares: list[Image.Image]) -> None:
    model = git_scale.load(folder, device="cpu", dtype=torch.bfloat16)
    assert next(model.predictor.model.parameters()).dtype == torch.bfloat16
    assert model.caption(squares) == CAPTIONS


def test_the_tokenizer_must_fit(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from dataclasses import replace

    from git_scale.data.train_tokenizer import train_sentencepiece
    from git_scale.inference import predictor

    train_sentencepiece(["a b c d e f g"] * 9, tmp_path / "other.model", 12)
    with pytest.raises(CheckpointError, match=r"12 pieces, but the word table .* 34 rows"):
        git_scale.load(folder, tokenizer=tmp_path / "other.model")
    opened = predictor.open_checkpoint(folder)
    monkeypatch.setattr(predictor, "open_checkpoint", lambda *_: replace(opened, tokenizer=None))
    with pytest.raises(CheckpointError, match=r"no tokenizer beside it.*--tokenizer FILE"):
        git_scale.load(folder)
    model = git_scale.load(folder, tokenizer=folder / "tokenizer.model")
    assert model.caption(picture("red", "big")) == ["a big red square"]


def test_what_cannot_be_loaded(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError):
        git_scale.load(tmp_path)
    if not torch.cuda.is_available():
        with pytest.raises(UserError, match="no GPU here"):
            git_scale.load(folder, device="cuda")


def test_importing_the_package_imports_no_torch() -> None:
    code = "import sys, git_scale; assert 'torch' not in sys.modules; git_scale.load; assert 'torch' in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(git_scale.__file__).parents[1])
    with pytest.raises(AttributeError, match="no attribute 'save'"):
        git_scale.save  # type: ignore[attr-defined]  # noqa: B018


EXAMPLES = [test for test in doctest.DocTestFinder(recurse=True).find(api, "api") if test.examples]


@pytest.mark.parametrize("example", EXAMPLES, ids=[test.name for test in EXAMPLES])
def test_the_examples_in_the_docstrings(
    example: doctest.DocTest,
    model: ImageToText,
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "photo.png").write_bytes(draw_square("red", "big"))
    (tmp_path / "other.png").write_bytes(draw_square("blue", "tiny"))
    (tmp_path / "runs").symlink_to(folder.parent)
    monkeypatch.chdir(tmp_path)
    example.globs = {"git_scale": git_scale, "model": model}
    report = io.StringIO()
    failed = doctest.DocTestRunner().run(example, out=report.write, clear_globs=False).failed
    assert not failed, report.getvalue()


def test_every_public_method_has_an_example() -> None:
    methods = {name for name in vars(ImageToText) if not name.startswith("_")} | {"load"}
    assert methods == {test.name.split(".")[-1] for test in EXAMPLES}
