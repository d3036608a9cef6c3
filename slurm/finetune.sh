#!/usr/bin/env bash
# Fine-tunes a GIT on one node; --config finetune_vqa for questions:
#
#   sbatch --time=12:00:00 slurm/finetune.sh init_from=runs/git2 [section.key=value ...]
#   sbatch --time=12:00:00 slurm/finetune.sh --config finetune_vqa init_from=runs/git2
#
# Any line below is overridden by the same option before the script's name, and the recipe or DeepSpeed JSON by another
# --config or --ds_config after it. docs/slurm.md has the rest.
#SBATCH --job-name=git-finetune
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=8
#SBATCH --mem=0
#SBATCH --output=slurm-%x-%j.out
#SBATCH --open-mode=append
#SBATCH --requeue
#SBATCH --signal=USR1@300

source slurm/run.sh || { echo "no checkout in $PWD: submit from its root, or with sbatch --chdir=ROOT" >&2; exit 2; }
run tools/finetune.py --config finetune_caption --ds_config ds_configs/zero3.json "$@"
