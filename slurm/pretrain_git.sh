#!/usr/bin/env bash
# Pretrains GIT (the paper's size, 0.7B parameters) on 64 GPUs; git_base and git_large are two further recipes:
#
#   sbatch --time=24:00:00 slurm/pretrain_git.sh [section.key=value ...]
#   sbatch --time=24:00:00 --nodes=2 slurm/pretrain_git.sh --config git_base
#
# The image encoder is imported before, into the folder under model.encoder.start of the recipe (README, Pretrain).
#
# Any line below is overridden by the same option before the script's name, and the recipe or DeepSpeed JSON by another
# --config or --ds_config after it. docs/slurm.md has the rest.
#SBATCH --job-name=git
#SBATCH --nodes=8
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=8
#SBATCH --mem=0
#SBATCH --output=slurm-%x-%j.out
#SBATCH --open-mode=append
#SBATCH --requeue
#SBATCH --signal=USR1@300

source slurm/run.sh || { echo "no checkout in $PWD: submit from its root, or with sbatch --chdir=ROOT" >&2; exit 2; }
run tools/pretrain.py --config git_huge --ds_config ds_configs/zero1.json "$@"
