"""Values as they are written, in recipes and behind `key=`."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest

from git_scale.config import RunConfig
from git_scale.errors import ConfigError
from git_scale.recipes import adjusted, load_run

WORDS = [
    "2024_01_05",
    "0123",
    "1e5",
    "on",
    "no",
    "2024-01-05",
    "0x10",
    "1:30",
    "1.50",
    ".inf",
    "true",
    "=x",
]


def problems_of(*overrides: str, recipe: str = "git_base") -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load_run(recipe, overrides)
    return caught.value.problems


def value(run: RunConfig, dotted: str) -> Any:
    found: Any = run
    for name in dotted.split("."):
        found = getattr(found, name)
    return found


@pytest.mark.parametrize("word", WORDS)
@pytest.mark.parametrize("key", ["run_dir", "data.train", "data.tokenizer", "model.encoder.name"])
def test_text_stays_text(key: str, word: str, tmp_path: Path) -> None:
    assert value(load_run("git_base", [f"{key}={word}"]), key) == word
    assert value(adjusted(RunConfig(), [f"{key}={word}"]), key) == word
    *sections, last = key.split(".")
    recipe = tmp_path / "mine.yaml"
    recipe.write_text("".join(f"{'  ' * depth}{name}:\n" for depth, name in enumerate(sections)))
    recipe.write_text(f"{recipe.read_text()}{'  ' * len(sections)}{last}: {word}\n")
    assert value(load_run(str(recipe)), key) == word


@pytest.mark.parametrize("key", ["init_from", "data.heldout", "checkpoint.best"])
def test_optional_text_may_be_nothing(key: str) -> None:
    held = "data.heldout=held"
    assert value(load_run("git_base", [held, f"{key}=1e5"]), key) == "1e5"
    for nothing in ("null", "~", ""):
        assert value(load_run("git_base", [held, f"{key}={nothing}"]), key) is None


def test_lists_of_text_stay_text(tmp_path: Path) -> None:
    run = load_run("git_base", ["train.freeze=[on, 1e5, 2024-01-05, encoder.*]"])
    assert run.train.freeze == ("on", "1e5", "2024-01-05", "encoder.*")
    recipe = tmp_path / "mine.yaml"
    recipe.write_text("train:\n  freeze:\n  - 010\n  - yes\n")
    assert load_run(str(recipe)).train.freeze == ("010", "yes")


def test_what_yaml_would_take_apart_stays_whole_behind_a_key() -> None:
    for text in ("a: b", "@x", "*x", "%x", "x #1", "-", "!x"):
        assert load_run("git_base", [f"run_dir={text}"]).run_dir == text
    assert load_run("git_base", ["run_dir='a: b'"]).run_dir == "a: b"
    assert problems_of("run_dir=[x]") == ["run_dir=['x']: input should be a valid string"]
    assert problems_of("run_dir=") == ["run_dir='': string should have at least 1 character"]
    assert "not valid YAML; a word with * or : in it stands in quotes" in problems_of("train.freeze=[*.x]")[0]


@pytest.mark.parametrize(
    ("text", "number"), [("1_000", 1000), ("0100", 100), ("1e3", 1000), ("+700", 700), ("700.0", 700)]
)
def test_numbers_are_decimal(text: str, number: int) -> None:
    assert load_run("git_base", [f"train.steps={text}", "optimizer.warmup_steps=0"]).train.steps == number


@pytest.mark.parametrize(
    "text", ["1:30", "0x1000", "0b11", "0o7", "1.5", "on", "2024-01-05", "1e400", "[700]"]
)
def test_what_is_no_decimal_number_is_refused(text: str) -> None:
    """YAML 1.1 reads 1:30 as 90 and 010 as 8."""
    assert problems_of(f"train.steps={text}")[0].startswith("train.steps=")


def test_options_of_an_encoder_have_their_own_types() -> None:
    text = "model.encoder.options={depth: 010, drop_path_rate: 1e-1, fix: yes, act_layer: gelu, dims: [1, 2]}"
    assert load_run("git_base", [text]).model.encoder.options == {
        "depth": 10,
        "drop_path_rate": 0.1,
        "fix": True,
        "act_layer": "gelu",
        "dims": [1, 2],
    }


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("seed: 1\ntrain: {steps: 700}\nseed: 2\n", "seed is written twice, in lines 1 and 3"),
        (
            "train:\n  steps: 700\ndata: {}\ntrain:\n  micro_batch: 1\n",
            "train is written twice, in lines 1 and 4",
        ),
        ("train:\n  steps: 700\n  steps: 700\n", "train.steps is written twice, in lines 2 and 3"),
        (
            "model: {encoder: {options: {a: 1,\n a: 2}}}\n",
            "model.encoder.options.a is written twice, in lines 1",
        ),
        (
            "model: {encoder: {options: {a: [{b: 1, b: 2}]}}}\n",
            "model.encoder.options.a[0].b is written twice",
        ),
        ("train: {<<: {steps: 700},\n <<: {seed: 1}}\n", "train.<< is written twice, in lines 1 and 2"),
        ("'seed': 1\n\"seed\": 1\n", "seed is written twice, in lines 1 and 2"),
    ],
)
def test_what_is_written_twice_is_named_with_both_lines(content: str, problem: str, tmp_path: Path) -> None:
    recipe = tmp_path / "mine.yaml"
    recipe.write_text(content)
    assert problems_of(recipe=str(recipe))[0].startswith(f"{recipe}: {problem}")


def test_anchors_and_merges_are_yamls(tmp_path: Path) -> None:
    recipe = tmp_path / "mine.yaml"
    recipe.write_text(
        "eval: &often {every: 700}\ncheckpoint: {<<: *often, keep: 3}\nlog: {<<: [{every: 5}, *often]}\n"
    )
    run = load_run(str(recipe))
    assert (run.eval.every, run.checkpoint.every, run.checkpoint.keep, run.log.every) == (700, 700, 3, 5)
    for loop in ("eval: &a {b: *a}\n", "eval: &a {<<: *a}\n", "train: {freeze: &a [*a]}\n"):
        recipe.write_text(loop)
        assert "not valid YAML" in problems_of(recipe=str(recipe))[0]


def test_the_last_of_two_overrides_counts_and_says_so(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        assert load_run("git_base", ["train.steps=700", "seed=1", "train.steps=900"]).train.steps == 900
    assert caplog.messages == ["train.steps=900: takes the place of train.steps=700, given before it"]


def test_a_section_behind_a_key_leaves_the_rest_of_the_recipes() -> None:
    run = load_run("git_base", ["train={steps: 700}", "model.encoder={position_std: null}"])
    assert (run.train.steps, run.train.micro_batch) == (700, 64)
    assert run.model.encoder.options == {"dynamic_img_size": True}


def test_paths_are_what_they_stand_for(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.setenv("SCRATCH", "/scratch")
    keys = ["run_dir", "init_from", "data.train", "data.heldout", "data.tokenizer", "model.encoder.start"]
    run = load_run("git_base", [f"{key}=~/{key}" for key in keys])
    assert [value(run, key) for key in keys] == [f"/home/me/{key}" for key in keys]
    recipe = tmp_path / "mine.yaml"
    recipe.write_text("run_dir: $SCRATCH/run\ndata: {train: '${SCRATCH}/x'}\n")
    run = load_run(str(recipe))
    assert (run.run_dir, run.data.train) == ("/scratch/run", "/scratch/x")
    assert problems_of("run_dir=$NOT_SET/x") == ["run_dir='$NOT_SET/x': the variable $NOT_SET is not set"]
    assert "nobody's home" in problems_of("data.train=~nosuchuser/x")[0]
    monkeypatch.setenv("HOME", str(tmp_path))
    assert load_run("~/mine.yaml").run_dir == "/scratch/run"
    asked = []
    load_run("git_base", ["init_from=~/a", "run_dir=~/b"], lambda *paths: asked.append(paths) or {})
    assert asked == [(f"{tmp_path}/a", f"{tmp_path}/b")]


def test_another_image_size_needs_other_sizes_of_training() -> None:
    (problem,) = problems_of("model.encoder.image_size=64")
    assert problem.startswith(
        "model.encoder.image_size=64, but the recipe trains at data.image_sizes=[160, 176, 192, 208, 224]"
    )
    assert "set data.image_sizes=[48, 64] as well, or data.image_sizes=[]" in problem
    assert problems_of("model.encoder={image_size: 64}") == [problem]
    assert load_run("git_base", ["model.encoder.image_size=64", "data.image_sizes=[48, 64]"])
    assert load_run("git_base", ["model.encoder.image_size=64", "data.image_sizes=[]"]).train_image_sizes == (
        64,
    )
    assert load_run("git_base", ["model.encoder.image_size=224"]).train_image_sizes[0] == 160
    assert load_run("demo", ["model.encoder.image_size=32"]).train_image_sizes == (32,)


def test_an_option_without_a_value_is_refused() -> None:
    """timm passes over None: a ViT-B of 86M parameters would train."""
    (problem,) = problems_of("model.encoder.options={patch_size:16, depth: 2}")
    assert (
        problem == "model.encoder.options: 'patch_size:16' has no value: a space is needed behind its colon"
    )
    assert "'depth' has no value" in problems_of("model.encoder.options.depth=null")[0]


@pytest.mark.parametrize(
    ("option", "words"),
    [
        ("{drop_path_rate: .nan}", "drop_path_rate=nan: a finite number is needed"),
        ("{init_values: .inf}", "init_values=inf: a finite number is needed"),
        ("{depths: [1, -.inf]}", "depths=-inf: a finite number is needed"),
        ("{drop_path_rate: 2}", "drop_path_rate=2: a share of what is dropped lies in [0, 1)"),
        ("{attn_drop_rate: -0.1}", "attn_drop_rate=-0.1: a share of what is dropped lies in [0, 1)"),
        ("{drop_rate: 1}", "drop_rate=1: a share of what is dropped lies in [0, 1)"),
        *(
            (f"{{{name}: {value}}}", f"{name}={value}: a number above 0 is needed")
            for name in ("depth", "num_heads", "embed_dim", "patch_size", "mlp_ratio")
            for value in (0, -8)
        ),
        ("{depths: [2, 0]}", "depths=0: a number above 0 is needed"),
    ],
)
def test_numbers_that_no_encoder_can_have(option: str, words: str) -> None:
    assert problems_of(f"model.encoder.options={option}") == [f"model.encoder.options.{words}"]


def test_options_that_are_dropped_are_said(caplog: pytest.LogCaptureFixture, tmp_path: Path) -> None:
    recipe = tmp_path / "mine.yaml"
    recipe.write_text("model: {encoder: {name: vit_tiny_patch16_224, options: {depth: 2, embed_dim: 32}}}\n")
    remark = (
        "model.encoder.options: those of the recipe are dropped: embed_dim=32; model.encoder.options.NAME="
    )
    for change in (
        lambda given: load_run(str(recipe), given),
        lambda given: adjusted(load_run(str(recipe)), given),
    ):
        caplog.clear()
        run = change(["model.encoder.options={depth: 3}"])
        assert run.model.encoder.options == {"depth": 3}
        assert len(caplog.messages) == 1 and caplog.messages[0].startswith(remark)
        caplog.clear()
        run = change(["model.encoder.options.depth=3"])
        assert run.model.encoder.options == {"depth": 3, "embed_dim": 32}
        change(["model.encoder.name=davit_tiny", "model.encoder.options={}"])
        assert caplog.messages == []


@pytest.mark.parametrize("key", ["run_dir", "data.tokenizer", "model.encoder.name"])
@pytest.mark.parametrize("word", ["null", "~", "Null"])
def test_nothing_is_no_text(key: str, word: str, tmp_path: Path) -> None:
    problem = f"{key}={word}: needs a value; a text that looks so stands in quotes"
    assert problems_of(f"{key}={word}") == [problem]
    recipe = tmp_path / "mine.yaml"
    *sections, last = key.split(".")
    recipe.write_text(
        "".join(f"{section}: {{" for section in sections) + f"{last}: {word}" + "}" * len(sections)
    )
    assert problems_of(recipe=str(recipe)) == [f"{recipe}: {problem}"]
    assert value(load_run("git_base", ["run_dir='null'"]), "run_dir") == "null"


def test_a_dotted_key_in_a_recipe_is_answered_with_its_section(tmp_path: Path) -> None:
    recipe = tmp_path / "mine.yaml"
    recipe.write_text("data.train: x\nmodel: {decoder.width: 64}\ndata.trian: x\n")
    assert sorted(problems_of(recipe=str(recipe))) == [
        "data.train: in a recipe sections stand in lines of their own: `data:`, and `train:` below, further in",
        "data.trian='x': unknown key; did you mean data.train?",
        "model.decoder.width: in a recipe sections stand in lines of their own: `model:` and `decoder:`, and"
        " `width:` below, further in",
    ]


BOMB = "a: &a0 [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"b{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 10)
)
MERGES = "a0: &a0 {x: 1}\n" + "".join(
    f"a{n}: &a{n} {{<<: [{', '.join([f'*a{n - 1}'] * 9)}]}}\n" for n in range(1, 10)
)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (BOMB, "more than 10,000 values, aliases written out"),
        (MERGES, "more than 10,000 values, aliases written out"),
        ("a: " + "[" * 2000 + "]" * 2000, "nested too deeply"),
        ("a:\n" + "\n".join(" " * depth + "b:" for depth in range(1, 2000)), "nested too deeply"),
        ("seed: " + "9" * 5000, "line 1: 5000 digits, more than any number has"),
    ],
)
def test_a_recipe_beyond_all_measure_is_one_message(content: str, words: str, tmp_path: Path) -> None:
    recipe = tmp_path / "mine.yaml"
    recipe.write_text(content)
    (problem,) = problems_of(recipe=str(recipe))
    assert problem.startswith(f"{recipe}: not valid YAML: ") and words in problem


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("optimizer.encoder_lr=._", "optimizer.encoder_lr='._': input should be a valid number"),
        ("train.steps=" + "9" * 5000, "5000 digits, more than any number has"),
        ("model.encoder.options=" + "[" * 2000, "nested too deeply"),
        ("run_dir=" + "[" * 2000, "nested too deeply"),
    ],
)
def test_an_override_beyond_all_measure_is_one_message(override: str, words: str) -> None:
    (problem,) = problems_of(override)
    assert words in problem and len(problem) < 500


def test_the_switch_of_older_recipes_is_read(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert load_run("git_base", ["model.encoder.pretrained=true"]).model.encoder.start == "timm"
    assert load_run("git_base", ["model.encoder.pretrained=false"]).model.encoder.start == "scratch"
    assert "pretrained=true: model.encoder.pretrained is read as model.encoder.start=timm" in caplog.text
    caplog.clear()
    recipe = tmp_path / "mine.yaml"
    recipe.write_text("model: {encoder: {pretrained: true}}\n")
    assert load_run(str(recipe)).model.encoder.start == "timm"
    assert "read as model.encoder.start=timm" in caplog.text
    old = {"model": {"encoder": {"name": "resnet18", "pretrained": False}}}  # a saved config.yaml: not a word
    caplog.clear()
    assert RunConfig.model_validate(old).model.encoder.start == "scratch"
    assert caplog.text == ""
    assert "unknown key" in problems_of("model.encoder.pretrained=maybe")[0]


@pytest.mark.parametrize("name", ["git_base", "git_large", "git_huge", "git2"])
def test_the_papers_recipes_say_where_their_encoder_comes_from(name: str) -> None:
    assert load_run(name).model.encoder.start.startswith("models/")


def test_a_table_of_positions_is_drawn_or_brought() -> None:
    (problem,) = problems_of("model.encoder.position_std=0.5")
    assert "model.encoder.start=models/clip-vit-base-patch16 brings one" in problem
    load_run("git_base", ["model.encoder.position_std=0.5", "model.encoder.start=scratch"])
