"""The picture in docs/design.md, held against the package: who may import whom, and how long things are."""

from __future__ import annotations

import ast
import math
import re
import textwrap
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import git_scale
from git_scale.tasks import TASKS

PACKAGE = Path(git_scale.__file__).parent
FILES = sorted(PACKAGE.rglob("*.py"))

BASE = {"config", "section", "errors", "files", "formatting", "paths", "progress", "stop", "text_files"}
BELOW_PARALLEL = BASE | {"models", "data", "metrics", "tasks", "checkpoint", "monitoring", "precision"}
# room -> rooms of the package that it may import, beside itself
MAY_IMPORT = {
    "errors": set(),
    "exit": {"processes", "stop"},
    "files": set(),
    "formatting": set(),
    "own_commands": {"checkpoint", "errors"},
    "paths": set(),
    "processes": {"stop"},
    "progress": set(),
    "stop": set(),
    "text_files": {"paths"},
    "console": {"errors", "paths", "stop"},
    "registry": {"errors"},
    "upgrades": {"errors"},
    "metrics": {"errors", "registry", "stop"},
    "tasks": BASE | {"data", "metrics", "registry"},
    "objectives": BASE | {"data", "models", "registry", "tasks"},
    "precision": set(),
    "section": {"paths"},
    "config": {"errors", "section", "upgrades"},
    "yaml_tree": set(),
    "contradictions": {"config", "objectives", "schedules", "section", "tasks"},
    "schedules": {"config", "registry"},
    "recipe_files": {"config", "errors", "paths", "registry", "text_files", "upgrades", "yaml_tree"},
    "recipes": {
        "config",
        "contradictions",
        "errors",
        "paths",
        "recipe_files",
        "registry",
        "upgrades",
        "yaml_tree",
    },
    "models": {"config", "errors"},
    "data": BASE | {"registry"},
    "monitoring": BASE | {"precision"},
    "checkpoint": BASE | {"models", "data", "tasks", "upgrades"},
    "inference": BASE | {"models", "data", "checkpoint", "tasks"},
    "parallel": BELOW_PARALLEL,
    "planning": BELOW_PARALLEL | {"objectives", "parallel"},
    "evaluation": BELOW_PARALLEL | {"inference", "objectives", "parallel", "recipes"},
    "studies": {
        "checkpoint",
        "config",
        "data",
        "errors",
        "files",
        "monitoring",
        "objectives",
        "planning",
        "recipes",
        "registry",
        "section",
        "tasks",
        "text_files",
        "training",
        "yaml_tree",
    },
    "training": BELOW_PARALLEL
    | {
        "objectives",
        "parallel",
        "planning",
        "evaluation",
        "recipes",
        "console",
        "exit",
        "processes",
        "schedules",
        "upgrades",
    },
    "testing": BELOW_PARALLEL | {"objectives", "parallel", "evaluation", "training", "processes"},
}
# outside package -> what alone may import it, and in how many files at most
RESERVED = {
    "deepspeed": ("parallel/", 2),
    "megatron": ("parallel/", 2),
    "transformers": ("checkpoint/", 99),
}


def imports_of(source: str) -> Iterator[str]:
    """Dotted names of everything that a source imports, at its top or inside functions."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{'.' * node.level}{node.module or ''}.{alias.name}" for alias in node.names)


def room_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def strays(room: str, source: str) -> set[str]:
    """Imports that the picture does not allow to a file of `room`."""
    allowed = MAY_IMPORT[room] | {room}
    found = set()
    for name in imports_of(source):
        top, _, rest = name.partition(".")
        if top in ("", "tests", "tools", "benchmarks") or (
            top == "git_scale" and rest.split(".")[0] not in allowed
        ):
            found.add(name)
    return found


def long_functions(source: str, most: int) -> set[str]:
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef)
    functions = (node for node in ast.walk(ast.parse(source)) if isinstance(node, kinds))
    return {f.name for f in functions if f.end_lineno - f.lineno + 1 > most}


def prints(source: str) -> list[int]:
    calls = (node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call))
    return [call.lineno for call in calls if isinstance(call.func, ast.Name) and call.func.id == "print"]


def files_importing(package: str) -> list[str]:
    return [
        path.relative_to(PACKAGE).as_posix()
        for path in FILES
        if any(name.split(".")[0] == package for name in imports_of(path.read_text(encoding="utf-8")))
    ]


def code_of(path: Path) -> str:
    """Without comments."""
    return ast.unparse(ast.parse(path.read_text(encoding="utf-8")))


def named(path: Path) -> str:
    return path.relative_to(PACKAGE).as_posix()


def test_the_picture_has_no_circle_and_no_room_is_missing_from_it() -> None:
    list(TopologicalSorter(MAY_IMPORT).static_order())  # raises CycleError
    assert {room_of(path) for path in FILES} - {"__init__"} <= MAY_IMPORT.keys()


@pytest.mark.parametrize("path", [path for path in FILES if room_of(path) != "__init__"], ids=named)
def test_imports_run_one_way(path: Path) -> None:
    assert strays(room_of(path), path.read_text(encoding="utf-8")) == set()


@pytest.mark.parametrize("package", RESERVED)
def test_heavy_packages_have_one_door(package: str) -> None:
    door, most = RESERVED[package]
    found = files_importing(package)
    assert [name for name in found if not name.startswith(door)] == []
    assert len(found) <= most


def test_deepspeed_is_imported_at_its_doors() -> None:
    assert files_importing("deepspeed") == ["parallel/engine.py", "parallel/zero.py"]


def test_ranks_exchange_in_one_place() -> None:
    """Starting and ending the processes (engine.py) apart, torch.distributed is used where the groups are kept."""
    using = [named(path) for path in FILES if re.search(r"(?<!')torch\.distributed", code_of(path))]
    assert using == ["parallel/comm.py", "parallel/engine.py", "parallel/mpu.py"]


@pytest.mark.parametrize("path", FILES, ids=named)
def test_files_and_functions_are_short(path: Path) -> None:
    source = path.read_text(encoding="utf-8")
    assert len(source.splitlines()) <= 300
    assert long_functions(source, most=60) == set()


def test_the_package_prints_in_its_command_lines_only() -> None:
    found = [named(path) for path in FILES if prints(path.read_text(encoding="utf-8"))]
    assert found == ["console.py", "training/cli.py"]


MODULES = {
    f"git_scale.{named(path).removesuffix('.py').replace('/', '.').removesuffix('.__init__')}": path
    for path in FILES
    if path != PACKAGE / "__init__.py"
} | {"git_scale": PACKAGE / "__init__.py"}


def files_imported(source: str, itself: str) -> set[str]:
    """Modules of the package that a source imports, at its top or inside functions."""
    names = {name if name in MODULES else name.rpartition(".")[0] for name in imports_of(source)}
    return (names & MODULES.keys()) - {itself}


def test_no_files_import_each_other_in_a_circle() -> None:
    """Imports inside functions count: they hide a circle and do not undo it."""
    graph = {name: files_imported(path.read_text(encoding="utf-8"), name) for name, path in MODULES.items()}
    assert len(graph) == len(FILES)
    assert sum(map(len, graph.values())) > 500
    list(TopologicalSorter(graph).static_order())  # raises CycleError, which names the circle


def test_a_lazy_import_closes_a_circle() -> None:
    first = files_imported("import git_scale.stop\nfrom git_scale import exit", "git_scale.files")
    second = files_imported("def later():\n    from git_scale.files import digest", "git_scale.stop")
    assert first == {"git_scale.stop", "git_scale.exit"}
    with pytest.raises(CycleError):
        list(TopologicalSorter({"git_scale.files": first, "git_scale.stop": second}).static_order())


def calls_of(name: str, source: str) -> int:
    calls = (node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call))
    return sum(isinstance(call.func, ast.Name) and call.func.id == name for call in calls)


@pytest.mark.parametrize("model", ["GitModel", "ImageEncoder"])
def test_models_have_one_constructor(model: str) -> None:
    project = PACKAGE.parent
    paths = [
        path
        for room in ("git_scale", "tools", "benchmarks", "tests")
        for path in (project / room).rglob("*.py")
    ]
    found = {
        path.relative_to(project).as_posix()
        for path in paths
        if calls_of(model, path.read_text(encoding="utf-8"))
    }
    assert found - {"git_scale/models/git.py"} == {"git_scale/models/build.py"}  # a GIT holds an encoder


def attributes_called(name: str, source: str) -> int:
    calls = (node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call))
    return sum(isinstance(call.func, ast.Attribute) and call.func.attr == name for call in calls)


def test_the_loss_stands_in_one_place() -> None:
    """What is learned; that texts are measured by their log-probability is another thing."""
    sources = {named(path): path.read_text(encoding="utf-8") for path in FILES}
    benchmarks = (PACKAGE.parent / "benchmarks").rglob("*.py")
    sources |= {path.name: path.read_text(encoding="utf-8") for path in benchmarks}
    measuring = {"evaluation/heldout_loss.py", "inference/likelihood.py"}
    found = {name for name, source in sources.items() if attributes_called("cross_entropy", source)}
    assert found - measuring == {"objectives/language_model.py"}
    own = ("language_model_loss", "vocabulary_parallel_loss")
    calling = {name for name, source in sources.items() if sum(calls_of(loss, source) for loss in own)}
    assert calling == {"objectives/language_model.py"}


def strings_in(node: ast.AST) -> set[str]:
    return {
        part.value
        for part in ast.walk(node)
        if isinstance(part, ast.Constant) and isinstance(part.value, str)
    }


def is_of_task(node: ast.AST) -> bool:
    """`task`, `run.data.task`, `args.task`: what holds the name of a task."""
    return isinstance(node, ast.Name | ast.Attribute) and ast.unparse(node).rpartition(".")[2] == "task"


def decisions_by_task(source: str) -> list[str]:
    """Where a task's name decides what is done: comparisons, cases of a match, tables and lists of several names."""
    names, found = set(TASKS), []
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Compare(left=left, comparators=others):
                sides = [left, *others]
                literal = {
                    text for side in sides if not isinstance(side, ast.Call) for text in strings_in(side)
                }
                is_decision = literal & names or (literal and any(map(is_of_task, sides)))
            case ast.MatchValue(value=value):
                is_decision = strings_in(value) & names
            case ast.Dict(keys=items) | ast.Tuple(elts=items) | ast.List(elts=items) | ast.Set(elts=items):
                is_decision = len({text for item in items if item for text in strings_in(item)} & names) > 1
            case _:
                continue
        if is_decision:
            found.append(ast.unparse(node))
    return found


def test_no_task_is_told_by_its_name_outside_the_table() -> None:
    project = PACKAGE.parent
    paths = [path for room in ("git_scale", "tools", "benchmarks") for path in (project / room).rglob("*.py")]
    outside = [path for path in paths if PACKAGE / "tasks" not in path.parents]
    assert len(outside) > 200
    decisions = {
        path.relative_to(project).as_posix(): found
        for path in outside
        if (found := decisions_by_task(path.read_text(encoding="utf-8")))
    }
    assert decisions == {}


@pytest.mark.parametrize(
    "source",
    [
        "if run.data.task == 'vqa': pass",
        "x = 1 if 'caption' != name else 2",
        "if name in ('caption', 'captions'): pass",
        "if data.task in {'retrieval'}: pass",
        "match name:\n    case 'vqa': pass",
        "METRICS = {'caption': 1, 'vqa': 2}",
        "parser.add_argument('--task', choices=['caption', 'vqa'])",
    ],
)
def test_a_decision_by_a_tasks_name_is_found(source: str) -> None:
    harmless = """
TASKS[run.data.task]
row = {'caption': text}
if name in TASKS and task in others or task == other.task: pass
"""
    assert len(decisions_by_task(harmless + source)) == 1
    assert decisions_by_task(harmless) == []


@pytest.mark.parametrize(
    ("room", "source", "stray"),
    [
        ("config", "import git_scale.files", "git_scale.files"),
        ("models", "from git_scale.parallel import topology", "git_scale.parallel.topology"),
        ("models", "from git_scale import data", "git_scale.data"),
        (
            "data",
            "def load():\n    from git_scale.models.git import GitModel",
            "git_scale.models.git.GitModel",
        ),
        ("monitoring", "if True:\n    import git_scale.training.cli as cli", "git_scale.training.cli"),
        ("training", "from tests.conftest import folder", "tests.conftest.folder"),
        ("training", "import tools.pretrain", "tools.pretrain"),
        ("training", "from .. import tools", "...tools"),
    ],
)
def test_a_wrong_import_is_found(room: str, source: str, stray: str) -> None:
    assert strays(room, source + "\nimport torch\nfrom git_scale.errors import UserError") == {stray}


def test_a_long_function_and_a_print_are_found() -> None:
    source = textwrap.dedent(
        """
        class Thing:
            def long(self):
                first = 1
                print(first)

        def short(): log.info("print(this)")
        """
    )
    assert long_functions(source, most=2) == {"long"}
    assert long_functions(source, most=3) == set()
    assert prints(source) == [5]


DESIGN = (PACKAGE.parent / "docs" / "design.md").read_text(encoding="utf-8")


def drawn_rooms(page: str) -> set[str]:
    """Of the tree in docs/design.md: what stands two columns in, below `git_scale/`."""
    tree = page.partition("## Rooms")[2].partition("```\ngit_scale/\n")[2]
    lines = tree[: re.search(r"^\S", tree, re.MULTILINE).start()].splitlines()
    return {match[1] for line in lines if (match := re.match(r"  ([a-z_]+)(/|\.py) ", line))}


def drawn_order(page: str) -> list[set[str]]:
    """The layers of `a, b <- c <- d`: a room imports rooms of its own layer and of those before it."""
    sentence = re.search(r"Imports run one way: `([^`]+)`", page)[1]
    return [set(re.findall(r"\w+", layer)) for layer in sentence.split("<-")]


def against_the_order(layers: list[set[str]], may_import: dict[str, set[str]]) -> set[tuple[str, str]]:
    place = {room: number for number, layer in enumerate(layers) for room in layer}
    pairs = {(room, other) for room, others in may_import.items() for other in others if room in place}
    return {(room, other) for room, other in pairs if place.get(other, len(layers)) > place[room]}


def test_the_rooms_of_the_page_are_those_of_the_package() -> None:
    assert drawn_rooms(DESIGN) - {"configs"} == {room_of(path) for path in FILES} - {"__init__"}
    without = DESIGN.replace("\n  paths.py ", "\n  trails.py ")
    assert drawn_rooms(DESIGN) ^ drawn_rooms(without) == {"paths", "trails"}


def definitions(source: str) -> dict[str, int]:
    """Dotted name of each function and class -> its number of lines."""
    found: dict[str, int] = {}

    def visit(node: ast.AST, prefix: str) -> None:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.FunctionDef | ast.ClassDef):
                found[prefix + child.name] = child.end_lineno - child.lineno + 1
                visit(child, f"{prefix}{child.name}.")

    visit(ast.parse(source), "")
    return found


def test_the_places_of_the_page_are_there_and_short() -> None:
    places = re.findall(r"`([\w/]+\.py):([\w.]+)`", DESIGN)
    assert len(places) > 8
    for path, name in places:
        source = (PACKAGE.parent / path if path.startswith("tests/") else PACKAGE / path).read_text("utf-8")
        assert definitions(source).get(name, math.inf) <= 60, f"{path}:{name}"


def test_every_long_module_has_the_reason_why_it_is_ours() -> None:
    page = (PACKAGE.parent / "docs" / "own_parts.md").read_text(encoding="utf-8")
    named_there = set(re.findall(r"`([\w/]+\.py)`", page))
    long = {named(path) for path in FILES if len(path.read_text(encoding="utf-8").splitlines()) > 100}
    assert long - named_there == set(), "say in docs/own_parts.md why no library does this"
    assert named_there - {named(path) for path in FILES} == set()


def test_the_order_of_the_page_is_that_of_the_imports() -> None:
    layers = drawn_order(DESIGN)
    assert set.union(*layers) - {"tools"} == MAY_IMPORT.keys()
    assert against_the_order(layers, MAY_IMPORT) == set()
    assert against_the_order(layers, MAY_IMPORT | {"data": {"parallel"}}) == {("data", "parallel")}
    assert against_the_order(layers, MAY_IMPORT | {"errors": {"console"}}) == {("errors", "console")}


def test_a_step_of_training_is_short() -> None:
    (step,) = (
        node
        for path in (PACKAGE / "training").rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.FunctionDef) and node.name == "train_step"
    )
    assert step.end_lineno - step.lineno + 1 < 50


def test_every_package_has_its_folder_of_tests() -> None:
    packages = {path.parent.relative_to(PACKAGE) for path in FILES if path.parent != PACKAGE}
    assert [room for room in packages if not any((PACKAGE.parent / "tests" / room).glob("test_*.py"))] == []


def test_no_two_files_of_tests_have_one_name() -> None:
    """pytest imports them by their names alone: of two it would collect one, and end with an error for the other."""
    names = [path.name for path in Path(__file__).parent.rglob("test_*.py")]
    assert sorted(names) == sorted(set(names))


def test_every_fault_of_the_list_names_tests_that_exist() -> None:
    defined = set()
    for path in (PACKAGE.parent / "tests").rglob("test_*.py"):
        defined |= set(re.findall(r"^def (test_\w+)", path.read_text(encoding="utf-8"), re.MULTILINE))
    text = (PACKAGE.parent / "docs" / "faults.md").read_text(encoding="utf-8")
    rows = [line.split("|") for line in text.splitlines() if re.match(r"\| \d+\.\d+ \|", line)]
    assert len(rows) >= 50
    for _, number, *_, tests, _ in rows:
        named = set(re.findall(r"`(test_\w+)`", tests))
        assert named, f"{number} has no test"
        assert named <= defined, f"{number} names tests that are not there: {named - defined}"
