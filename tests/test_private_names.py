"""docs/private_names.md against the installed libraries, and against the private names that the code uses."""

from __future__ import annotations

import ast
import dataclasses
import functools
import importlib
import inspect
import re
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import pytest

import git_scale
import git_scale.parallel.engine  # before deepspeed: it chooses the accelerator
from git_scale.models.encoders import declare_torchvision_operators

PACKAGE = Path(git_scale.__file__).parent
ROOT = PACKAGE.parent
PAGE = ROOT / "docs" / "private_names.md"
SOURCES = [
    path for room in ("git_scale", "tools", "benchmarks") for path in sorted((ROOT / room).rglob("*.py"))
]

DOCUMENTED = {"_exit", "_replace"}  # of os, of named tuples
# Modules from within a package: what is imported from them needs a row. torch.utils.checkpoint is documented.
INNER = re.compile(r"(deepspeed|megatron|tensorboard|timm)\.|torch\.(overrides|utils\.(?!checkpoint))")
DISTRIBUTIONS = {"megatron": "megatron-core"}


class PrivateName(NamedTuple):
    name: str
    files: tuple[str, ...]
    purpose: str
    harm: str
    known_good: str

    @property
    def parts(self) -> set[str]:
        return set(re.findall(r"\w+", self.name))

    @property
    def library(self) -> str:
        package = self.name.partition(".")[0].partition(":")[0]
        package = DISTRIBUTIONS.get(package, package)
        return package if package in ("argparse", "atexit") else f"{package} {version(package)}"


def read_page(text: str) -> Iterator[PrivateName]:
    known_good = ""
    for line in text.splitlines():
        if found := re.match(r"Known good: (.*?)\.(?:$| [A-Z])", line):
            known_good = found[1]
        cells = [cell.strip() for cell in line.strip("|").split(" | ")]
        if known_good and len(cells) == 4 and ":" in cells[0]:
            files = tuple(re.findall(r"`([^`]+)`", cells[1]))
            yield PrivateName(cells[0].strip("`"), files, cells[2], cells[3], known_good)


declare_torchvision_operators()  # before timm
ROWS = list(read_page(PAGE.read_text(encoding="utf-8")))


def named_module(dotted: str) -> Any:
    """A module, or (torch.ops.aten) what is an attribute of one."""
    try:
        return importlib.import_module(dotted)
    except ModuleNotFoundError:
        parent, _, leaf = dotted.rpartition(".")
        if not parent:
            raise
        return getattr(named_module(parent), leaf)


@functools.cache
def attributes_of_objects(kind: type) -> set[str]:
    """What methods of the class or its parents assign to `self`, what is annotated, and what the class itself has."""
    found = set(dir(kind))
    for parent in kind.__mro__[:-1]:
        tree = ast.parse(inspect.cleandoc("\n" + inspect.getsource(parent)))
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute) and ast.unparse(node.value) == "self":
                if isinstance(node.ctx, ast.Store):
                    found.add(node.attr)
            elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
                found.add(node.target.id)
    return found


@functools.cache
def attributes_in_code(module: ModuleType) -> set[str]:
    nodes = list(ast.walk(ast.parse(inspect.getsource(module))))
    constants = {
        node.value for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str)
    }
    arguments = {node.arg for node in nodes if isinstance(node, ast.arg)}
    return constants | arguments | {node.attr for node in nodes if isinstance(node, ast.Attribute)}


def parameters_of(taker: Any) -> set[str]:
    if dataclasses.is_dataclass(taker):
        return {field.name for field in dataclasses.fields(taker)}
    return set(inspect.signature(taker).parameters)


def what_is_missing(name: str) -> str:
    """Empty when the installed release has the name, as the page writes names."""
    dotted, _, rest = name.partition(":")
    try:
        module = named_module(dotted)
        if rest.startswith("*."):
            known = attributes_in_code(module)
            return "" if rest[2:] in known else f"the code of {dotted} knows no {rest[2:]}"
        path, _, arguments = rest.partition("(")
        thing: Any = module
        for part in path.split("."):
            thing = getattr(thing, part)
    except (ImportError, AttributeError) as error:
        return str(error)
    if arguments.startswith(")."):
        attribute = arguments[2:]
        return "" if attribute in attributes_of_objects(thing) else f"objects of {path} have no {attribute}"
    wanted = set(re.findall(r"\w+", arguments))
    missing = wanted - parameters_of(thing) if wanted else set()
    return f"{path} takes no {', '.join(sorted(missing))}" if missing else ""


def complaint(row: PrivateName) -> str:
    missing = what_is_missing(row.name)
    if not missing:
        return ""
    return (
        f"{row.library} has moved {row.name}: {missing}. Known good: {row.known_good}."
        f" {', '.join(row.files)} use it for: {row.purpose}. Without it: {row.harm}."
    )


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_the_installed_release_has(row: PrivateName) -> None:
    assert complaint(row) == ""


@pytest.mark.parametrize(
    ("name", "missing"),
    [
        ("torch.nn:Module()._gone", "objects of Module have no _gone"),
        ("torch.nn.init:_gone_", "module 'torch.nn.init' has no attribute '_gone_'"),
        ("torch.gone:anything", "module 'torch' has no attribute 'gone'"),
        ("torch.nn.init:trunc_normal_(mean, gone)", "trunc_normal_ takes no gone"),
        ("torch.nn.init:*._gone", "the code of torch.nn.init knows no _gone"),
        ("deepspeed.utils.tensor_fragment:fragment_address(gone)", "fragment_address takes no gone"),
    ],
)
def test_a_name_that_moved_is_said_with_its_release_and_what_hangs_on_it(name: str, missing: str) -> None:
    row = PrivateName(name, ("parallel/zero.py",), "weights", "no checkpoint can be written", "1.0")
    said = complaint(row)
    assert f"has moved {name}: {missing}. Known good: 1.0. parallel/zero.py use it for: weights." in said
    assert said.startswith(f"{name.partition('.')[0]} {version(name.partition('.')[0])} ")


def label(path: Path) -> str:
    return path.relative_to(PACKAGE if path.is_relative_to(PACKAGE) else ROOT).as_posix()


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_the_files_of_a_row_use_its_name(row: PrivateName) -> None:
    named = set(re.findall(r"\w+", row.name.partition(":")[2].rpartition(".")[2]))
    sources = {label(path): path.read_text(encoding="utf-8") for path in SOURCES}
    assert row.files
    assert [file for file in row.files if not named & set(re.findall(r"\w+", sources.get(file, "")))] == []


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.endswith("__") and name not in DOCUMENTED and len(name) > 1


def private_names_in(source: str) -> set[str]:
    """Names of others: private attributes and texts that no class or function of this file defines, and imports."""
    found, own = set(), set()
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Attribute(value=ast.Name(id="self" | "cls"), attr=attr):
                own.add(attr)
            case ast.FunctionDef(name=name) | ast.ClassDef(name=name) | ast.Name(id=name, ctx=ast.Store()):
                own.add(name)
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Attribute(value=ast.Call(func=ast.Name(id="super")), attr=attr) if is_private(attr):
                found.add(attr)
            case ast.Attribute(attr=attr) if is_private(attr) and attr not in own:
                found.add(attr)
            case ast.Call(func=ast.Name(id="getattr" | "setattr" | "hasattr") | ast.Attribute(attr="object")):
                texts = {arg.value for arg in node.args if isinstance(arg, ast.Constant)}
                found |= {text for text in texts if isinstance(text, str) and is_private(text)}
            case ast.Import(names=names):
                found |= {part for alias in names for part in alias.name.split(".") if is_private(part)}
            case ast.ImportFrom(module=str(module), names=names):
                is_inner = INNER.match(module)
                found |= {alias.name for alias in names if is_inner or is_private(alias.name)}
                found |= {part for part in module.split(".") if is_private(part)}
    return found


SCANNED = [path for path in SOURCES if private_names_in(path.read_text(encoding="utf-8"))]


@pytest.mark.parametrize("path", SCANNED, ids=label)
def test_every_private_name_of_another_library_has_a_row(path: Path) -> None:
    listed = {part for row in ROWS if label(path) in row.files for part in row.parts}
    missing = private_names_in(path.read_text(encoding="utf-8")) - listed
    assert missing == set(), f"put {missing} on docs/private_names.md, with {label(path)} beside it"


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("from torch._C import Generator", {"_C"}),
        ("from deepspeed.runtime.zero.stage3 import Stage3", {"Stage3"}),
        ("from timm.models import davit", {"davit"}),
        ("import torch._inductor.config", {"_inductor"}),
        ("def f(engine):\n    return engine._zero_grads", {"_zero_grads"}),
        ("class Own(Base):\n    def _hook(self):\n        return super()._hook()", {"_hook"}),
        ("mock.patch.object(nn.init, '_no_grad_fill_')", {"_no_grad_fill_"}),
        ("class Own:\n    def __init__(self, other):\n        self._x = other._x", set()),
        ("from torch.utils.checkpoint import checkpoint\nos._exit(0)\nsuper().__init__()", set()),
    ],
)
def test_a_private_name_without_a_row_is_found(source: str, found: set[str]) -> None:
    assert private_names_in(source) == found
