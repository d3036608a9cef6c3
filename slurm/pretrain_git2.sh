#!/usr/bin/env bash
# Pretrains GIT2 (5.1B parameters) on 128 GPUs under ZeRO-3:
#
#   sbatch --time=24:00:00 slurm/pretrain_git2.sh model.encoder.start=FOLDER [section.key=value ...]
#
# FOLDER: a DaViT of that size, contrastively pretrained as the paper's, of which none is published; or scratch, with
# rates for that (git_scale/configs/git2.yaml).
#
# Any line below is overridden by the same option before the script's name, and the recipe or DeepSpeed JSON by another
# --config or --ds_config after it. docs/slurm.md has the rest.
#SBATCH --job-name=git2
#SBATCH --nodes=16
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=8
#SBATCH --mem=0
#SBATCH --output=slurm-%x-%j.out
#SBATCH --open-mode=append
#SBATCH --requeue
#SBATCH --signal=USR1@300

source slurm/run.sh || { echo "no checkout in $PWD: submit from its root, or with sbatch --chdir=ROOT" >&2; exit 2; }
run tools/pretrain.py --config git2 --ds_config ds_configs/zero3_wide.json "$@"
