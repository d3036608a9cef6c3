#!/usr/bin/env bash
# Scores a checkpoint on one node; metrics and predictions lie in evaluation-JOB unless --out says otherwise:
#
#   sbatch --time=2:00:00 slurm/evaluate.sh --checkpoint runs/git2 --data data/coco/heldout [section.key=value ...]
#
# Any line below is overridden by the same option before the script's name. Add --ds_config ds_configs/zero3.json for a
# model that no single GPU holds. docs/slurm.md has the rest.
#SBATCH --job-name=git-evaluate
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=8
#SBATCH --mem=0
#SBATCH --output=slurm-%x-%j.out
#SBATCH --open-mode=append

source slurm/run.sh || { echo "no checkout in $PWD: submit from its root, or with sbatch --chdir=ROOT" >&2; exit 2; }
run tools/evaluate.py --out "evaluation-$SLURM_JOB_ID" "$@"
