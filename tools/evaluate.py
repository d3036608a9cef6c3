"""Scores a checkpoint on shards: metrics as JSON, predictions in the benchmark's own submission format.

    python tools/evaluate.py --checkpoint runs/git_base --data data/coco/heldout --task caption eval.beams=4
    python tools/evaluate.py --checkpoint runs/vqa/checkpoints/best --data data/vqav2/heldout --task vqa
    torchrun --nproc-per-node 8 tools/evaluate.py --checkpoint runs/git2 --data data/coco/heldout \\
        --ds_config ds_configs/zero3.json
    python tools/evaluate.py compare results/a results/b --data data/coco/heldout
    python tools/evaluate.py check vqa results/vqa/submission.json --data data/vqav2/test

The checkpoint is a run or checkpoint of git_scale, a Hugging Face GIT or a Microsoft model.pt. Each sample is
answered once, whatever the number of processes. Under --out lie metrics.json, intervals.json (95 %), results.json (in
the benchmark's format), predictions.jsonl (with question, references and the values of metrics), captions.png and
page.html, which a browser opens. section.key=value changes what the checkpoint's recipe says: eval.beams,
eval.max_new_tokens, train.micro_batch (images per pass), data.resize ... eval.submission=FORM adds the file that a
benchmark's server takes, and `check` says what it would refuse about one.

Exit codes: 0 done, 1 done, but the server would refuse the file of eval.submission (stderr says why), 2 wrong usage
or a file that is refused, 130 stopped by a signal before the end. Everything else is written before METEOR and SPICE
are worked out, and kept when a stop ends those.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from git_scale.console import add_weights, output_file, output_folder, path, tool
from git_scale.errors import DataError, UserError
from git_scale.exit import run_and_exit
from git_scale.parallel.ds_config import read_ds_config
from git_scale.parallel.topology import is_first_rank, topology_from
from git_scale.processes import end_with, launcher_processes
from git_scale.stop import listening

if TYPE_CHECKING:
    from git_scale.evaluation.evaluator import EvaluationResult

WOULD_BE_REFUSED = 1


@tool(speaks=is_first_rank)
def main(argv: list[str] | None = None) -> int:
    given = sys.argv[1:] if argv is None else argv
    if given[:1] == ["compare"]:
        return compare(given[1:])
    if given[:1] == ["check"]:
        return check(given[1:])
    args = parse_args(given)
    topology = topology_from(os.environ)
    if topology.is_launched:
        end_with(launcher_processes())
    logging.basicConfig(level=logging.INFO if topology.is_writer else logging.ERROR, format="%(message)s")
    if args.out.exists() and not args.force:
        raise UserError(f"--out {args.out}: exists already; --force writes over it, or choose another")
    # What takes torch along is imported after the arguments: neither --help nor a wrong one waits for it.
    from git_scale.evaluation.checkpoint_evaluation import evaluate_checkpoint

    evaluation = evaluate_checkpoint(
        args.checkpoint,
        args.data,
        args.task,
        args.tokenizer,
        args.overrides,
        read_ds_config(args.ds_config),
        topology,
        args.weights,
    )
    return written(args.out, evaluation) if topology.is_writer else 0


def written(out: Path, evaluation: EvaluationResult) -> int:
    """Writes all results, then those that wait for Java; returns the exit code."""
    from git_scale.evaluation.evaluator import with_final_metrics
    from git_scale.evaluation.results import write_results, write_scores

    first = evaluation.metrics
    try:
        is_taken = write_results(out, evaluation)
        evaluation = with_final_metrics(evaluation)
        if evaluation.metrics != first:
            write_scores(out, evaluation)
    finally:  # also on a full disk, and when a stop ended the wait
        print(json.dumps(evaluation.metrics, indent=1), flush=True)
    return 0 if is_taken else WOULD_BE_REFUSED


def compare(argv: list[str]) -> int:
    """Two folders of results: which is better, by how much, and how sure that is."""
    parser = argparse.ArgumentParser(prog="evaluate.py compare", description=compare.__doc__)
    parser.add_argument("first", type=path, metavar="A", help="a folder that --out named")
    parser.add_argument("second", type=path, metavar="B", help="another, of the same data")
    parser.add_argument(
        "--data", type=path, metavar="SHARDS", help="that both are of, for the images of the page"
    )
    parser.add_argument(
        "--out", type=output_file, default="comparison.html", help="page of what differs (%(default)s)"
    )
    args = parser.parse_args(argv)
    from git_scale.evaluation.compare import describe_differences, write_comparison

    found = write_comparison(args.out, args.first, args.second, args.data)
    print(describe_differences(args.first, args.second, found))
    print(f"\n{args.out}: the texts in which they differ")
    return 0


def check(argv: list[str]) -> int:
    """A file for a benchmark's server: whether it has one answer of the right form for everything in the data."""
    from git_scale.tasks import SUBMISSIONS

    parser = argparse.ArgumentParser(prog="evaluate.py check", description=check.__doc__)
    parser.add_argument("form", choices=list(SUBMISSIONS), help="docs/tasks.md describes them")
    parser.add_argument("file", type=path, metavar="FILE", help="written by evaluate.py or elsewhere")
    parser.add_argument("--data", type=path, required=True, metavar="SHARDS", help="all that the server asks")
    args = parser.parse_args(argv)
    from git_scale.data.class_names import NAMES_FILE
    from git_scale.data.store import open_store
    from git_scale.tasks.submissions import problems_of

    form, store = SUBMISSIONS[args.form], open_store(args.data)
    try:
        asked = listening(lambda: form.asked(store, range(len(store)), args.data / NAMES_FILE))
    except DataError as error:
        raise DataError(f"--data {args.data}: {error}") from None
    if problems := problems_of(form, args.file, asked):
        raise DataError("\n".join([f"{args.file}: a server would refuse it", *problems]))
    print(f"{args.file}: an answer to each of {len(asked):,}")
    return 0


def parse_args(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--checkpoint", type=path, required=True, help="a checkpoint, or a run's folder")
    parser.add_argument("--data", type=path, required=True, metavar="SHARDS", help="folder of tar shards")
    parser.add_argument("--task", help="caption, vqa, ... (default: what it was trained for)")
    parser.add_argument("--tokenizer", type=path, help="for a checkpoint without one (Microsoft's)")
    add_weights(parser)
    parser.add_argument("--out", type=output_folder, default="evaluation", help="new folder (%(default)s)")
    parser.add_argument("--force", action="store_true", help="write over --out")
    parser.add_argument(
        "--ds_config", type=path, metavar="JSON", help="ZeRO-3 splits the model over the processes"
    )
    parser.add_argument("--local_rank", help=argparse.SUPPRESS)  # the deepspeed launcher passes it
    parser.add_argument("overrides", nargs="*", metavar="section.key=value")
    return parser.parse_intermixed_args(argv)


if __name__ == "__main__":
    run_and_exit(main)
