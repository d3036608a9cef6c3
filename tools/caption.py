"""Captions images and videos with a trained model, or answers questions about them.

    python tools/caption.py --checkpoint runs/demo photo.jpg folder/of/pictures clip.mp4
    python tools/caption.py --checkpoint runs/vqa --question "what colour?" --question "how many?" --json *.jpg

The checkpoint is a run or checkpoint of git_scale, an imported model, a Hugging Face or a Microsoft GIT. Folders are
searched to the bottom. Results come on stdout in the order of the images; what cannot be used is named on stderr
and does not stop the others. Exit code 2 when nothing could be captioned.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

from tqdm import tqdm

import git_scale
from git_scale.console import add_weights, path, tool, whole
from git_scale.data.images import ENDINGS as IMAGE_ENDINGS
from git_scale.data.video import ENDINGS as VIDEO_ENDINGS
from git_scale.errors import DataError
from git_scale.paths import ADDRESS, expanded

if TYPE_CHECKING:
    from git_scale.data.clips import Clip

BATCH = 16
THREADS = 4  # that read and resize: one photograph of 12 megapixels takes 100 ms


@dataclass(frozen=True)
class CaptionInput:
    """Names an image to caption, or says why it is none."""

    name: str
    path: Path = Path()
    problem: str = ""


@tool
def main(argv: list[str] | None = None) -> int:
    args = _parse(argv)
    model = git_scale.load(args.checkpoint, args.device, tokenizer=args.tokenizer, weights=args.weights)
    inputs = [found for name in args.images for found in find_inputs(name)]
    return 0 if caption(model, inputs, args.question, args.beams, args.json) else 2


def find_inputs(name: str) -> Iterator[CaptionInput]:
    """The image or video of a path or file:// address, or all of them in a folder and below, sorted."""
    try:
        path = _path_of(name)
    except ValueError as error:
        yield CaptionInput(name, problem=str(error))
        return
    if not path.is_dir():
        yield CaptionInput(name, path)
        return
    endings = (*IMAGE_ENDINGS, *VIDEO_ENDINGS)
    files = sorted(file for file in path.rglob("*") if file.suffix.lower() in endings and file.is_file())
    if not files:
        yield CaptionInput(name, problem=f"no file in this folder ends in {' '.join(endings)}")
    yield from (CaptionInput(str(file), file) for file in files)


def _path_of(name: str) -> Path:
    """Raises ValueError for what leads to no file of this machine."""
    address = ADDRESS.fullmatch(name)
    if address is None:
        return Path(expanded(name))
    if address[1].lower() != "file":
        raise ValueError("not downloaded here: fetch it first (curl -O), then name the file")
    if address[2] not in ("", "localhost"):
        raise ValueError(f"a file of the machine {address[2]}: copy it here first")
    return Path(unquote(address[3]))


def caption(
    model: git_scale.ImageToText, inputs: list[CaptionInput], questions: list[str], beams: int, as_json: bool
) -> int:
    """Prints what the model says of each input; returns of how many it could."""
    done = 0
    pool = ThreadPoolExecutor(THREADS)
    try:
        with tqdm(total=len(inputs), unit="image", disable=None) as bar:  # None: shown on a terminal only
            for batch in _batches(_opened(model, inputs, pool)):
                clips = [opened for _, opened in batch if not isinstance(opened, str)]
                said = iter(ask(model, clips, questions, beams))
                for found, opened in batch:
                    if isinstance(opened, str):
                        tqdm.write(f"{found.name}: {opened}", file=sys.stderr)
                    else:
                        tqdm.write(_format(found.name, next(said), as_json))
                sys.stdout.flush()
                done += len(clips)
                bar.update(len(batch))
    finally:
        pool.shutdown(cancel_futures=True)
    return done


def ask(
    model: git_scale.ImageToText, clips: list[Clip], questions: list[str], beams: int
) -> list[dict[str, Any]]:
    """For each clip {"caption": ...}, or with questions {"answers": [{"question": ..., "answer": ...}]}."""
    if not questions:
        return [{"caption": text} for text in model.caption(clips, beams=beams)]
    answers = model.answer(clips, [questions] * len(clips), beams=beams)
    return [
        {"answers": [{"question": q, "answer": a} for q, a in zip(questions, row, strict=True)]}
        for row in answers
    ]


def _opened(
    model: git_scale.ImageToText, inputs: list[CaptionInput], pool: ThreadPoolExecutor
) -> Iterator[tuple[CaptionInput, Clip | str]]:
    """Each input as the model sees it, or what is wrong with it; the next ones are read meanwhile."""

    def prepare(found: CaptionInput) -> Clip | str:
        try:
            return found.problem or model.prepare(found.path)
        except DataError as error:
            return str(error).removeprefix(f"{found.path}: ")

    waiting: deque[tuple[CaptionInput, Future[Clip | str]]] = deque()
    for found in inputs:
        waiting.append((found, pool.submit(prepare, found)))
        if len(waiting) > 2 * BATCH:
            first, future = waiting.popleft()
            yield first, future.result()
    for found, future in waiting:
        yield found, future.result()


def _batches(items: Iterable[Any]) -> Iterator[list[Any]]:
    batch = []
    for item in items:
        batch.append(item)
        if len(batch) == BATCH:
            yield batch
            batch = []
    if batch:
        yield batch


def _format(name: str, said: dict[str, Any], as_json: bool) -> str:
    if as_json:
        return json.dumps({"image": name, **said})
    if "answers" in said:
        return "\n".join(f"{name}: {item['question']} {item['answer']}" for item in said["answers"])
    return f"{name}: {said['caption']}"


def _parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--checkpoint", type=path, required=True, help="a model's folder or file")
    parser.add_argument("--question", action="append", default=[], help="instead of a caption; repeatable")
    parser.add_argument(
        "--beams", type=whole(1), default=4, help="width of the search (%(default)s; 1: greedy)"
    )
    parser.add_argument("--json", action="store_true", help="one JSON object per image")
    parser.add_argument("--device", help="default: a GPU where there is one")
    parser.add_argument("--tokenizer", type=path, help="for a checkpoint without one (Microsoft's)")
    add_weights(parser)
    parser.add_argument("images", nargs="+", metavar="PICTURE", help="images, videos, folders")
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())
