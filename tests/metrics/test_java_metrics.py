"""METEOR and SPICE: against pycocoevalcap's own classes, and with a `java` on PATH that does what a bad one would."""

from __future__ import annotations

import json
import logging
import os
import random
import shutil
import stat
import time
from pathlib import Path

import psutil
import pycocoevalcap
import pytest

from git_scale.errors import DataError
from git_scale.metrics import java
from git_scale.metrics.java import JavaError
from git_scale.metrics.meteor import meteor
from git_scale.metrics.metric import Prediction
from git_scale.metrics.scores import score
from git_scale.metrics.spice import JARS, spice
from git_scale.stop import Stopped, StopRequest

WORDS = "a the man dog kid 's red ball riding on in with two cats sitting tables caf\u00e9 near street 3"
RECORDED = 0.1485470120886622
needs_java = pytest.mark.skipif(not shutil.which("java"), reason="Java is not installed")


def pairs(count: int) -> tuple[list[str], list[list[str]]]:
    rng = random.Random(2205)

    def caption() -> str:
        return " ".join(rng.choice(WORDS.split()) for _ in range(rng.randint(3, 12)))

    return [caption() for _ in range(count)], [
        [caption() for _ in range(rng.randint(1, 5))] for _ in range(count)
    ]


def published(generated: list[str], references: list[list[str]]) -> tuple[float, list[float]]:
    from pycocoevalcap.meteor.meteor import Meteor

    truths = dict(enumerate(references))
    return Meteor().compute_score(truths, {number: [text] for number, text in enumerate(generated)})


@needs_java
def test_meteor_is_that_of_pycocoevalcap_also_beside_texts_that_would_stop_the_program(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """RECORDED is what its class gave of the same texts without what divides lines and fields."""
    monkeypatch.setenv("JAVA_TOOL_OPTIONS", "-Dfile.encoding=US-ASCII -Duser.language=tr")
    generated, references = pairs(50)
    odd = {"": "a cat", "a ||| dog\nruns": "a dog\r\nruns", "a cat": "||||", "\ud800": "?"}
    generated, references = [*generated, *odd], [*references, *([text] for text in odd.values())]
    assert meteor(generated, references) == RECORDED


@needs_java
@pytest.mark.proof
def test_meteor_is_that_of_pycocoevalcap_and_no_mean(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(
        "JAVA_TOOL_OPTIONS", "-Dfile.encoding=UTF-8"
    )  # for its class, which takes the locale's
    generated, references = pairs(1000)
    value, of_each = published(generated, references)
    assert meteor(generated, references) == value
    assert abs(sum(of_each) / len(of_each) - value) > 1e-4
    plain = {"": "a cat", "a dog runs": "a dog runs", "a cat": "", "?": "?"}
    generated, references = pairs(50)
    generated, references = [*generated, *plain], [*references, *([text] for text in plain.values())]
    assert published(generated, references)[0] == RECORDED


def fake_java(folder: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    """Puts a shell script in the place of java; others are found as before."""
    program = folder / "java"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")


COUNTS = "for n in 1 2 3 4; do read line; [ $n = 4 ] || echo 3.0; done;"  # and then the scores of three texts
BAD = {
    "exit 1": "ended with code 1",
    "echo broken >&2; exit 3": "ended with code 3: broken",
    "while read line; do echo 1.0 nonsense; done": "nonsense",
    "while read line; do echo; done": "no numbers",
    "while read line; do echo nan; done": "no numbers",
    "read line; echo 1.0 1.0": "java failed",
    f"{COUNTS} echo 7.5": r"its score '7\.5' is not within 0 and 1",
    f"{COUNTS} echo -0.1": "its score '-0.1' is not within 0 and 1",
    f"{COUNTS} echo 0.5; echo 0.5; echo 0.5; echo 1.01": r"its score '1\.01' is not",
    "kill -9 $$": "java failed",
    "printf 1.0": "java failed",
}


@pytest.mark.parametrize("script", BAD)
def test_a_program_that_fails_is_an_error_with_its_reason(
    script: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_java(tmp_path, monkeypatch, script)
    with pytest.raises(JavaError, match=BAD[script]):
        meteor(*pairs(3), seconds=30)


@pytest.mark.parametrize("script", ["sleep 300", "while true; do read line; sleep 300; done"])
def test_a_program_that_hangs_is_killed_with_what_it_started(
    script: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_java(tmp_path, monkeypatch, f"echo $$ > {tmp_path}/pid; {script}")
    begin = time.monotonic()
    with pytest.raises(JavaError, match=r"had not answered after 0\.3 s"):
        meteor(*pairs(3), seconds=0.3)
    assert time.monotonic() - begin < 60
    assert alive(int((tmp_path / "pid").read_text())) == []


ELSEWHERE = "sh -c 'echo $$ > {folder}/pid; exec sleep 300'"


@pytest.mark.skipif(not shutil.which("setsid"), reason="util-linux is not installed")
@pytest.mark.parametrize(
    ("script", "message"),
    [
        (f"setsid -w {ELSEWHERE}", r"had not answered after 0\.5 s"),
        (
            f"setsid {ELSEWHERE} > /dev/null & while [ ! -s {{folder}}/pid ]; do sleep 0.01; done; exit 3",
            "ended with code 3",
        ),
    ],
    ids=["the wrapper waits", "the wrapper has ended"],
)
def test_a_program_in_a_session_of_its_own_is_killed_too(
    script: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first hung for as long as the program liked, deaf to a stop as well; the second left it running."""
    fake_java(tmp_path, monkeypatch, script.format(folder=tmp_path))
    begin = time.monotonic()
    with pytest.raises(JavaError, match=message):
        meteor(*pairs(1), seconds=0.5 if "-w" in script else 60)
    assert time.monotonic() - begin < 60
    assert alive(int((tmp_path / "pid").read_text())) == []


def alive(group: int) -> list[psutil.Process]:
    """The processes of a group that do not end: a signal has been sent, and takes its time."""
    found = [process for process in psutil.process_iter() if is_in(process.pid, group)]
    _, left = psutil.wait_procs(found, timeout=30)
    return [process for process in left if process.status() != psutil.STATUS_ZOMBIE]


def is_in(process: int, group: int) -> bool:
    try:
        return os.getpgid(process) == group
    except ProcessLookupError:
        return False


@pytest.mark.parametrize("name", ["METEOR", "SPICE"])
def test_a_stop_is_heard_while_a_program_is_awaited(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The signal comes from the program itself, when it is surely awaited."""
    if name == "SPICE":
        spice_models(tmp_path, monkeypatch)
    fake_java(tmp_path, monkeypatch, f"echo $$ > {tmp_path}/pid; kill -TERM {os.getpid()}; exec sleep 300")
    caplog.set_level(logging.INFO)
    with StopRequest(), pytest.raises(Stopped):
        score([name.lower()], [Prediction(0, "a", 1, "", "a dog", ["a dog"])])
    assert alive(int((tmp_path / "pid").read_text())) == []
    assert [text.split(":")[0] for text in caplog.messages] == [name]
    assert "waiting for java" in caplog.text and "left out" not in caplog.text


def test_a_program_of_another_machine_is_left_out_with_its_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    spice_models(tmp_path, monkeypatch)
    (tmp_path / "meteor").mkdir()
    (tmp_path / "meteor" / "meteor-1.5.jar").touch()
    fake_java(tmp_path, monkeypatch, "")
    (tmp_path / "java").write_bytes(b"\x7fELFgarbage")
    found = score(["meteor", "spice"], [Prediction(0, "a", 1, "", "a dog", ["a dog"])])
    assert found == {"images": 1.0, "texts": 1.0}
    assert caplog.messages == [
        f"{name} is left out: {tmp_path / 'java'} cannot be started: Exec format error"
        for name in ("METEOR", "SPICE")
    ]


def test_a_program_that_stays_is_killed_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(java, "_SECONDS_TO_END", 0.2)
    script = (
        "n=0; while [ $n -lt 4 ]; do read line; echo 0.5; n=$((n+1)); done; echo 0.5; echo 0.5; echo 0.25"
    )
    fake_java(tmp_path, monkeypatch, f"{script}; exec sleep 300")
    assert meteor(*pairs(3), seconds=30) == 0.25


def test_where_there_is_no_java_both_are_left_out_with_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    said = [Prediction(0, "a", 1, "", "a dog", ["a dog"]), Prediction(1, "b", 2, "", "a cat", ["a dog"])]
    with caplog.at_level(logging.WARNING):
        found = score(["exact_match", "meteor", "spice"], said)
    assert found == {"exact_match": 0.5, "images": 2.0, "texts": 2.0}
    assert caplog.messages == [
        f"{name} is left out: there is no java on PATH" for name in ("METEOR", "SPICE")
    ]


def spice_models(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in JARS:
        (folder / "spice" / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / "spice" / name).touch()
    monkeypatch.setattr(pycocoevalcap, "__path__", [str(folder)])


def answering(tmp_path: Path, scores: object) -> str:
    """A java that keeps what it is asked and writes these scores where it is told to."""
    (tmp_path / "answer").write_text(json.dumps(scores))
    last = (
        'for word; do if [ "$before" = -out ]; then out="$word"; fi; case "$word" in *texts.json) cp "$word"'
    )
    return f'{last} {tmp_path}/asked;; esac; before="$word"; done; cp {tmp_path}/answer "$out"'


def test_spice_is_asked_and_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spice_models(tmp_path, monkeypatch)
    scores = [{"image_id": number, "scores": {"All": {"f": value}}} for number, value in ((1, 0.25), (0, 1))]
    fake_java(tmp_path, monkeypatch, answering(tmp_path, scores))
    assert spice(["a dog", "a cat"], [["a dog"], ["two\ncats", "x"]]) == [1.0, 0.25]
    assert json.loads((tmp_path / "asked").read_text()) == [
        {"image_id": 0, "test": "a dog", "refs": ["a dog"]},
        {"image_id": 1, "test": "a cat", "refs": ["two\ncats", "x"]},
    ]


@pytest.mark.parametrize(
    "scores", [[], {}, [{"image_id": 0}], [{"image_id": 0, "scores": {"All": {"f": 2}}}], 3]
)
def test_other_scores_of_spice_are_an_error(
    scores: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spice_models(tmp_path, monkeypatch)
    fake_java(tmp_path, monkeypatch, answering(tmp_path, scores))
    with pytest.raises(JavaError, match="its scores"):
        spice(["a dog"], [["a dog"]])


def test_spice_without_its_parser_names_what_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spice_models(tmp_path, monkeypatch)
    fake_java(tmp_path, monkeypatch, "exit 0")
    (tmp_path / "spice" / JARS[2]).unlink()
    with pytest.raises(JavaError, match=r"stanford-corenlp-3\.6\.0-models\.jar is not there"):
        spice(["a dog"], [["a dog"]])
    with pytest.raises(DataError, match="has no reference"):
        spice(["a dog"], [[]])
