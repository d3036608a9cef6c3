"""Pretrain a GIT on image-text shards; the same command resumes a run that was stopped.

    python tools/pretrain.py --config demo --ds_config ds_configs/zero3.json
    deepspeed --num_gpus 8 tools/pretrain.py --config git_base --ds_config ds_configs/zero1.json \\
        data.train=/data/cc12m train.micro_batch=64
    torchrun --nproc-per-node 2 tools/pretrain.py --config demo --ds_config ds_configs/zero3.json
    srun python tools/pretrain.py --config git_large --ds_config ds_configs/zero2.json

Exit codes: 0 done, 2 wrong usage or configuration, 75 stopped early but resumable.
"""

from __future__ import annotations

from git_scale.console import tool
from git_scale.exit import run_and_exit
from git_scale.parallel.topology import is_first_rank
from git_scale.training.arguments import parse_training_arguments


@tool(speaks=is_first_rank)
def main(argv: list[str] | None = None) -> int:
    args = parse_training_arguments(__doc__ or "", argv)
    # What takes torch along is imported after the arguments: neither --help nor a wrong one waits for it.
    from git_scale.training.cli import run_training

    return run_training(args)


if __name__ == "__main__":
    run_and_exit(main)
