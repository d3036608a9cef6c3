# How one tool runs on all tasks of a job, and what its exit code leads to. Sourced by the batch scripts.
set -uo pipefail

RESUMABLE=75                                     # stopped early, to go on (git_scale/training/outcome.py)
DATA_UNUSABLE=76                                 # too many samples cannot be used: the next start would meet them again
MAX_RESTARTS="${GIT_SCALE_MAX_RESTARTS:-100}"    # requeues after which a job stays ended

# run TOOL ARGUMENT...: ends the script with the tool's exit code, or requeues the job where that is 75.
run() {
    prepare
    launch "$@"
    ended 0
}

# Once, before what is launched.
prepare() {
    check_tasks
    find_python
    source slurm/env.sh
}

# launch TOOL ARGUMENT...: comes back when the tool has ended with 0; else the job is requeued, or the script ends.
launch() {
    local restarts="${SLURM_RESTART_COUNT:-0}" code=0
    echo "== $(date '+%F %T') job $SLURM_JOB_ID ($SLURM_JOB_NAME), start $((restarts + 1)): $SLURM_NTASKS tasks on" \
        "$(scontrol show hostnames "$SLURM_JOB_NODELIST" | paste -sd ' '): ${PYTHON[*]} $*"

    # One task per GPU, but no task bound to one (--gpus-per-task, --gpu-bind): NCCL's direct path between the GPUs of
    # a node needs each process to see its peers' devices; rank picks device SLURM_LOCALID.
    # kill-on-bad-exit=0, wait: tasks that end with 2 or 75 do so within seconds of one another. With 1, the first of
    #   them ends the others by SIGTERM: srun's code is then 143, and a stopped run looks like a crash. After a crash
    #   the others wait for a dead rank, and srun ends them.
    # distribution: neighbouring ranks, which form a tensor-parallel group, share a node.
    # cpus-per-task: since SLURM 22.05 srun no longer takes it over from sbatch.
    # export: after `sbatch --export=...` srun would pass on that list alone.
    srun --kill-on-bad-exit=0 --wait=60 --distribution=block --export=ALL \
        --cpus-per-task="${SLURM_CPUS_PER_TASK:-1}" "${PYTHON[@]}" "$@" || code=$?
    rm -rf "$TORCH_EXTENSIONS_DIR"

    if ((code == 0)); then
        return
    elif ((code == RESUMABLE)); then
        requeue "$restarts"
    elif ((code == DATA_UNUSABLE)); then
        echo "== not requeued: the data cannot be used (see above); with other data or another data.max_bad_share the" \
            "same sbatch command goes on from the checkpoint"
    fi
    ended "$code"
}

ended() {
    echo "== $(date '+%F %T') job $SLURM_JOB_ID ended with exit code $1"
    exit "$1"
}

# Puts the job back into the queue, which ends this script; returns where it must not be.
requeue() {
    if (($1 >= MAX_RESTARTS)); then
        echo "== not requeued after $1 restarts (GIT_SCALE_MAX_RESTARTS): the same sbatch command goes on"
        return
    fi
    local job="$SLURM_JOB_ID"
    # The first job of an array has the array's own number, by which all its jobs would be requeued.
    [[ -n ${SLURM_ARRAY_JOB_ID:-} ]] && job="${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID"
    echo "== $(date '+%F %T') job $job stopped early: asks for a requeue"
    if scontrol requeue "$job"; then
        exit "$RESUMABLE"
    fi
    echo "== not requeued (see above): the same sbatch command goes on"
}

# As many tasks as GPUs on a node: otherwise GPUs idle, or two ranks share one, which NCCL refuses minutes later.
check_tasks() {
    local gpus="${SLURM_GPUS_PER_NODE:-0}" tasks="${SLURM_NTASKS_PER_NODE:-1}"
    gpus="${gpus##*:}" # after a type, as in h100:8
    if ((gpus > 0 && gpus != tasks)); then
        refuse "$gpus GPUs but $tasks tasks per node: submit with --ntasks-per-node=$gpus"
    fi
}

# PYTHON: the words of $GIT_SCALE_PYTHON, or the checkout's .venv, or python3.
find_python() {
    local default=python3 missing
    [[ -x .venv/bin/python ]] && default=.venv/bin/python
    read -ra PYTHON <<< "${GIT_SCALE_PYTHON:-$default}"
    missing=$("${PYTHON[@]}" -c 'from importlib.util import find_spec
needed = "torch", "deepspeed", "timm", "pydantic", "webdataset", "safetensors"
print(*(name for name in needed if find_spec(name) is None))') || refuse "${PYTHON[*]} does not run (see above)"
    if [[ -n $missing ]]; then
        refuse "${PYTHON[*]} has no $missing: set GIT_SCALE_PYTHON to the interpreter that git_scale is installed for"
    fi
}

refuse() {
    echo "$1" >&2
    exit 2
}
