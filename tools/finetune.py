"""Fine-tune a GIT: captions, or answers to questions; the same command resumes a run that was stopped.

    deepspeed --num_gpus 8 tools/finetune.py --ds_config ds_configs/zero3.json --config finetune_caption \\
        init_from=runs/git_base data.train=data/coco/train data.heldout=data/coco/heldout
    deepspeed --num_gpus 8 tools/finetune.py --ds_config ds_configs/zero3.json --config finetune_vqa \\
        init_from=models/git-base-hf data.train=data/vqav2/train model.encoder.image_size=480 \\
        'train.freeze=[encoder.*]'

init_from is a run or checkpoint of git_scale, a folder of a Hugging Face GIT, a Microsoft model.pt, or an image
encoder that tools/convert_checkpoint.py has imported. The model and its tokenizer come from there; the recipe and
section.key=value lie above. The loop is that of tools/pretrain.py, and so are the exit codes.
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

    return run_training(args, from_checkpoint=True)


if __name__ == "__main__":
    run_and_exit(main)
