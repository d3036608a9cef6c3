#!/usr/bin/env bash
# Runs a study, one job of an array for each run and for what goes on from it:
#
#   python tools/study.py ablations --list                       # also says the array's size
#   sbatch --time=12:00:00 --array=0-9 slurm/study.sh ablations [section.key=value ...]
#   python tools/study.py ablations --report                     # table and pictures of what has ended
#
# Any line below is overridden by the same option before the script's name. docs/studies.md says what a study's file
# holds, docs/slurm.md has the rest.
#SBATCH --job-name=git-study
#SBATCH --array=0-9
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=8
#SBATCH --mem=0
#SBATCH --output=slurm-%x-%A_%a.out
#SBATCH --open-mode=append
#SBATCH --requeue
#SBATCH --signal=USR1@300

source slurm/run.sh || { echo "no checkout in $PWD: submit from its root, or with sbatch --chdir=ROOT" >&2; exit 2; }
prepare
commands=$("${PYTHON[@]}" tools/study.py "$@" --commands "$SLURM_ARRAY_TASK_ID") || ended $?
while read -r command <&3; do # not from the standard input, which srun reads
    declare -a words="($command)" # a command's words are quoted for the shell
    launch "${words[@]}" --ds_config ds_configs/zero3.json
done 3<<< "$commands"
ended 0
