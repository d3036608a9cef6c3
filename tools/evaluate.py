"""Scores a checkpoint on shards: metrics as JSON, predictions in the benchmark's own submission format.

    python tools/evaluate.py --checkpoint runs/git_base --data data/coco/heldout --task caption eval.beams=4
    python tools/evaluate.py --checkpoint runs/vqa/checkpoints/best --data data/vqav2/heldout --task vqa
    torchrun --nproc-per-node 8 tools/evaluate.py --checkpoint runs/git2 --data data/coco/heldout \\
        --ds_config ds_configs/zero3.json

The checkpoint is a run or checkpoint of git_scale, a Hugging Face GIT or a Microsoft model.pt. Each sample is
answered once, whatever the number of processes. Under --out lie metrics.json, results.json (COCO's or VQA's format),
predictions.jsonl (with question, references and the values of metrics), intervals.json (95 %) and captions.png.
section.key=value changes what the checkpoint's recipe says: eval.beams, eval.max_new_tokens, train.micro_batch
(images per pass), data.resize ...

Exit codes: 0 done, 2 wrong usage, 130 stopped by a signal before the end.
"""

from __future__ import annotations

import argparse
import json
import logging
import os

from git_scale.console import output_folder, path, tool
from git_scale.errors import UserError
from git_scale.exit import run_and_exit
from git_scale.parallel.ds_config import read_ds_config
from git_scale.parallel.topology import is_first_rank, topology_from
from git_scale.processes import end_with, launcher_processes


@tool(speaks=is_first_rank)
def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    topology = topology_from(os.environ)
    if topology.is_launched:
        end_with(launcher_processes())
    logging.basicConfig(level=logging.INFO if topology.is_writer else logging.ERROR, format="%(message)s")
    if args.out.exists() and not args.force:
        raise UserError(f"--out {args.out}: exists already; --force writes over it, or choose another")
    # What takes torch along is imported after the arguments: neither --help nor a wrong one waits for it.
    from git_scale.evaluation.checkpoint_evaluation import evaluate_checkpoint
    from git_scale.evaluation.results import write_results

    evaluation = evaluate_checkpoint(
        args.checkpoint,
        args.data,
        args.task,
        args.tokenizer,
        args.overrides,
        read_ds_config(args.ds_config),
        topology,
    )
    if topology.is_writer:
        print(json.dumps(evaluation.metrics, indent=1), flush=True)
        write_results(args.out, evaluation)
    return 0


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--checkpoint", type=path, required=True, help="a checkpoint, or a run's folder")
    parser.add_argument("--data", type=path, required=True, metavar="SHARDS", help="folder of tar shards")
    parser.add_argument("--task", help="caption, vqa, ... (default: what it was trained for)")
    parser.add_argument("--tokenizer", type=path, help="for a checkpoint without one (Microsoft's)")
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
