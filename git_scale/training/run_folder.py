"""A run's folder belongs to one run: the same command goes on in it, another one is refused."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path
from typing import Any

import yaml

from git_scale.checkpoint.layout import CONFIG, published
from git_scale.config import RunConfig
from git_scale.errors import ConfigError
from git_scale.files import replaced_atomically
from git_scale.paths import problem_of_folder
from git_scale.training.lease import LEASE, Lease, acquire
from git_scale.upgrades import read_upgraded

# What makes a run the one it is. Everything else (steps, rates, cadences, batch) may change when it goes on. Of the
# training data and the tokenizer it is what they hold, wherever they lie: their fingerprints are in the checkpoints.
IDENTITY = (
    "seed",
    "init_from",
    "continue_from",
    "model",
    "data.task",
    "data.resize",
    "data.texts_per_image",
    "data.max_text_tokens",
    "train.freeze",
)
# Where first weights came from: as_begun keeps what was.
ORIGIN = ("model.encoder.start",)
SECTIONS = {"model", "data", "train"}  # of every config.yaml that a run has written
PATHS = ("init_from", "continue_from")
"""Of these, the same place under another name is the same: relative, or through a link."""

log = logging.getLogger(__name__)


def check_run_folder(run: RunConfig) -> None:
    """Raises ConfigError where another run, or anything else, lives, and where none can; makes nothing."""
    folder = Path(run.run_dir)
    if (folder / CONFIG).is_file():
        _refuse_other_run(folder / CONFIG, run)
    elif folder.exists() and (not folder.is_dir() or any(_visible(folder))):
        raise ConfigError(
            [f"run_dir={run.run_dir}: exists, but is not the folder of a run: choose another one"]
        )
    elif problem := problem_of_folder(folder):
        raise ConfigError([f"run_dir={run.run_dir}: {problem}"])


def claim_run_folder(run: RunConfig) -> Lease:
    """Makes the folder, takes its lease and writes the config.yaml of a new run.

    Raises ConfigError where another run, or anything else, lives; UserError where another start is at work.
    """
    folder = Path(run.run_dir)
    check_run_folder(run)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lease = acquire(folder)
        lease.keep()
    except OSError as error:
        raise ConfigError([f"run_dir={run.run_dir}: cannot be written: {error}"]) from None
    check_run_folder(run)  # the start that it waited for may have made it another run's
    if not (folder / CONFIG).is_file():
        renew_recipe(run)
    return lease


def renew_recipe(run: RunConfig) -> None:
    """Writes config.yaml, once the run's checkpoint has taken this start for its own. Raises ConfigError."""
    config, text = Path(run.run_dir) / CONFIG, run.to_yaml()
    try:
        if config.is_file():
            if config.read_text(encoding="utf-8") == text:
                return  # a full disk stops no run that goes on as it was
            _say_what_is_new(read_recipe(config), run)
        with replaced_atomically(config) as temporary:
            temporary.write_text(text, encoding="utf-8")
    except OSError as error:
        raise ConfigError([f"run_dir={run.run_dir}: cannot be written: {error}"]) from None


def _say_what_is_new(before: RunConfig, run: RunConfig) -> None:
    """A run may go on with other steps, rates or objectives: its log says since when it has them."""
    if changed := differences(run, before):
        log.info(
            "from here on: %s", ", ".join(f"{key}={ours!r} (was {theirs!r})" for key, ours, theirs in changed)
        )


def as_begun(run: RunConfig) -> RunConfig:
    """The run with the start of its encoder that it really had: once there is a checkpoint, another has no effect."""
    folder = Path(run.run_dir)
    if not published(folder):
        return run
    theirs = read_recipe(folder / CONFIG).model.encoder.start
    if theirs == run.model.encoder.start:
        return run
    log.info("model.encoder.start=%s has no effect: this run began from %s", run.model.encoder.start, theirs)
    encoder = run.model.encoder.model_copy(update={"start": theirs})
    return run.model_copy(update={"model": run.model.model_copy(update={"encoder": encoder})})


def keep_tokenizer(run: RunConfig) -> Path:
    """The run's own copy of its tokenizer: what it started from may be gone later.

    Until there is a checkpoint a new start takes the file anew; from then on the run's copy stays.
    """
    source = Path(run.data.tokenizer)
    copy = Path(run.run_dir) / source.name
    has_begun = copy.is_file() and bool(published(Path(run.run_dir)))
    try:
        if not has_begun and source.resolve() != copy.resolve():
            with replaced_atomically(copy) as temporary:
                shutil.copyfile(source, temporary)
    except OSError as error:
        raise ConfigError([f"data.tokenizer={source}: cannot be copied to {copy}: {error}"]) from None
    return copy


def _visible(folder: Path) -> list[Path]:
    """What lies in a folder, without the remains of an interrupted start."""
    return [path for path in folder.iterdir() if not path.name.startswith(".") and path.name != LEASE]


def _refuse_other_run(config: Path, run: RunConfig) -> None:
    differences = [
        f"{key}={ours!r}, but {run.run_dir} is a run with {theirs!r}: use that, or another run_dir"
        for key, ours, theirs in other_identity(read_recipe(config), run)
    ]
    if differences:
        raise ConfigError(differences)


def other_identity(other: RunConfig, run: RunConfig) -> list[tuple[str, Any, Any]]:
    """(key, value of `run`, value of `other`) of what makes them two runs."""
    found = differences(run, other)
    return [
        (key, ours, theirs)
        for top in IDENTITY
        for key, ours, theirs in found
        if f"{key}.".startswith(f"{top}.")
        and key not in ORIGIN
        and not (key in PATHS and _same_place(ours, theirs))
    ]


def differences(run: RunConfig, other: RunConfig) -> list[tuple[str, Any, Any]]:
    """(key, value of `run`, value of `other`) of all that they do not share."""
    return _differences("", run.model_dump(mode="json"), other.model_dump(mode="json"))


def _same_place(ours: Any, theirs: Any) -> bool:
    return bool(ours and theirs) and Path(ours).resolve() == Path(theirs).resolve()


def read_recipe(config: Path) -> RunConfig:
    """The recipe of a run. Raises ConfigError when it is damaged, or of a later version."""
    try:
        tree = read_upgraded(config)
        if not isinstance(tree, dict) or not tree.keys() >= SECTIONS:
            raise ValueError(f"the sections {', '.join(sorted(SECTIONS))} are not all there")
        return RunConfig.model_validate(tree)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        kept = next((copy for path in published(config.parent) if (copy := path / CONFIG).is_file()), None)
        remedy = f"copy {kept} over it" if kept else "restore it"
        raise ConfigError([f"{config}: damaged: {error}; {remedy}, or choose another run_dir"]) from None


def _differences(key: str, ours: Any, theirs: Any) -> list[tuple[str, Any, Any]]:
    if isinstance(ours, dict) and isinstance(theirs, dict):
        names = sorted(ours.keys() | theirs.keys())
        return [
            found
            for name in names
            for found in _differences(f"{key}.{name}" if key else name, ours.get(name), theirs.get(name))
        ]
    return [] if ours == theirs else [(key, ours, theirs)]
