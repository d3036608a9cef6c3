"""MSVD, MSVD-QA, MSRVTT-QA and TGIF-QA as they are published, from videos to what a model is asked."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from git_scale.config import RunConfig
from git_scale.data.builders.msvd import read_msvd
from git_scale.data.builders.segments import WHOLE
from git_scale.data.builders.source_images import SourceRow, samples_of
from git_scale.data.builders.tgif_qa import read_tgif_qa
from git_scale.data.builders.video_qa import read_video_qa
from git_scale.data.builders.writer import Skipped, write_shards
from git_scale.data.images import decode
from git_scale.data.loader import build_eval_loader, build_train_loader
from git_scale.data.store import open_store
from git_scale.data.tokenizer import load_tokenizer
from git_scale.errors import DataError
from git_scale.tasks import build_task

av = pytest.importorskip("av")

SIDE, FRAMES = 32, 12


def a_video(darkest: int, format: str = "mp4", codec: str = "libx264") -> bytes:
    """Grey frames whose level is `darkest` and 10 times their number."""
    buffer = io.BytesIO()
    with av.open(buffer, "w", format=format) as container:
        stream = container.add_stream(codec, rate=8)
        stream.width = stream.height = SIDE
        stream.pix_fmt = "yuv420p"
        for number in range(FRAMES):
            pixels = np.full((SIDE, SIDE, 3), darkest + 10 * number, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode(None))
    return buffer.getvalue()


def asked(question: str, number: int, *answers: str) -> dict[str, Any]:
    return {"question": question, "answers": list(answers), "question_id": number}


def written(tmp_path: Path, content: Any, name: str = "questions.json") -> Path:
    path = tmp_path / name
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


MSVD = """# MSR Video Description Corpus
# a comment

-4wsuPCjDBc_5_15 a squirrel is eating a peanut in it's shell
-4wsuPCjDBc_5_15 a chipmunk is eating
zzit5b_-ukg_5_20 a man sings
-7KMZQEsJW4_205_208 a man \u2028 rides
"""


def test_msvds_captions_are_gathered_by_video(tmp_path: Path) -> None:
    """In the order of the names, which is that of youtube_mapping.txt; U+2028 ends no line."""
    assert read_msvd(written(tmp_path, MSVD, "AllVideoDescriptions.txt")) == [
        SourceRow(
            "-4wsuPCjDBc_5_15.avi",
            ("a squirrel is eating a peanut in it's shell", "a chipmunk is eating"),
            {"image_id": "-4wsuPCjDBc_5_15"},
        ),
        SourceRow("-7KMZQEsJW4_205_208.avi", ("a man \u2028 rides",), {"image_id": "-7KMZQEsJW4_205_208"}),
        SourceRow("zzit5b_-ukg_5_20.avi", ("a man sings",), {"image_id": "zzit5b_-ukg_5_20"}),
    ]


def test_msvds_split_is_by_place(tmp_path: Path) -> None:
    """1,200, 100 and 670, as vid1 .. vid1970 are divided: bQJQGoJF7_k_145_153 is vid1200 there, the last of train."""
    names = [f"{letter}{number:03d}_1_9" for letter in "Ba" for number in range(985)]
    path = written(tmp_path, "".join(f"{name} a man\n" for name in reversed(names)))
    parts = {
        part: [row.file for row in read_msvd(path, part) if isinstance(row, SourceRow)]
        for part in ("train", "val", "test")
    }
    assert {part: len(files) for part, files in parts.items()} == {"train": 1200, "val": 100, "test": 670}
    assert (parts["train"][0], parts["train"][-1]) == ("B000_1_9.avi", "a214_1_9.avi")
    assert (parts["val"][0], parts["test"][0], parts["test"][-1]) == (
        "a215_1_9.avi",
        "a315_1_9.avi",
        "a984_1_9.avi",
    )
    assert len(read_msvd(path, "val,test")) == 770
    with pytest.raises(DataError, match=r"no video of --split valid; its splits are test, train, val"):
        read_msvd(path, "valid")
    with pytest.raises(DataError, match=r"--split is by place among 1,970 videos, but there are 1,969"):
        read_msvd(written(tmp_path, "".join(f"{name} a man\n" for name in names[1:])), "train")


@pytest.mark.parametrize(
    "line", ["video0 a man", "-4wsuPCjDBc_5_15", "a_b_c a man", '{"videos": []}', "a.jpg#0\tx"]
)
def test_another_form_of_msvd_is_refused(tmp_path: Path, line: str) -> None:
    with pytest.raises(
        DataError, match=r"line 2: not MSVD's captions; expected VIDEO_START_END and a caption"
    ):
        read_msvd(written(tmp_path, f"# x\n{line}\n"))


def test_two_names_of_one_video_of_msvd_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"the image ids '\./a_1_2' and 'a_1_2' have one file, 'a_1_2\.avi'"):
        read_msvd(written(tmp_path, "a_1_2 a man\n./a_1_2 a dog\n"))


def qa(number: Any, video: Any, question: Any = "what is he doing?", answer: Any = "sing") -> dict[str, Any]:
    return {"answer": answer, "category_id": 14, "id": number, "question": question, "video_id": video}


MAPPING = "-4wsuPCjDBc_5_15 vid1\n-7KMZQEsJW4_205_208 vid2\n"


def test_questions_name_msrvtts_videos_by_number_and_msvds_by_the_mapping(tmp_path: Path) -> None:
    tree = [qa(0, 1), qa(1, 2, "who?", "man"), qa(2, 1, "what color?", None), qa(3, 1, "how many?", "two")]
    path = written(tmp_path, tree)
    of_first = (asked("what is he doing?", 0, "sing"), asked("how many?", 3, "two"))
    of_second = (asked("who?", 1, "man"),)
    lost = [
        Skipped("question_id 2", "answer is not text (null)", "answer"),
        Skipped("question_id 2", "question without an answer", "question"),
    ]
    assert read_video_qa(path) == [
        *lost,
        SourceRow("video1.mp4", (), {"image_id": 1}, of_first),
        SourceRow("video2.mp4", (), {"image_id": 2}, of_second),
    ]
    assert read_video_qa(path, written(tmp_path, MAPPING, "youtube_mapping.txt")) == [
        *lost,
        SourceRow("-4wsuPCjDBc_5_15.avi", (), {"image_id": 1}, of_first),
        SourceRow("-7KMZQEsJW4_205_208.avi", (), {"image_id": 2}, of_second),
    ]


@pytest.mark.parametrize(
    ("tree", "mapping", "message"),
    [
        (
            {"questions": []},
            None,
            r"not MSRVTT-QA or MSVD-QA \(it holds an object of questions, not a list\)",
        ),
        ([{"videoID": "a", "enCap": []}], None, r"questions\[0\] has no id\); expected a list of"),
        ([qa(0, 1), qa(0, 2)], None, r"question_id 0 stands twice, again at questions\[1\]"),
        ([qa(0, 7)], MAPPING, r"no line NAME vid7, a video of .*questions\.json; is it of MSVD-QA\?"),
        (
            [qa(0, 1)],
            MAPPING + "other_1_2 vid1\n",
            r"map\.txt: vid1 is both '-4wsuPCjDBc_5_15' and 'other_1_2'; remove one",
        ),
        ('"x"', None, r"not MSRVTT-QA or MSVD-QA \(it holds a text, not a list\)"),
        ([qa(0, 1)], "a b c\n", r"lines NAME vidN are expected, found 'a b c'"),
    ],
)
def test_other_forms_of_video_questions_are_refused(
    tmp_path: Path, tree: Any, mapping: str | None, message: str
) -> None:
    names = written(tmp_path, mapping, "map.txt") if mapping else None
    with pytest.raises(DataError, match=message):
        read_video_qa(written(tmp_path, tree), names)


TGIF = """gif_name\tquestion\tanswer\ttype\tvid_id\tkey\tdescription
tumblr_a\twhat is put in the "cone ?\tcookie\t0\tFRAMEQA1159\t27138\ta cookie is put in a cone .
tumblr_b\thow many men are there ?\ttwo\t1\tFRAMEQA3809\t81281\ttwo men .
tumblr_a\twhat is the color of the shirt ?\tblack\t2\tFRAMEQA4460\t87751\ta man in a black shirt .
"""


def test_tgifs_frame_questions(tmp_path: Path) -> None:
    """A quote is a character as any other, though the file's name ends with .csv."""
    path = written(tmp_path, TGIF, "Train_frameqa_question.csv")
    of_a = (
        asked('what is put in the "cone ?', 2, "cookie"),
        asked("what is the color of the shirt ?", 4, "black"),
    )
    assert read_tgif_qa(path) == [
        SourceRow("tumblr_a.gif", (), {"image_id": "tumblr_a"}, of_a, segment=WHOLE),
        SourceRow(
            "tumblr_b.gif",
            (),
            {"image_id": "tumblr_b"},
            (asked("how many men are there ?", 3, "two"),),
            segment=WHOLE,
        ),
    ]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            "gif_name\tquestion\ta1\ta2\tanswer\tvid_id\tkey\n",
            r"not TGIF-QA's Frame questions; expected columns",
        ),
        (TGIF.replace("\t", ","), r"not TGIF-QA's Frame questions"),
        ("", r"not TGIF-QA's Frame questions"),
        (
            TGIF + f"tumblr_c\t{'x' * 200_000}\tx\t0\ta\tb\tc\n",
            r"questions\.json, line 5: a cell of more than 131,072 characters",
        ),
        (f"gif_name\t{'x' * 200_000}\n", r"line 1: a cell of more than 131,072 characters"),
        (TGIF + "tumblr_c\twhat ?\n", r"line 5: 2 cells, but the header has 7"),
    ],
)
def test_another_form_of_tgif_is_refused(tmp_path: Path, content: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        read_tgif_qa(written(tmp_path, content))


def test_the_frames_of_a_gif_become_the_sample(tmp_path: Path) -> None:
    pictures = [Image.new("RGB", (SIDE, SIDE), (20 * number,) * 3) for number in range(5)]
    options = {"save_all": True, "append_images": pictures[1:], "duration": 100}
    pictures[0].save(tmp_path / "tumblr_a.gif", **options)
    (tmp_path / "tumblr_b.gif").write_bytes((tmp_path / "tumblr_a.gif").read_bytes()[:20])
    report = write_shards(samples_of(read_tgif_qa(written(tmp_path, TGIF)), tmp_path), tmp_path / "shards")
    assert (report.samples, report.questions, report.skipped.total()) == (1, 2, 1)
    raw = open_store(tmp_path / "shards").read(0)
    found = [np.asarray(decode(frame)).mean() for frame in raw.frames]
    assert found == pytest.approx([0, 20, 40, 60, 80], abs=2)


def test_questions_about_videos_from_files_to_batches(tmp_path: Path, squares: Path) -> None:
    """MSVD-QA's AVIs and questions: shards, then what is learned and asked with six frames of each."""
    for name, darkest in (("-4wsuPCjDBc_5_15", 0), ("-7KMZQEsJW4_205_208", 100)):
        (tmp_path / f"{name}.avi").write_bytes(a_video(darkest, "avi", "mpeg4"))
    mapping = written(tmp_path, MAPPING, "youtube_mapping.txt")
    path = written(tmp_path, [qa(10, 1), qa(11, 2, "who?", "man"), qa(12, 1, "how many?", "two")])
    report = write_shards(samples_of(read_video_qa(path, mapping), tmp_path), tmp_path / "shards")
    assert (report.samples, report.questions, report.answers) == (2, 3, 3)
    assert report.skipped.total() == 0
    store, tokenizer = open_store(tmp_path / "shards"), load_tokenizer(squares / "tokenizer.model")
    run = RunConfig.model_validate(
        {
            "model": {"encoder": {"image_size": 16}, "frames": 6},
            "data": {"workers": 0, "task": "vqa", "texts_per_image": 2, "resize": "pad"},
            "train": {"global_batch": 2, "micro_batch": 2},
        }
    )
    task = build_task("vqa", run, tokenizer)
    (batch,) = build_eval_loader(run, store, task, 0, 1)
    assert batch.problems == [] and batch.images.shape[:2] == (2, 6)
    queries = [
        (query.identity, query.question, query.references) for of_video in batch.queries for query in of_video
    ]
    assert queries == [
        (10, "what is he doing?", ["sing"]),
        (12, "how many?", ["two"]),
        (11, "who?", ["man"]),
    ]
    # the middles of six parts of 12 frames are frames 1, 3, ..., 11
    seen = batch.images.float().mean((2, 3, 4))
    assert seen[0].tolist() == pytest.approx([10, 30, 50, 70, 90, 110], abs=6)
    assert seen[1].tolist() == pytest.approx([110, 130, 150, 170, 190, 210], abs=6)
    learned = next(iter(build_train_loader(run, store, task, 0, 1, 0)))
    answers = sum(len(tokenizer.encode(answer)) + 1 for answer in ("sing", "two", "man"))
    assert learned.num_targets == answers, "each answer and its end, and no word of a question"
