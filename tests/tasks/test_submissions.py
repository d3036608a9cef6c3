"""Files for evaluation servers: written by hand as their pages describe them, and damaged in every way."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest

from git_scale.config import RunConfig
from git_scale.data.builders.writer import SampleToWrite, write_shards
from git_scale.data.store import open_store
from git_scale.data.tokenizer import Tokenizer
from git_scale.errors import ConfigError, DataError
from git_scale.evaluation.evaluator import EvaluationResult
from git_scale.evaluation.results import write_results
from git_scale.metrics.metric import Prediction, Predictions
from git_scale.recipes import adjusted
from git_scale.tasks import SUBMISSIONS, build_task
from git_scale.tasks.submissions import problems_of
from git_scale.testing.taught import write_taught
from git_scale.testing.tiny import draw_square

ROOT = Path(__file__).parents[2]
SPAN = {"vid_name": "friends_s01e03_seg02_clip_19", "ts": [16.48, 33.87]}
# form -> the json of two samples, the identities of what is asked, and the file that a server takes
FORMS: dict[str, tuple[list[dict[str, Any]], list[int | str], str, Any]] = {
    "coco": (
        [{"image_id": 42}, {"image_id": 7}],
        [42, 7],
        "captions_test2014_git_base_results.json",
        [{"image_id": 42, "caption": "a caf\u00e9"}, {"image_id": 7, "caption": 'a "dog"'}],
    ),
    "captions": (
        [{"image_id": 0}, {"image_id": "0a7c"}],
        [0, "0a7c"],
        "submission.json",
        [{"image_id": 0, "caption": "a caf\u00e9"}, {"image_id": "0a7c", "caption": 'a "dog"'}],
    ),
    "vqa": (
        [
            {
                "questions": [
                    {"question": q, "question_id": n} for n, q in ((42001, "what?"), (42000, "how many?"))
                ]
            },
            {"questions": [{"question": "where?", "question_id": "t7"}]},
        ],
        [42001, 42000, "t7"],
        "submission.json",
        [
            {"question_id": 42001, "answer": "a caf\u00e9"},
            {"question_id": 42000, "answer": 'a "dog"'},
            {"question_id": "t7", "answer": "2"},
        ],
    ),
    "vizwiz_vqa": (
        [
            {
                "image_id": f"VizWiz_test_0000000{n}.jpg",
                "questions": [{"question": "what?", "question_id": n}],
            }
            for n in range(2)
        ],
        [0, 1],
        "submission.json",
        [
            {"image": "VizWiz_test_00000000.jpg", "answer": "a caf\u00e9"},
            {"image": "VizWiz_test_00000001.jpg", "answer": 'a "dog"'},
        ],
    ),
    "vatex": (
        [{"image_id": "G9zN5TTuGO4_000179_000189"}, {"image_id": "-x"}],
        ["G9zN5TTuGO4_000179_000189", "-x"],
        "submission.json",
        {"G9zN5TTuGO4_000179_000189": "a caf\u00e9", "-x": 'a "dog"'},
    ),
    "tvc": (
        [{"image_id": 86603, **SPAN}, {"image_id": "x", "clip_id": 86604, **SPAN}],
        [86603, "x"],
        "tvc_test2014_submission.jsonl",
        [
            {**SPAN, "clip_id": 86603, "descs": [{"desc": "a caf\u00e9"}]},
            {**SPAN, "clip_id": 86604, "descs": [{"desc": 'a "dog"'}]},
        ],
    ),
}
ANSWERS = ["a caf\u00e9", 'a "dog"', "2"]


def build(folder: Path, texts: list[dict[str, Any]]) -> Path:
    image = draw_square("red", "big")
    write_shards((SampleToWrite(image, "png", {"captions": ["a"], **text}) for text in texts), folder, 2)
    return folder


def evaluated(name: str, data: Path, answers: list[str]) -> EvaluationResult:
    """As the evaluator leaves it for a run that names the form."""
    form, store = SUBMISSIONS[name], open_store(data)
    overrides = [f"data.heldout={data}", "run_dir=runs/git-base", f"eval.submission={name}"]
    run = adjusted(RunConfig(), [*overrides, f"data.task={form.task}"])
    texts = FORMS[name][0]
    index = [number for number, text in enumerate(texts) for _ in text.get("questions", [0])]
    said = Predictions(
        [
            Prediction(number, store.key(number), identity, "", answer, [])
            for number, identity, answer in zip(index, FORMS[name][1], answers, strict=False)
        ]
    )
    task = build_task(form.task, run, cast(Tokenizer, None))
    rows = [task.result_row(item) for item in said]
    return EvaluationResult({}, said, None, [], rows, ("exact_match",), (), store, run)


def read(path: Path) -> Any:
    text = path.read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()] if path.suffix == ".jsonl" else json.loads(text)


def tool(*arguments: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "tools/evaluate.py", *map(str, arguments)]
    return subprocess.run(
        command, cwd=ROOT, env=os.environ | environment, capture_output=True, text=True, timeout=300
    )


def check(form: str, file: Path, data: Path) -> subprocess.CompletedProcess[str]:
    return tool("check", form, file, "--data", data)


@pytest.mark.parametrize("name", FORMS)
def test_an_evaluation_writes_the_file_as_the_server_describes_it(
    name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    texts, _, file_name, wanted = FORMS[name]
    data = build(tmp_path / "test2014", texts)
    write_results(tmp_path / "out", evaluated(name, data, ANSWERS))
    assert read(tmp_path / "out" / file_name) == wanted
    assert not caplog.messages
    store = open_store(data)
    assert (
        problems_of(SUBMISSIONS[name], tmp_path / "out" / file_name, SUBMISSIONS[name].asked(store, [0, 1]))
        == []
    )


def test_every_form_is_tested() -> None:
    assert set(FORMS) | {"imagenet"} == set(SUBMISSIONS), "of which test_imagenet.py is"


Rows = list[dict[str, Any]]


def damaged(change: Callable[[Rows], Any]) -> Rows:
    rows = [{"image_id": 42, "caption": "a dog"}, {"image_id": 7, "caption": "a cat"}]
    change(rows)
    return rows


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        (damaged(lambda rows: rows.pop()), ["1 x image_id without an answer: 7"]),
        (damaged(lambda rows: rows.append(rows[0])), ["1 x image_id more than once: row 2 (image_id 42)"]),
        (
            damaged(lambda rows: rows.append({"image_id": 8, "caption": "a"})),
            ["1 x image_id of no sample: row 2 (image_id 8)"],
        ),
        (
            damaged(lambda rows: rows[1].update(image_id="7")),
            ['1 x image_id is not a whole number: row 1 (image_id "7")', "1 x image_id without an answer: 7"],
        ),
        (
            damaged(lambda rows: rows[1].update(image_id=7.0)),
            ["1 x image_id is not a whole number: row 1 (image_id 7.0)", "1 x image_id without an answer: 7"],
        ),
        (
            damaged(lambda rows: [row.update(caption=" \u200b") for row in rows]),
            ["2 x empty answer: row 0 (image_id 42)"],
        ),
        (
            damaged(lambda rows: rows[1].update(caption=["a"])),
            ["1 x answer that is no text: row 1 (image_id 7)"],
        ),
        (damaged(lambda rows: None), []),
    ],
)
def test_what_a_server_would_refuse_is_counted_with_an_example(
    rows: Rows, said: list[str], tmp_path: Path
) -> None:
    store = open_store(build(tmp_path / "data", [{"image_id": 42}, {"image_id": 7}]))
    (tmp_path / "a.json").write_text(json.dumps(rows))
    form = SUBMISSIONS["coco"]
    assert problems_of(form, tmp_path / "a.json", form.asked(store, [0, 1])) == said


def test_an_id_of_the_other_kind_is_named_as_such(tmp_path: Path) -> None:
    store = open_store(build(tmp_path / "data", [{"image_id": 42}, {"image_id": "7"}]))
    (tmp_path / "a.json").write_text('[{"image_id": "42", "caption": "a"}, {"image_id": 7, "caption": "a"}]')
    form = SUBMISSIONS["captions"]
    assert problems_of(form, tmp_path / "a.json", form.asked(store, [0, 1])) == [
        '1 x image_id of no sample, where it is a whole number: row 0 (image_id "42")',
        "1 x image_id of no sample, where it is a text: row 1 (image_id 7)",
        "2 x image_id without an answer: 42",
    ]


CLIP = json.dumps({**SPAN, "clip_id": 86603, "descs": [{"desc": "a\u2028b"}]}, ensure_ascii=False)


@pytest.mark.parametrize(
    ("form", "text", "said"),
    [
        ("coco", "{}", "a list of {image_id, caption} is wanted"),
        ("coco", '[{"image_id": 42}]', r"row 0 is .*: \{image_id, caption\} is wanted"),
        ("coco", "[3]", "row 0 is 3"),
        ("coco", "", "it is empty"),
        ("vatex", "[]", "an object {videoID: caption} is wanted"),
        ("vatex", '{"a": "x", "a": "y"}', "'a' stands twice"),
        ("tvc", f'{CLIP}\n{{"clip_id": }}', "line 2: Expecting value at column 13"),
        ("tvc", f"{CLIP}\n[]", "line 2: {vid_name, clip_id"),
        ("tvc", CLIP.replace("16.48", '"16"'), r"line 1: vid_name is to be a text and ts \[begin, end\]"),
        ("tvc", CLIP.replace("16.48", "NaN"), r"line 1: vid_name is to be a text and ts \[begin, end\]"),
        ("tvc", f"{CLIP}\nx", "Expecting value"),
    ],
)
def test_a_file_of_another_form_is_refused(form: str, text: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(text, encoding="utf-8")
    with pytest.raises(DataError, match=said) as caught:
        problems_of(SUBMISSIONS[form], tmp_path / "a.json", {})
    assert str(caught.value).startswith(str(tmp_path / "a.json"))


def test_data_without_the_servers_ids_are_refused_by_name(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store = open_store(build(tmp_path / "a", [{"image_id": 1}, {"image_id": "x"}]))
    with pytest.raises(DataError, match=r'its image_id is "x", and the server knows it by a whole number'):
        SUBMISSIONS["coco"].asked(store, [0, 1])
    with pytest.raises(DataError, match="its videoID is 1, and the server knows it by a text"):
        SUBMISSIONS["vatex"].asked(store, [0])
    twice = open_store(build(tmp_path / "b", [{"image_id": 1}, {"image_id": 1}]))
    with pytest.raises(DataError, match="its image_id 1 is another sample's too"):
        SUBMISSIONS["coco"].asked(twice, [0, 1])


@pytest.mark.parametrize(
    "flaw",
    [
        {"vid_name": None},
        {"ts": None},
        {"ts": [1]},
        {"ts": [2, 1]},
        {"ts": [True, 2]},
        {"ts": [0, float("nan")]},
    ],
)
def test_a_clip_without_its_part_of_a_video_is_refused(
    flaw: dict[str, Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    without = build(tmp_path / "c", [{"image_id": 86603, **SPAN}, {"image_id": 86604, **SPAN, **flaw}])
    with pytest.raises(DataError, match=r"c-000000\.tar:000000001: its vid_name is .* and its ts "):
        SUBMISSIONS["tvc"].asked(open_store(without), [0, 1])
    assert not write_results(tmp_path / "out", evaluated("tvc", without, ANSWERS))
    assert "its vid_name is" in caplog.text
    assert (tmp_path / "out" / "results.json").is_file() and not list((tmp_path / "out").glob("tvc*"))


@pytest.mark.parametrize("name", ["vqa", "vizwiz_vqa"])
def test_an_evaluation_says_what_its_server_would_refuse(
    name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    data = build(tmp_path / "test2014", FORMS[name][0])
    assert not write_results(tmp_path / "out", evaluated(name, data, ["", " ", "x"]))
    assert "submission.json: a server would refuse it: 2 x empty answer" in caplog.text
    assert (tmp_path / "out" / "metrics.json").is_file()


def test_the_tool_keeps_the_results_when_it_ends_with_another_code(tmp_path: Path) -> None:
    """One of two images is asked about, so that the file lacks the other; then a stop comes while Java is awaited."""
    data, out = build(tmp_path / "data", [{"image_id": 1}, {"image_id": 2}]), tmp_path / "out"
    command = ["--checkpoint", write_taught(tmp_path / "taught"), "--data", data, "data.workers=0"]
    part = [*command, "--out", out, "eval.submission=captions", "eval.images=1"]
    done = tool(*part, PATH=path_with_java(tmp_path, ""))
    assert done.returncode == 1, done.stderr
    assert "submission.json: a server would refuse it: 1 x image_id without an answer: 2\n" in done.stderr
    assert "METEOR is left out" in done.stderr
    assert json.loads(done.stdout) == json.loads((out / "metrics.json").read_text())
    files = sorted(path.name for path in out.iterdir())
    assert {"submission.json", "predictions.jsonl", "results.json", "page.html"} <= set(files)

    wrong = tool(*command, "--out", tmp_path / "none", "eval.submission=vatex")
    assert wrong.returncode == 2 and "its videoID is 1, and the server knows it by a text" in wrong.stderr
    assert not (tmp_path / "none").exists()

    java = f"#!/bin/sh\necho $$ > {tmp_path}/pid; kill -TERM $PPID; exec sleep 300\n"
    shutil.rmtree(out)
    done = tool(*part, PATH=path_with_java(tmp_path, java))
    assert done.returncode == 130 and "METEOR: waiting for java" in done.stderr
    assert sorted(path.name for path in out.iterdir()) == files
    assert json.loads(done.stdout) == json.loads((out / "metrics.json").read_text())
    assert not Path("/proc", (tmp_path / "pid").read_text().strip()).exists()


def path_with_java(folder: Path, content: str) -> str:
    """PATH on which this `java` is found first."""
    (folder / "java").write_text(content)
    (folder / "java").chmod(0o755)
    return f"{folder}{os.pathsep}{os.environ['PATH']}"


def test_data_that_ask_nothing_are_no_success(tmp_path: Path) -> None:
    data, file = build(tmp_path / "data", [{"image_id": 42}]), tmp_path / "a.json"
    file.write_text("[]")
    done = check("vqa", file, data)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        f"--data {data}: no sample has a question_id, so that nothing is asked of data.task=vqa: give shards of that"
        " task, or another form\n"
    )


@pytest.mark.parametrize("name", FORMS)
def test_a_byte_order_mark_is_refused_as_by_json_load(name: str, tmp_path: Path) -> None:
    texts, _, file_name, _ = FORMS[name]
    data = build(tmp_path / "test2014", texts)
    write_results(tmp_path / "out", evaluated(name, data, ANSWERS))
    path, asked = tmp_path / "out" / file_name, SUBMISSIONS[name].asked(open_store(data), [0, 1])
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    with path.open(encoding="utf-8") as file, pytest.raises(json.JSONDecodeError):
        json.loads(file.readline())
    with pytest.raises(DataError, match="begins with a byte-order mark"):
        problems_of(SUBMISSIONS[name], path, asked)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"ts": [16.48, 33.88]}, "1 x ts other than the sample's: line 1 (clip_id 86603)"),
        ({"vid_name": "friends"}, "1 x vid_name other than the sample's: line 1 (clip_id 86603)"),
        ({}, None),
    ],
)
def test_a_clip_of_another_part_of_a_video_is_refused(
    change: dict[str, Any], said: str | None, tmp_path: Path
) -> None:
    store = open_store(build(tmp_path / "data", [{"image_id": 86603, **SPAN}]))
    row = {**SPAN, "clip_id": 86603, "descs": [{"desc": "a"}], **change}
    (tmp_path / "a.jsonl").write_text(json.dumps(row))
    form = SUBMISSIONS["tvc"]
    assert problems_of(form, tmp_path / "a.jsonl", form.asked(store, [0])) == ([said] if said else [])


def test_an_id_of_any_length_is_looked_up(tmp_path: Path) -> None:
    store = open_store(build(tmp_path / "data", [{"image_id": 42}]))
    (tmp_path / "a.json").write_text(json.dumps([{"image_id": "4" * 5000, "caption": "a"}]))
    form = SUBMISSIONS["captions"]
    assert problems_of(form, tmp_path / "a.json", form.asked(store, [0])) == [
        f'1 x image_id of no sample: row 0 (image_id "{"4" * 79})',
        "1 x image_id without an answer: 42",
    ]


def test_an_evaluation_of_a_part_says_what_is_missing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    data = build(tmp_path / "test2014", FORMS["vqa"][0])
    write_results(tmp_path / "out", evaluated("vqa", data, ANSWERS[:2]))
    assert '1 x question_id without an answer: "t7"' in caplog.text


def test_the_tool_ends_with_0_or_2(tmp_path: Path) -> None:
    data = build(tmp_path / "data", [{"image_id": 42}, {"image_id": 7}])
    file = tmp_path / "a.json"
    file.write_text('[{"image_id": 42, "caption": "a"}, {"image_id": 7, "caption": "b"}]')
    done = check("coco", file, data)
    assert (done.returncode, done.stdout) == (0, f"{file}: an answer to each of 2\n"), done.stderr
    file.write_text('[{"image_id": 42, "caption": "a"}]')
    done = check("coco", file, data)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"{file}: a server would refuse it\n1 x image_id without an answer: 7\n"


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["eval.submission=cocoo"], "did you mean coco"),
        (["eval.submission=vqa"], r"a file of data\.task=vqa, not caption"),
        (["eval.submission=tvc", "data.task=vqa"], "set eval.submission=null"),
    ],
)
def test_a_form_of_another_task_is_refused(overrides: list[str], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        adjusted(RunConfig(), overrides)
