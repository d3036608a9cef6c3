"""What the pages say exists: files they link to and name, headings, options of the tools, keys of a recipe, tests."""

from __future__ import annotations

import argparse
import importlib.util
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from git_scale.data.builders.formats import ANNOTATION_FORMATS
from git_scale.recipe_files import RECIPES
from git_scale.recipes import known_keys, load_run

ROOT = Path(__file__).parents[1]
PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "benchmarks/README.md")),
    *sorted((ROOT / "docs").glob("*.md")),
]
FOLDERS = "benchmarks|docs|ds_configs|git_scale|slurm|tests|tools"
SECTIONS = "model|data|optimizer|train|parallel|eval|checkpoint|log"
TESTS = {path.name: path.read_text(encoding="utf-8") for path in (ROOT / "tests").rglob("test_*.py")}
TEST_NAMES = {name for text in TESTS.values() for name in re.findall(r"^def (test_\w+)", text, re.MULTILINE)}
KEYS = set(known_keys())
TARGETS = set(re.findall(r"^(?:\.PHONY: .*|([a-z-]+):.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE))


def anchors(page: str) -> set[str]:
    """The names that GitHub gives to headings."""
    text = re.sub(r"^```.*?^```", "", page, flags=re.MULTILINE | re.DOTALL)
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def broken_links(page: str, place: Path) -> Iterator[str]:
    """`place`: the file that the page is, or would be."""
    for target in re.findall(r"\]\(([^)\s]+)\)", page):
        file, _, anchor = target.partition("#")
        if re.match(r"[a-z]+:", target):
            continue
        found = place.parent / file if file else place
        if file and not found.exists():
            yield f"{target}: no such file"
        elif anchor and anchor not in anchors(page if not file else found.read_text(encoding="utf-8")):
            yield f"{target}: no such heading"


def missing_files(page: str) -> Iterator[str]:
    """Files of the repository that a page names, and tests by their name alone."""
    for name in re.findall(rf"(?<![\w./-])(?:{FOLDERS})/[\w./-]*\w", page):
        if not (ROOT / name).exists():
            yield name
    yield from sorted(set(re.findall(r"(?<![\w/])test_\w+\.py", page)) - TESTS.keys())
    # of five words or more: shorter ones are also models of timm and keys of other programs
    yield from sorted(set(re.findall(r"(?<![\w/])test(?:_[a-z0-9]+){4,}(?![\w.])", page)) - TEST_NAMES)


def options_of(tool: str) -> set[str]:
    sources = [ROOT / "tools" / f"{tool}.py", *(ROOT / "git_scale").rglob("*.py")]
    texts = [path.read_text(encoding="utf-8") for path in sources if path.is_file()]
    written = {
        option for text in texts if "add_argument(" in text for option in re.findall(r'"(--[\w-]+)"', text)
    }
    of_formats = {option.name for name in ANNOTATION_FORMATS for option in ANNOTATION_FORMATS[name].options}
    return written | {f"--{name.replace('_', '-')}" for name in of_formats}


def commands(page: str) -> Iterator[str]:
    """What stands in blocks and between backticks, with continued lines joined."""
    blocks = re.findall(r"^```\w*\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    for line in "\n".join(blocks).replace("\\\n", " ").splitlines():
        yield line.partition(" #")[0]
    yield from re.findall(r"`([^`\n]+)`", page)


def wrong_words(page: str) -> Iterator[str]:
    """Options, recipes, targets of make and keys of a recipe that there are not."""
    for command in commands(page):
        if found := re.search(r"tools/(\w+)\.py", command):
            given = set(re.findall(r"(?<!\S)--[a-z][\w-]*", command[found.end() :]))
            yield from sorted(given - options_of(found[1]) - {"--help"})
        for name in re.findall(r"--config ([a-z]\w*)(?![\w./])", command):
            if not (RECIPES / f"{name}.yaml").is_file():
                yield f"--config {name}"
        if (found := re.match(r"make ([a-z-]+)", command)) and found[1] not in TARGETS:
            yield command
        for key in re.findall(rf"(?<![\w./-])(?:{SECTIONS})\.[a-z_.]+[a-z_](?![\w./*({{])", command):
            is_file = key.endswith((".py", ".json", ".pt", ".safetensors"))
            if key not in KEYS and not is_file and not key.startswith("model.encoder.options."):
                yield key


def problems_of(page: str, place: Path) -> list[str]:
    return [*broken_links(page, place), *missing_files(page), *wrong_words(page)]


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_what_a_page_names_is_there(path: Path) -> None:
    assert problems_of(path.read_text(encoding="utf-8"), path) == []


def builds(page: str) -> Iterator[list[str]]:
    """The arguments of each command of a page's blocks that builds shards, in a format of our own."""
    blocks = "\n".join(re.findall(r"^```\w*\n(.*?)^```", page, re.MULTILINE | re.DOTALL))
    for line in blocks.replace("\\\n", " ").splitlines():
        if line.startswith("python tools/prepare_data.py ") and "--plugins" not in line:
            yield line.split()[2:]


def parsed(arguments: list[str]) -> argparse.Namespace:
    spec = importlib.util.spec_from_file_location("prepare_data", ROOT / "tools" / "prepare_data.py")
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    found: argparse.Namespace = tool.parse_args(arguments)
    return found


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_the_commands_of_a_page_that_build_shards_can_be_run(path: Path) -> None:
    for arguments in builds(path.read_text(encoding="utf-8")):
        parsed(arguments)


def test_a_command_without_what_its_format_needs_is_found() -> None:
    (arguments,) = builds("```\npython tools/prepare_data.py textcaps a/ \\\n  b/ --questions q.json\n```\n")
    assert arguments == ["textcaps", "a/", "b/", "--questions", "q.json"]
    with pytest.raises(SystemExit):
        parsed(arguments)


def test_the_page_of_tasks_builds_every_folder_that_a_recipe_names() -> None:
    """But the words of scene text, which are databases and read as they are."""
    page = (ROOT / "docs" / "tasks.md").read_text(encoding="utf-8")
    built = {parsed(arguments).destination.as_posix() for arguments in builds(page)}
    recipes = {path.stem for path in RECIPES.glob("finetune_*.yaml")} - {"finetune_scene_text"}
    assert len(recipes) > 15
    for name in sorted(recipes):
        data = load_run(name).data
        assert {data.train, data.heldout} <= built, name


def test_every_page_is_in_the_index() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    listed = re.findall(r"^\| \[[^]]+\]\((docs/[\w.]+\.md)\) \| \S", readme, re.MULTILINE)
    assert sorted(listed) == sorted(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md"))


@pytest.mark.parametrize(
    ("sentence", "problem"),
    [
        ("[gone](gone.md)", "gone.md: no such file"),
        (
            "[there](docs/design.md#rooms) and [not](docs/design.md#cellars)",
            "docs/design.md#cellars: no such heading",
        ),
        ("# A heading, `here`\n[up](#a-heading-here), [down](#another)", "#another: no such heading"),
        ("`git_scale/gone.py` beside `git_scale/config.py`", "git_scale/gone.py"),
        ("`ds_configs/zero9.json`", "ds_configs/zero9.json"),
        ("held by `test_of_nothing_at_all` and `test_docs.py`", "test_of_nothing_at_all"),
        ("`tests/test_gone.py`", "tests/test_gone.py"),
        ("```\npython tools/caption.py --checkpoint RUN --backwards a.jpg --beams 4\n```", "--backwards"),
        ("```\npython tools/plan.py \\\n  --nodes 2 \\\n  --moons 1  # --not-read\n```", "--moons"),
        ("`python tools/pretrain.py --config git_gone --dry-run`, `--config mine.yaml`", "--config git_gone"),
        ("`make nothing` or `make test`", "make nothing"),
        ("`train.step` or `train.steps=5`", "train.step"),
        ("`model.encoder.options.depth=3 model.encoder.sise=2`", "model.encoder.sise"),
    ],
)
def test_what_is_not_there_is_found(sentence: str, problem: str) -> None:
    assert problems_of(sentence, ROOT / "README.md") == [problem]


def test_the_citation_is_of_this_version_and_this_paper() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    setup = (ROOT / "setup.py").read_text(encoding="utf-8")
    assert f'version="{citation["version"]}"' in setup and f'license="{citation["license"]}"' in setup
    (paper,) = citation["references"]
    names = [f"{author['family-names']}, {author['given-names']}" for author in paper["authors"]]
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert re.sub(r"\s+", " ", re.search(r"author  = \{(.*?)\}", readme, re.DOTALL)[1]) == " and ".join(names)
    assert paper["title"] in readme and paper["url"] in readme
