"""The typed run configuration: recipes, overrides, and what is said about each mistake."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from git_scale.config import RunConfig, check_world
from git_scale.errors import ConfigError
from git_scale.recipe_files import RECIPES
from git_scale.recipes import known_keys, load_run

NAMES = sorted(path.stem for path in RECIPES.glob("*.yaml"))


def problems_of(*overrides: str, recipe: str = "git_base") -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load_run(recipe, overrides)
    return caught.value.problems


def test_the_papers_models_have_a_recipe() -> None:
    assert {"git_base", "git_large", "git_huge", "git2", "demo"} <= set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_every_recipe_loads_and_is_short(name: str) -> None:
    run = load_run(name)
    check_world(run, dp=1)
    lines = (RECIPES / f"{name}.yaml").read_text(encoding="utf-8").splitlines()
    assert len(lines) <= 60


@pytest.mark.parametrize("name", ["git_base", "git_large", "git_huge", "git2"])
def test_the_papers_recipes_keep_the_papers_pretraining(name: str) -> None:
    """arXiv 2205.14100 and its model cards: batch 4096, rates 1e-5 and five times that, 500 warm-up steps."""
    run = load_run(name)
    assert (run.train.global_batch, run.optimizer.warmup_steps) == (4096, 500)
    assert (run.optimizer.encoder_lr, run.optimizer.decoder_lr) == (1e-5, 5e-5)
    assert (run.train.label_smoothing, run.optimizer.weight_decay, run.model.decoder.dropout) == (
        0.1,
        0.01,
        0.1,
    )
    assert (run.data.max_text_tokens, run.model.vocab_size) == (40, 30522)
    assert run.data.crop_scale == (0.8, 1.0)


def test_multi_scale_of_the_base_recipe_is_the_papers() -> None:
    assert load_run("git_base").train_image_sizes == (160, 176, 192, 208, 224)
    assert load_run("git_base", ["data.image_sizes=[]"]).train_image_sizes == (224,)


def test_two_epochs_are_the_steps_of_the_base_recipe() -> None:
    """10M pairs, 2 epochs, batch 4096: 4882.8 steps."""
    assert load_run("git_base").train.steps == 4883


@pytest.mark.parametrize(
    ("benchmark", "images", "epochs"),
    [
        ("coco", 113_287, 10),
        ("textcaps", 21_953, 10),
        ("vizwiz_caption", 23_431, 10),
        ("vqav2", 82_783, 20),
        ("textvqa", 21_953, 20),
        ("stvqa", 18_921 * 9 // 10, 20),
        ("ocrvqa", 166_000, 10),
        ("vizwiz_vqa", 20_523, 20),
        ("msvd", 1_200, 20),
        ("youcook2", 10_337, 10),
        ("tvc", 86_603, 5),
        ("msrvtt_qa", 6_513, 40),
        ("msvd_qa", 1_200, 50),
    ],
)
def test_the_steps_of_a_benchmark_are_its_epochs(benchmark: str, images: int, epochs: int) -> None:
    """Within a hundredth or two: a recipe says whole steps of each epoch."""
    run = load_run(f"finetune_{benchmark}")
    assert run.train.steps * run.train.global_batch / images == pytest.approx(epochs, rel=0.02)
    assert run.train.steps % run.eval.every == 0 and run.eval.every == run.checkpoint.every
    assert str(run.run_dir) == f"runs/finetune_{benchmark}"


@pytest.mark.parametrize("name", [name for name in NAMES if name.startswith("finetune_")])
def test_videos_have_the_papers_six_frames_and_questions_the_papers_pixels(name: str) -> None:
    """arXiv 2205.14100: six frames of 224 pixels; 480 pixels for the questions of the base model."""
    run = load_run(name)
    videos = {"msvd", "msrvtt", "vatex", "youcook2", "tvc", "msvd_qa", "msrvtt_qa", "tgif_qa"}
    is_video = name.removeprefix("finetune_") in videos
    assert (run.model.frames == 6) == is_video
    questions = {"vqav2", "textvqa", "stvqa", "ocrvqa", "vizwiz_vqa"}
    assert run.model.encoder.image_size == (480 if name.removeprefix("finetune_") in questions else 224)


def test_a_recipe_begins_with_another(tmp_path: Path) -> None:
    recipe = tmp_path / "mine.yaml"
    recipe.write_text("base: finetune_textvqa\ntrain: {steps: 700}\nmodel: {encoder: {image_size: 420}}\n")
    mine, other = load_run(str(recipe)), load_run("finetune_textvqa")
    assert (mine.train.steps, mine.model.encoder.image_size) == (700, 420)
    assert (mine.data, mine.train.global_batch) == (other.data, other.train.global_batch)
    assert load_run(str(recipe), ["train.steps=900"]).train.steps == 900


@pytest.mark.parametrize(
    ("base", "problem"),
    [
        (
            "finetune_textvga",
            "base='finetune_textvga': no recipe of that name; did you mean finetune_textvqa?",
        ),
        ("[git_base]", "base=['git_base']: no recipe of that name"),
        ("../configs/git_base", "base='../configs/git_base': no recipe of that name"),
    ],
)
def test_a_base_is_a_recipes_name(tmp_path: Path, base: str, problem: str) -> None:
    recipe = tmp_path / "mine.yaml"
    recipe.write_text(f"base: {base}\n")
    (found,) = problems_of(recipe=str(recipe))
    assert found.startswith(f"{recipe}: {problem}")


@pytest.mark.parametrize(
    ("override", "problem"),
    [
        ("train.micro_bach=3", "train.micro_bach=3: unknown key; did you mean train.micro_batch?"),
        ("optimiser.encoder_lr=3", "optimiser={'encoder_lr': 3}: unknown key; did you mean optimizer?"),
        ("encoder_lr=3", "encoder_lr=3: unknown key; did you mean optimizer.encoder_lr?"),
        (
            "model.encoder.pretrained=maybe",
            "model.encoder.pretrained='maybe': unknown key; did you mean model.encoder.start?",
        ),
        ("taks=vqa", "taks='vqa': unknown key; did you mean data.task?"),
        (
            "data.sources=[{path: a, taks: vqa}]",
            "data.sources.0.taks='vqa': unknown key; did you mean data.sources.0.task?",
        ),
        ("data.sources=a", "data.sources='a': a list is wanted: [a, b]"),
        ("data.sources=[a]", "data.sources.0='a': a mapping is wanted: {key: value}"),
        ("heads=3", "heads=3: unknown key; did you mean model.decoder.heads?"),
        ("model.encoder.nme=vit", "model.encoder.nme='vit': unknown key; did you mean model.encoder.name?"),
        ("xyzzy=3", "xyzzy=3: unknown key"),
    ],
)
def test_an_unknown_key_is_answered_with_the_nearest(override: str, problem: str) -> None:
    assert problems_of(override) == [problem]


BEYOND = {
    f"{key}={value}": words
    for key, value, words in (
        ("seed", -1, "input should be greater than or equal to 0"),
        ("seed", 2**32, "input should be less than or equal to 4294967295"),
        ("seed", 2**64, "more than 1e+12, the largest number that a run can have"),
        ("train.steps", 10**13, "more than 1e+12, the largest number that a run can have"),
        ("model.vocab_size", 9 * 10**9, "input should be less than or equal to 10000000"),
        ("model.decoder.positions", 9 * 10**9, "input should be less than or equal to 1000000"),
        ("model.decoder.width", 9 * 10**9, "input should be less than or equal to 100000"),
        ("data.image_sizes", [4097], "sides of 8 to 4096 pixels are needed"),
    )
}


@pytest.mark.parametrize(
    ("override", "problem"),
    [
        (
            "train.steps=many",
            "train.steps='many': input should be a valid integer, unable to parse string as an integer",
        ),
        ("train.precision=fp16", "train.precision='fp16': input should be 'fp32' or 'bf16'"),
        ("train.micro_batch=0", "train.micro_batch=0: input should be greater than or equal to 1"),
        ("optimizer.encoder_lr=.nan", "optimizer.encoder_lr=nan: input should be a finite number"),
        ("optimizer.eps=.inf", "optimizer.eps=inf: input should be a finite number"),
        ("data.crop_scale=[.nan, 1]", "data.crop_scale.0=nan: input should be a finite number"),
        ("data.crop_scale=[on, 1]", "data.crop_scale=[True, 1]: a switch was given where none is asked for"),
        ("train.label_smoothing=1", "train.label_smoothing=1: input should be less than 1"),
        *((override, f"{override}: {words}") for override, words in BEYOND.items()),
        ("checkpoint.keep=1", "checkpoint.keep=1: input should be greater than or equal to 2"),
    ],
)
def test_a_wrong_value_is_named_with_its_key(override: str, problem: str) -> None:
    assert problems_of(override) == [problem]


@pytest.mark.parametrize(
    ("override", "problem"),
    [
        ("steps", "'steps': an override is written section.key=value"),
        ("=3", "'=3': an override is written section.key=value"),
        ("data.image_sizes=[160", "'data.image_sizes=[160': the value is not valid YAML"),
        ("run_dir.x=3", "'run_dir.x=3': run_dir is a value, not a section"),
    ],
)
def test_an_override_that_is_none_is_refused(override: str, problem: str) -> None:
    assert problems_of(override) == [problem]


def test_all_problems_are_reported_at_once_in_one_message() -> None:
    with pytest.raises(ConfigError) as caught:
        load_run("git_base", ["oops", "train.micro_bach=3", "train.steps=many", "model.decoder.layers=0"])
    assert str(caught.value) == "\n".join(
        [
            "4 problems in the configuration:",
            "  - 'oops': an override is written section.key=value",
            "  - model.decoder.layers=0: input should be greater than or equal to 1",
            "  - train.steps='many': input should be a valid integer, unable to parse string as an integer",
            "  - train.micro_bach=3: unknown key; did you mean train.micro_batch?",
        ]
    )


@pytest.mark.parametrize(
    ("override", "words", "remedy"),
    [
        ("model.decoder.heads=7", "does not divide model.decoder.width=768", "model.decoder.heads=6"),
        ("data.max_text_tokens=1025", "exceeds model.decoder.positions=1024", "data.max_text_tokens=1024"),
        ("eval.max_new_tokens=1024", "exceeds model.decoder.positions=1024", "eval.max_new_tokens=1023"),
        ("optimizer.warmup_steps=4883", "leaves nothing of train.steps=4883", "optimizer.warmup_steps=488"),
    ],
)
def test_a_contradiction_names_a_remedy_that_works(override: str, words: str, remedy: str) -> None:
    (problem,) = problems_of(override)
    assert problem.startswith(override)
    assert words in problem
    assert f"set {remedy}" in problem
    load_run("git_base", [override, remedy])


@pytest.mark.parametrize("value", ["[0.9, 0.5]", "[0, 1]", "[0.5, 1.1]"])
def test_a_crop_range_outside_0_to_1_is_refused(value: str) -> None:
    (problem,) = problems_of(f"data.crop_scale={value}")
    assert problem.endswith("is no range within (0, 1]: the paper's is [0.8, 1.0]")


def test_questions_images_and_the_best_checkpoint_fit_together() -> None:
    (positions,) = problems_of("data.task=vqa", "model.decoder.positions=64", "eval.max_new_tokens=30")
    assert "data.max_text_tokens=40 (question) + eval.max_new_tokens=30 (answer) exceed" in positions
    (stacked,) = problems_of("data.resize=fit", "train.micro_batch=2")
    assert "set train.micro_batch=1 or data.resize=pad" in stacked
    (split,) = problems_of("train.compile=true", "parallel.tp=2")
    assert "parallel.tp=2" in split and "set train.compile=false" in split
    (shapes,) = problems_of("train.compile=true", "data.resize=fit", "train.micro_batch=1")
    assert "data.resize=fit" in shapes and "set train.compile=false or data.resize=pad" in shapes
    (heldout,) = problems_of("checkpoint.best=cider", "data.heldout=null")
    assert "set data.heldout" in heldout


def test_a_checkpoints_model_lies_below_recipe_and_overrides(tmp_path: Path) -> None:
    recipe = tmp_path / "mine.yaml"
    recipe.write_text("run_dir: here\ninit_from: there\nmodel: {encoder: {image_size: 64}}\n")
    asked = []

    def start(init_from: str, run_dir: str) -> dict:
        asked.append((init_from, run_dir))
        encoder = {"name": "resnet18", "image_size": 32, "options": {"layers": [1, 1, 1, 1]}}
        return {"model": {"encoder": encoder, "vocab_size": 99}, "data": {"tokenizer": "there/vocab.txt"}}

    run = load_run(str(recipe), ["model.vocab_size=98"], start)
    assert asked == [("there", "here")]
    assert (run.model.encoder.name, run.model.encoder.image_size) == ("resnet18", 64)
    assert run.model.encoder.options == {"layers": [1, 1, 1, 1]}
    assert (run.model.vocab_size, run.data.tokenizer) == (98, "there/vocab.txt")
    load_run("git_base", [], start)
    assert len(asked) == 1, "a run from nothing asks nobody"


def test_tiny_image_sizes_and_wild_betas_are_refused_together() -> None:
    assert problems_of("data.image_sizes=[224, 4]", "optimizer.betas=[0.9, 1]") == [
        "data.image_sizes=[224, 4]: sides of 8 to 4096 pixels are needed",
        "optimizer.betas=[0.9, 1.0]: both lie in [0, 1)",
    ]


@pytest.mark.parametrize("text", ["1e-4", "1.0e-4", "0.0001", "1E-4"])
def test_floats_may_be_written_in_any_way(text: str, tmp_path: Path) -> None:
    """YAML 1.1 reads 1e-4 as a string."""
    assert load_run("git_base", [f"optimizer.encoder_lr={text}"]).optimizer.encoder_lr == 1e-4
    recipe = tmp_path / "mine.yaml"
    recipe.write_text(f"optimizer:\n  encoder_lr: {text}\n")
    assert load_run(str(recipe)).optimizer.encoder_lr == 1e-4


def test_a_float_is_one_even_where_any_value_is_taken() -> None:
    options = load_run("git_base", ["model.encoder.options.drop_path_rate=1e-1"]).model.encoder.options
    assert options["drop_path_rate"] == 0.1


def test_overrides_beat_the_recipe_and_the_last_one_wins() -> None:
    run = load_run(
        "git_base", ["train.steps=700", "train.steps=900", "model.encoder.options.depth=3", "seed=4"]
    )
    assert (run.train.steps, run.seed) == (900, 4)
    assert run.model.encoder.options == {"dynamic_img_size": True, "depth": 3}
    assert run.train.micro_batch == 64  # the recipe's, not the default 32


def test_a_recipe_of_ones_own_starts_from_the_defaults(tmp_path: Path) -> None:
    recipe = tmp_path / "mine.yml"
    recipe.write_text("seed: 3\n")
    assert load_run(str(recipe)) == RunConfig(seed=3)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"train: [1, 2", "not valid YAML"),
        (b"a: b: c", "not valid YAML"),
        (b"\xff\xfe\x00", "not valid YAML"),
        (b"- 1\n- 2\n", "a recipe is a mapping of sections, found list"),
        (b"", "a recipe is a mapping of sections, found NoneType"),
        (b"!!python/object/apply:os.getcwd []", "not valid YAML"),
    ],
)
def test_a_broken_recipe_is_named(content: bytes, words: str, tmp_path: Path) -> None:
    recipe = tmp_path / "broken.yaml"
    recipe.write_bytes(content)
    (problem,) = problems_of(recipe=str(recipe))
    assert problem.startswith(str(recipe))
    assert words in problem


def test_an_unknown_recipe_is_answered_with_the_nearest_and_all_names() -> None:
    (problem,) = problems_of(recipe="git_bse")
    assert problem.startswith("--config git_bse: no such recipe or file; did you mean git_base?; recipes: ")
    assert problem.endswith(", ".join(NAMES))


def test_the_world_divides_the_batch_or_the_message_says_how() -> None:
    run = load_run("git_base")
    check_world(run, dp=64)
    assert (run.accumulation(1), run.accumulation(64)) == (64, 1)
    with pytest.raises(ConfigError) as caught:
        check_world(run, dp=7)
    assert caught.value.problems == [
        "train.global_batch=4096 is no multiple of train.micro_batch=64 x 7 ranks = 448:"
        " set train.global_batch=4032 or another train.micro_batch"
    ]


@pytest.mark.parametrize("dp", [3, 7, 48, 100, 1024])
def test_the_suggested_batch_passes(dp: int) -> None:
    with pytest.raises(ConfigError) as caught:
        check_world(load_run("git_base"), dp)
    remedy = caught.value.problems[0].partition(": set ")[2].split()[0]
    run = load_run("git_base", [remedy])
    check_world(run, dp)
    assert run.accumulation(dp) >= 1


@pytest.mark.parametrize("name", NAMES)
def test_the_tree_round_trips_through_yaml(name: str, tmp_path: Path) -> None:
    run = load_run(name, ["optimizer.encoder_lr=3e-7", "data.heldout=null", "checkpoint.best=null"])
    written = tmp_path / "config.yaml"
    written.write_text(run.to_yaml())
    assert load_run(str(written)) == run
    assert RunConfig.model_validate(yaml.safe_load(run.to_yaml())) == run


def test_known_keys_are_the_keys_of_the_written_tree() -> None:
    def walk(tree: dict, prefix: str = "") -> set[str]:
        keys = {prefix + key for key in tree}
        return keys.union(
            *(
                walk(v, f"{prefix}{k}.")
                for k, v in tree.items()
                if isinstance(v, dict) and k not in ("options", "objectives")
            )
        )

    assert set(known_keys()) == walk(yaml.safe_load(RunConfig().to_yaml()))


def test_a_run_cannot_be_changed_afterwards() -> None:
    with pytest.raises(ValueError, match="frozen"):
        load_run("git_base").train.steps = 3  # type: ignore[misc]


def test_reading_a_run_imports_no_torch() -> None:
    code = "import sys, git_scale.recipes as c; c.load_run('git_base'); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_images_have_a_largest_side() -> None:
    assert "image_size=4097: input should be less than or equal to 4096" in " ".join(
        problems_of("model.encoder.image_size=4097", "data.image_sizes=[]")
    )
    assert load_run("git_base", ["model.encoder.image_size=4096", "data.image_sizes=[]"])
