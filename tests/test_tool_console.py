"""How a tool begins and ends, whatever it prints to."""

from __future__ import annotations

import argparse
import ast
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from git_scale.console import output_file, output_folder, path, positive, share, tool, whole
from git_scale.errors import PeerFailedError, UserError
from git_scale.stop import Stopped
from git_scale.testing.taught import write_taught

ROOT = Path(__file__).parents[1]
TOOLS = sorted((ROOT / "tools").glob("*.py"))

PROGRAM = """
import sys
from git_scale.console import tool
from git_scale.errors import PeerFailedError, UserError

@tool
def main(argv=None):
    {body}

sys.exit(main())
"""


def run_program(body: str, unbuffered: str = "", **streams: object) -> subprocess.CompletedProcess[bytes]:
    buffered = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    environment = {**buffered, "PYTHONPATH": str(ROOT), "PYTHONIOENCODING": "ascii"}
    environment["PYTHONUNBUFFERED"] = unbuffered
    command = [sys.executable, "-c", PROGRAM.format(body=body.replace("\n", "\n    "))]
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **streams}
    return subprocess.run(command, env=environment, timeout=60, **options)  # type: ignore[call-overload]


def closed_pipe() -> int:
    """A file descriptor to write to whose reader has gone."""
    reader, writer = os.pipe()
    os.close(reader)
    return writer


@pytest.mark.parametrize("source", TOOLS, ids=lambda source: source.stem)
def test_every_tool_begins_and_ends_so(source: Path) -> None:
    functions = [node for node in ast.parse(source.read_text()).body if isinstance(node, ast.FunctionDef)]
    (main,) = [function for function in functions if function.name == "main"]
    assert [ast.unparse(decorator).partition("(")[0] for decorator in main.decorator_list] == ["tool"]
    called = {
        ast.unparse(node.func)
        for node in ast.walk(ast.parse(source.read_text()))
        if isinstance(node, ast.Call)
    }
    assert any(re.search("parse_.*args|arguments", name) for name in called), "--help begins no work"
    tries = [node for node in ast.walk(main) if isinstance(node, ast.Try)]
    assert tries == [], "console.tool says what went wrong"
    assert ast.unparse(ast.parse(source.read_text()).body[-1].body[-1]) in (
        "sys.exit(main())",
        "run_and_exit(main)",
    )


HEAVY = ("torch", "torchvision", "timm", "transformers", "deepspeed", "megatron", "webdataset", "sklearn")
ASK_ALL_FOR_HELP = """
import contextlib, importlib, io, json, sys
heavy, *tools = sys.argv[1:]
found = {}
for tool in tools:
    main = importlib.import_module("tools." + tool).main
    with contextlib.redirect_stdout(io.StringIO()) as out:
        try:
            main(["--help"])
        except SystemExit as end:
            loaded = [name for name in heavy.split() if name in sys.modules]
            found[tool] = [end.code, out.getvalue()[:6], loaded]
print(json.dumps(found))
"""


def test_help_waits_for_nothing_heavy() -> None:
    """Of all tools in one process, in turn: the first that is not as it should be is to blame for those behind it."""
    tools = [source.stem for source in TOOLS]
    command = [sys.executable, "-c", ASK_ALL_FOR_HELP, " ".join(HEAVY), *tools]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=True)
    assert json.loads(done.stdout) == {tool: [0, "usage:", []] for tool in tools}


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (UserError("x: no such thing"), 2, "x: no such thing\n"),
        (KeyboardInterrupt(), 130, ""),
        (Stopped(), 130, "stopped before the end: the same command starts again\n"),
        (PeerFailedError(), 1, ""),
        (
            FileNotFoundError(2, "No such file or directory", "a.json"),
            2,
            "a.json: No such file or directory\n",
        ),
        (
            OSError(28, "No space left on device", "a.json"),
            2,
            "a.json: No space left on device; make room there, or write elsewhere\n",
        ),
        (
            OSError(28, "No space left on device"),
            2,
            "No space left on device; make room there, or write elsewhere\n",
        ),
    ],
)
def test_what_a_user_can_mend_is_one_message(
    error: BaseException, code: int, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    @tool
    def main(argv: list[str] | None = None) -> int:
        raise error

    assert main() == code
    assert capsys.readouterr() == ("", message)


@pytest.mark.parametrize(
    "error", [ValueError("a bug"), OSError(5, "of no file"), BrokenPipeError(32, "a socket's")]
)
def test_anything_else_keeps_its_traceback(error: Exception) -> None:
    @tool
    def main(argv: list[str] | None = None) -> int:
        raise error

    with pytest.raises(type(error)):
        main()


def test_one_rank_speaks_for_all(capsys: pytest.CaptureFixture[str]) -> None:
    @tool(speaks=lambda: False)
    def main(argv: list[str] | None = None) -> int:
        raise UserError("said by the first rank")

    assert main() == 2
    assert capsys.readouterr() == ("", "")


def test_a_terminal_that_cannot_show_a_letter_shows_its_escape() -> None:
    done = run_program("print('caf\\xe9 \\u732b \\udce9')\nraise UserError('\\xe9: no such file')")
    assert (done.returncode, done.stdout, done.stderr) == (
        2,
        b"caf\\xe9 \\u732b \\udce9\n",
        b"\\xe9: no such file\n",
    )


@pytest.mark.parametrize(
    ("body", "code"),
    [
        ("for number in range(100_000): print(number)\nreturn 3", 0),  # the reader has what it wanted
        ("print('a line')\nreturn 0", 0),
        ("print('a line')\nreturn 2", 2),  # what went wrong before stays wrong
        ("print('a line')\nraise UserError('nothing there')", 2),
    ],
)
def test_a_reader_of_the_output_that_leaves(body: str, code: int) -> None:
    writer = closed_pipe()
    done = run_program(body, stdout=writer)
    os.close(writer)
    assert done.returncode == code
    assert done.stderr in (b"", b"nothing there\n")


def test_a_reader_of_the_messages_that_leaves_before_the_work_is_done() -> None:
    writer = closed_pipe()
    done = run_program("print('left out', file=sys.stderr)\nreturn 0", stdout=writer, stderr=writer)
    os.close(writer)
    assert done.returncode == 141


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("flushed", ["", "; sys.stdout.flush()"])
def test_output_that_finds_no_room_is_no_success(flushed: str, unbuffered: str) -> None:
    with Path("/dev/full").open("wb") as full:
        done = run_program(f"print('a line'){flushed}\nreturn 0", unbuffered, stdout=full)
    message = b"stdout: No space left on device; make room there, or write elsewhere\n"
    assert (done.returncode, done.stderr) == (2, message)


@pytest.mark.parametrize("numbers", [(1,), (2,), (1, 2), (0, 1, 2)])
def test_a_closed_stream_is_one_that_goes_nowhere(numbers: tuple[int, ...], tmp_path: Path) -> None:
    """`>&-` and `2>&-`: neither does what is printed end the work, nor does it come into a file that is opened."""
    body = (
        f"file = open({str(tmp_path / 'file')!r}, 'w')\nimport os\nos.system('echo of a child; echo x >&2')\n"
    )
    body += (
        "print('out', flush=True)\nprint('err', file=sys.stderr, flush=True)\nfile.write('mine')\nreturn 3"
    )
    done = run_program(body, preexec_fn=lambda: [os.close(number) for number in numbers])
    assert done.returncode == 3
    assert done.stdout == (b"" if 1 in numbers else b"of a child\nout\n")
    assert done.stderr == (b"" if 2 in numbers else b"x\nerr\n")
    assert (tmp_path / "file").read_text() == "mine"


def test_inspect_into_a_pipe_that_closes(tmp_path: Path) -> None:
    write_taught(tmp_path / "model")
    inspect = [
        sys.executable,
        str(ROOT / "tools" / "convert_checkpoint.py"),
        "inspect",
        str(tmp_path / "model"),
    ]
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "PYTHONUNBUFFERED": "1",
    }  # each line fails by itself
    writer = closed_pipe()
    done = subprocess.run(
        inspect, env=environment, stdout=writer, stderr=subprocess.PIPE, text=True, timeout=300
    )
    os.close(writer)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(
    ("kind", "text", "value"),
    [(whole(1), "3", 3), (whole(0), "0", 0), (positive, "0.5", 0.5), (share, "1", 1.0)],
)
def test_numbers_within_their_bounds(kind: Callable[[str], float], text: str, value: float) -> None:
    assert kind(text) == value


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        *((whole(1), text) for text in ("0", "-1", "1.5", "x", "", "inf")),
        (whole(1, 5), "6"),
        (whole(0), "-1"),
        *((positive, text) for text in ("0", "-1", "inf", "nan", "x")),
        *((share, text) for text in ("0", "1.01", "nan", "x")),
    ],
)
def test_numbers_outside_are_no_arguments(kind: Callable[[str], float], text: str) -> None:
    with pytest.raises(Exception, match=r"needed|possible|no whole number|no number|no share"):
        kind(text)


def test_a_path_is_what_it_stands_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.setenv("SCRATCH", "/scratch/me")
    monkeypatch.delenv("NOWHERE", raising=False)
    assert path("~/runs") == Path("/home/me/runs")
    assert path("~") == Path("/home/me")
    assert path("$SCRATCH/runs") == path("${SCRATCH}/runs") == Path("/scratch/me/runs")
    assert path("./~/runs") == Path("~/runs")
    assert path("a~b") == Path("a~b")
    odd = tmp_path / "cost in $NOWHERE"
    odd.write_text("")
    assert path(str(odd)) == odd
    home = tmp_path / "~no_such_user"
    home.write_text("")
    monkeypatch.chdir(tmp_path)
    assert path("~no_such_user") == Path("~no_such_user")
    for text in ("~no_such_user/x", "$NOWHERE/x", "${NOWHERE}/x"):
        with pytest.raises(Exception, match=r"nobody's home|is not set"):
            path(text)


@pytest.mark.parametrize(
    ("text", "remedy"),
    [
        ("s3://bucket/run", "copy it here, or mount it"),
        ("https://example.org/x", "copy it here"),
        ("file:///data/run", "write /data/run"),
        ("file://elsewhere/run", "copy it here"),
    ],
)
def test_an_address_is_no_path(text: str, remedy: str) -> None:
    with pytest.raises(Exception, match=f"an address of .*{remedy}"):
        path(text)


def test_places_that_can_be_written(tmp_path: Path) -> None:
    file, new = tmp_path / "file", tmp_path / "new" / "deep"
    file.write_text("old")
    assert (output_file(str(file)), output_file(str(new))) == (file, new)
    assert (output_folder(str(tmp_path)), output_folder(str(new))) == (tmp_path, new)
    assert [path.name for path in tmp_path.iterdir()] == ["file"] and file.read_text() == "old"


def test_places_that_cannot_be_written(tmp_path: Path) -> None:
    file, pipe = tmp_path / "file", tmp_path / "pipe"
    file.write_text("")
    os.mkfifo(pipe)
    for kind, place, words in (
        (output_file, tmp_path, "is a folder: name a file in it"),
        (output_file, Path(os.devnull), "is a device, "),
        (output_file, pipe, "is a named pipe, "),
        (output_file, file / "x", "cannot be written: .*Not a directory; choose another place"),
        (output_file, Path("/proc/x/y"), "cannot be written: /proc: "),
        (output_folder, file, "is a file: name a folder"),
        (output_folder, file / "x", "cannot be written: .*Not a directory; choose another place"),
        (output_folder, Path("/proc/x"), "cannot be written: /proc: "),
    ):
        with pytest.raises(argparse.ArgumentTypeError, match=f"^{place}: {words}"):
            kind(str(place))


OUTPUTS = {
    "benchmark": "--json",
    "convert_checkpoint": "--json",
    "encoder_sweep": "--markdown",
    "evaluate": "--out",
    "gpu_check": "--results",
    "plan": "--json",
}


@pytest.mark.parametrize("tool", OUTPUTS)
def test_every_output_is_tried_before_the_work(tool: str) -> None:
    source = ast.parse((ROOT / "tools" / f"{tool}.py").read_text())
    kinds = [
        keyword.value.id
        for call in ast.walk(source)
        if isinstance(call, ast.Call) and call.args and ast.unparse(call.args[0]) == f"{OUTPUTS[tool]!r}"
        for keyword in call.keywords
        if keyword.arg == "type" and isinstance(keyword.value, ast.Name)
    ]
    # its comparison writes a page
    assert kinds == (["output_file", "output_folder"] if tool == "evaluate" else ["output_file"])
