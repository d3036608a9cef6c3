#!/usr/bin/env bash
# Runs a study, one job of an array for each run and for what goes on from it; by default the shipped ablations:
#
#   python tools/study.py ablations --list                       # the runs, and the line to submit with its array
#   python tools/study.py ablations --data                       # once: the demo's data, which a study of it needs
#   sbatch --time=2:00:00 slurm/study.sh
#   sbatch --time=2:00:00 --array=0-37 slurm/study.sh scaling [section.key=value ...]
#   python tools/study.py ablations --report                     # table and pictures of what has ended
#
# Any line below is overridden by the same option before the script's name. docs/studies.md says what a study's file
# holds, docs/slurm.md has the rest.
#SBATCH --job-name=git-study
#SBATCH --array=0-9
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=2
#SBATCH --gpus-per-node=2
#SBATCH --cpus-per-task=8
#SBATCH --output=slurm-%x-%A_%a.out
#SBATCH --open-mode=append
#SBATCH --requeue
#SBATCH --signal=USR1@300

source slurm/run.sh || { echo "no checkout in $PWD: submit from its root, or with sbatch --chdir=ROOT" >&2; exit 2; }
(($#)) || set -- ablations
prepare
commands=$("${PYTHON[@]}" tools/study.py "$@" --commands "$SLURM_ARRAY_TASK_ID") || ended $?
while read -r command <&3; do # not from the standard input, which srun reads
    [[ -n $command ]] || continue # nothing is left to run
    declare -a words="($command)" # a command's words are quoted for the shell
    launch "${words[@]}" --ds_config ds_configs/zero3.json
done 3<<< "$commands"
ended 0
