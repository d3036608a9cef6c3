"""Tables of names, and the modules that add to them."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from git_scale.errors import ConfigError
from git_scale.recipes import adjusted, load_run
from git_scale.registry import Registry


@pytest.fixture
def table() -> Registry[object]:
    return Registry("data.form", {"json": "json:loads", "pickle": "no_such_module_here:load"})


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory, of which no module is left behind."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(sys, "modules", dict(sys.modules))
    return tmp_path


def test_an_entry_is_imported_when_it_is_asked_for(table: Registry[object]) -> None:
    import json

    assert table["json"] is json.loads
    assert list(table) == ["json", "pickle"]
    with pytest.raises(ModuleNotFoundError):  # and no sooner
        table["pickle"]


def test_an_unknown_name_is_answered_with_the_nearest_and_all(table: Registry[object]) -> None:
    with pytest.raises(ConfigError) as caught:
        table["jsn"]
    assert caught.value.problems == [
        "data.form='jsn': there is none of that name; did you mean json?; there are json, pickle, and those of your"
        " own modules: plugins=[MODULE]"
    ]


def test_what_is_added_is_found_and_replaces_nothing(table: Registry[object]) -> None:
    table.add("mine", 5)
    assert table["mine"] == 5
    assert table.problem_of("mine") == ""
    for name in ("mine", "json"):
        with pytest.raises(ValueError, match=f"data.form={name} is there already"):
            table.add(name, 6)


def test_a_plugin_of_the_working_directory_is_imported(folder: Path) -> None:
    (folder / "my_plugin_a.py").write_text("LOADED = True\n")
    run = load_run("demo", ["plugins=[my_plugin_a]"])
    assert run.plugins == ("my_plugin_a",)
    assert sys.modules["my_plugin_a"].LOADED


def test_plugins_that_fail_are_said_with_their_files_beside_other_problems(folder: Path) -> None:
    (folder / "my_plugin_b.py").write_text("\n\nimport json\nmissing = json.nothing\n")
    (folder / "my_plugin_c.py").write_text("def broken(:\n")
    (folder / "my_plugin_d.py").write_text("import not_installed_anywhere\n")
    names = "my_plugin_b,my_plugin_c,my_plugin_d,my_plugin_e"
    with pytest.raises(ConfigError) as caught:
        load_run("demo", [f"plugins=[{names}]", "train.steps=0"])
    of_b, of_c, of_d, of_e, of_steps = caught.value.problems
    assert "my_plugin_b: AttributeError" in of_b
    assert "my_plugin_b.py, line 4" in of_b
    assert "my_plugin_c: SyntaxError" in of_c
    assert "my_plugin_c.py, line 1" in of_c
    assert "not_installed_anywhere" in of_d
    assert "my_plugin_d.py, line 1" in of_d
    assert "my_plugin_e: ModuleNotFoundError: No module named 'my_plugin_e'" in of_e
    assert of_e.endswith(f"it lies neither on PYTHONPATH nor in {folder}; did you mean my_plugin_d?")
    assert of_steps.startswith("train.steps=0")


def test_a_run_from_a_checkpoint_imports_only_what_is_asked_for_again(folder: Path) -> None:
    (folder / "my_plugin_f.py").write_text("raise RuntimeError('imported')\n")
    run = load_run("demo").model_copy(update={"plugins": ("my_plugin_f",)})
    assert adjusted(run, ["train.steps=500"]).plugins == ("my_plugin_f",)
    with pytest.raises(ConfigError, match="RuntimeError: imported"):
        adjusted(run, ["plugins=[my_plugin_f]"])


def test_the_line_of_the_plugin_is_said_not_that_of_a_library(folder: Path) -> None:
    (folder / "my_plugin_g.py").write_text("import json\n\njson.loads('{')\n")
    with pytest.raises(ConfigError, match=r"my_plugin_g: JSONDecodeError: .* \(.*my_plugin_g\.py, line 3\)"):
        load_run("demo", ["plugins=[my_plugin_g]"])


def test_a_plugin_that_ends_the_process_does_not_end_it_well(folder: Path) -> None:
    (folder / "my_plugin_h.py").write_text("import sys\nsys.exit()\n")
    with pytest.raises(ConfigError, match=r"my_plugin_h: SystemExit: .*my_plugin_h\.py, line 2"):
        load_run("demo", ["plugins=[my_plugin_h]"])


@pytest.mark.parametrize("name", ["my_plugin_i.py", "more/my_plugin_i", "./my_plugin_i.py"])
def test_a_path_is_no_modules_name(folder: Path, name: str) -> None:
    (folder / "my_plugin_i.py").write_text("raise RuntimeError\n")
    with pytest.raises(ConfigError, match=r"is no module's name: mine stands for mine\.py"):
        load_run("demo", [f"plugins=[{name}]"])


def test_a_name_given_twice_is_the_plugins_fault(folder: Path) -> None:
    (folder / "my_plugin_j.py").write_text("from git_scale.tasks import TASKS\n\nTASKS.add('caption', int)\n")
    with pytest.raises(ConfigError, match=r"caption is there already.*my_plugin_j\.py, line 3"):
        load_run("demo", ["plugins=[my_plugin_j]"])


def test_a_misspelt_plugin_is_answered_with_the_nearest(folder: Path) -> None:
    (folder / "my_plugin_k.py").write_text("")
    with pytest.raises(ConfigError, match=r"did you mean my_plugin_k\?"):
        load_run("demo", ["plugins=[my_plugin_kk]"])


def test_a_file_behind_a_module_of_that_name_is_not_passed_over(folder: Path) -> None:
    (folder / "colorsys.py").write_text("")
    with pytest.raises(ConfigError, match=r"colorsys is .*, and .*colorsys\.py was not imported"):
        load_run("demo", ["plugins=[colorsys]"])


def test_a_plugin_that_is_installed_is_said_with_its_line(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "my_plugin_l.py").write_text("1 / 0\n")
    monkeypatch.setattr(sys, "prefix", str(folder))
    with pytest.raises(ConfigError, match=r"ZeroDivisionError: .*my_plugin_l\.py, line 1"):
        load_run("demo", ["plugins=[my_plugin_l]"])


def test_a_section_with_a_mistake_is_not_said_to_be_empty_as_well() -> None:
    with pytest.raises(ConfigError) as caught:
        load_run(
            "demo", ["data.train=null", "data.sources=[{path: a, weight: -1}]", "train.objectives={lm: 0}"]
        )
    assert len(caught.value.problems) == 2
