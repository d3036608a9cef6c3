"""Rows of a folder of classes, as ImageNet and torchvision have it: SOURCE/CLASS/IMAGE, or one folder and a list.

    train/n01440764/a.JPEG    --names LOC_synset_mapping.txt     -> "tench"
    val/b.JPEG                --labels LOC_val_solution.csv      -> the class of each image
    test/c.JPEG               --unlabelled LOC_sample_submission.csv -> none: an evaluation asks for it

The name of a class is what a model learns to say, so it is to be readable and no other class's.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from git_scale.data.builders.class_lists import is_there, read_list, readable
from git_scale.data.builders.formats import AnnotationFormat, FormatOption
from git_scale.data.builders.json_records import MalformedRecordError, read_object
from git_scale.data.builders.source_images import SourceRow
from git_scale.data.builders.writer import Skipped
from git_scale.data.captions import HALVES, clean_caption
from git_scale.data.class_names import NAMES_FILE, class_names_text
from git_scale.data.images import ENDINGS
from git_scale.errors import DataError

LISTED_AGAIN, NO_IMAGE = "listed again", "not named as a JPEG, PNG or WebP image"

# Classes of ImageNet whose first name is another one's too (GIT's own list of readable names).
READABLE = {
    "n02012849": "crane bird",
    "n03126707": "crane machine",
    "n02113186": "cardigan dog",
    "n02963159": "cardigan jacket",
    "n03710637": "maillot tights",
    "n03710721": "maillot bathing suit",
}


def read_classes(given: Mapping[str, Any]) -> list[SourceRow | Skipped]:
    """A row per image, with the name of its class as its caption; of a class without one image a Skipped.

    Before them what the folders hold beside images, and what is listed again. `shots` of each class alone, drawn by
    `seed`. Raises DataError for names that are not there or stand twice, and for an image of two classes.
    """
    source: Path = given["source"]
    if given["unlabelled"]:
        return _unlabelled(given)
    classes, skipped = _labelled(given["labels"], source) if given["labels"] else _in_folders(source)
    names = names_of(sorted(classes), given["names"])
    found = set(_with_an_image(classes, source))
    shots: int | None = given["shots"]
    rows: list[SourceRow | Skipped] = [
        *skipped,
        *(Skipped(key, "class without an image", "class") for key in names if key not in found),
    ]
    for key in sorted(classes):
        files = sorted(classes[key])
        if shots is not None:
            files = sorted(random.Random(f"{given['seed'] or 0} {key}").sample(files, min(shots, len(files))))
        rows += [
            SourceRow(file, (names[key],), {"image_id": Path(file).stem, "class": key}) for file in files
        ]
    return rows


def names_of(keys: Iterable[str], path: Path | None) -> dict[str, str]:
    """Class -> its name: from the file, or the class's own with blanks for `_`.

    Raises DataError for a class that the file does not name, for two of one name, and for what UTF-8 cannot write.
    """
    names = (
        _one_name_each(path) if path else {key: clean_caption(key.replace("_", " ")) or key for key in keys}
    )
    if missing := [key for key in keys if key not in names]:
        raise DataError(f"{path}: no name for {len(missing)} classes of the folder, as {missing[0]!r:.200}")
    first: dict[str, str] = {}
    for key, name in names.items():
        _refuse_half(path, key)
        if (other := first.setdefault(name.casefold(), key)) != key:
            raise DataError(
                f"{path or 'folders'}: the classes {other!r:.200} and {key!r:.200} are both named {name!r:.200}: no"
                " text would tell them apart; give one another name (--names FILE, a line CLASS<TAB>NAME for each)"
            )
    return names


def _refuse_half(path: Path | None, text: str) -> None:
    """Raises DataError for what UTF-8 cannot write: a folder's name in another encoding has such characters."""
    if HALVES.search(text):
        raise DataError(
            f"{path or 'folders'}: {text!r:.200} cannot be written as UTF-8; give it another name"
        )


def _one_name_each(path: Path) -> dict[str, str]:
    """Class -> its name. Raises DataError for a class with two."""
    names: dict[str, str] = {}
    for key, name in _read_names(path):
        if (other := names.setdefault(key, name)) != name:
            raise DataError(
                f"{path}: the class {key!r:.200} is named {other!r:.200} and {name!r:.200}; remove one of the two"
            )
    return names


def class_names(given: Mapping[str, Any]) -> dict[str, str]:
    """What is written beside the shards: the names with their classes, one per line, for data.class_names.

    Those of --names or of the folders, or else those of --labels of which an image is there. Nothing for images
    without labels and without --names.
    """
    if given["unlabelled"]:
        names = names_of([], given["names"])
    elif given["labels"]:
        classes, _ = _labelled(given["labels"], given["source"])
        names = names_of(_with_an_image(classes, given["source"]), given["names"])
    else:
        names = names_of(sorted(_folders(given["source"])), given["names"])
    return {NAMES_FILE: class_names_text(names)} if names else {}


def _with_an_image(classes: Mapping[str, list[str]], source: Path) -> list[str]:
    """The classes of which one is there, sorted."""
    return sorted(key for key, files in classes.items() if any(is_there(source, file) for file in files))


def _unlabelled(given: Mapping[str, Any]) -> list[SourceRow | Skipped]:
    """The images that a list names, in its order, with the size that a server's boxes need.

    What stands behind a name is not read: of Kaggle's sample it is no label.
    """
    path: Path = given["unlabelled"]
    if wrong := [f"--{name}" for name in ("labels", "shots", "seed") if given[name] is not None]:
        raise DataError(
            f"--unlabelled {path} and {wrong[0]}: images without labels have no class; leave one out"
        )
    rows: dict[str, SourceRow] = {}
    again: list[SourceRow | Skipped] = []
    for _, file, _ in read_list(path, given["source"]):
        if file in rows:
            again.append(Skipped(file, LISTED_AGAIN))
        rows[file] = SourceRow(file, (), {"image_id": Path(file).stem}, is_asked=True, is_measured=True)
    return [*again, *rows.values()]


def _folders(source: Path) -> dict[str, Path]:
    """Those of classes, by their names."""
    found = {item.name: item for item in source.iterdir() if item.is_dir() and not item.name.startswith(".")}
    if not found:
        raise DataError(
            f"{source}: no folders of classes in it; for one folder of images give --labels FILE, or"
            " --unlabelled FILE"
        )
    return found


def _in_folders(source: Path) -> tuple[dict[str, list[str]], list[Skipped]]:
    """The images of each class, and all other files."""
    folders = _folders(source)
    classes: dict[str, list[str]] = {name: [] for name in folders}
    skipped = [
        Skipped(item.name, "hidden, or no folder of a class")
        for item in source.iterdir()
        if item.name not in folders
    ]
    for name, folder in folders.items():
        for file in folder.rglob("*"):
            within = file.relative_to(source).as_posix()
            if file.suffix.lower() in ENDINGS:
                classes[name].append(within)
            elif not file.is_dir():
                skipped.append(Skipped(within, NO_IMAGE))
    return classes, sorted(skipped)


def _labelled(path: Path, source: Path) -> tuple[dict[str, list[str]], list[Skipped]]:
    """From lines `FILE CLASS`, or Kaggle's LOC_val_solution.csv (ImageId,PredictionString)."""
    class_of: dict[str, str] = {}
    skipped: list[Skipped] = []
    for number, file, rest in read_list(path, source):
        if len(rest) != 1 or not (key := rest[0].strip()):
            raise DataError(
                f"{path}, line {number}: FILE and CLASS are expected, found {','.join([file, *rest])[:60]!r}"
            )
        if file not in class_of:
            class_of[file] = key
        elif class_of[file] == key:
            skipped.append(Skipped(file, LISTED_AGAIN))
        else:
            raise DataError(
                f"{path}, line {number}: {file!r:.200} is of the class {key!r:.200}, and of {class_of[file]!r:.200}"
                " above; remove one of the two"
            )
    classes = defaultdict[str, list[str]](list)
    for file, key in class_of.items():
        classes[key].append(file)
    return classes, skipped


def _read_names(path: Path) -> Iterator[tuple[str, str]]:
    """Of JSON {"CLASS": "name"} or {"0": ["CLASS", "name"]}; of lines `CLASS<TAB>NAME` or `CLASS name, another`."""
    if path.suffix.lower() == ".json":
        tree = _json(path)
        pairs = [value if isinstance(value, list) else [key, value] for key, value in tree.items()]
    else:
        pairs = [_pair_of(line) for line in readable(path, "names") if line.strip()]
    for pair in pairs:
        if len(pair) != 2 or not all(isinstance(part, str) and part.strip() for part in pair):
            raise DataError(f"{path}: a class and its name are expected, found {pair!r:.200}")
        _refuse_half(path, pair[1])  # else it would be dropped
        key = pair[0].strip()
        name = clean_caption(READABLE.get(key, pair[1].replace("_", " ")))
        if name is None:
            raise DataError(f"{path}: the name of {key!r:.200} has no visible character")
        yield key, name


def _pair_of(line: str) -> list[str]:
    if "\t" in line:
        return line.split("\t")
    key, _, names = line.strip().partition(" ")
    return [key, names.split(",")[0]]


def _json(path: Path) -> dict[str, Any]:
    try:
        return read_object(path)
    except MalformedRecordError as error:
        raise DataError(f'{path}: {error}; an object {{"CLASS": "name"}} is expected') from None


FORMAT = AnnotationFormat(
    "folders of classes, or one folder and --labels; each image's caption is its class's name",
    (
        FormatOption(
            "names", "of the classes: LOC_synset_mapping.txt, JSON or lines CLASS<TAB>NAME", is_file=True
        ),
        FormatOption("labels", "of the images: LOC_val_solution.csv or lines FILE CLASS", is_file=True),
        FormatOption(
            "unlabelled", "images without labels: LOC_sample_submission.csv or lines FILE", is_file=True
        ),
        FormatOption("shots", "take so many images of each class", least=1),
        FormatOption("seed", "by which they are drawn (0)", least=0),
    ),
    read_classes,
    class_names,
)
