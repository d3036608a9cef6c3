# The environment of every task of a job, sourced by slurm/run.sh on the job's first node. Each variable has its reason;
# what is not here is left to the site and to the user (`sbatch --export=ALL,NAME=VALUE ...`).

# A rank that an outer launcher or a login shell left behind would win over srun's own (git_scale/parallel/topology.py).
unset RANK WORLD_SIZE LOCAL_RANK

# Where the ranks meet: the node that runs this script holds rank 0. NodeAddr is the address that SLURM itself reaches
# it by; a node's name need not resolve from the others.
MASTER_ADDR=$(scontrol show node "$SLURMD_NODENAME" | sed -n 's/.*NodeAddr=\([^ ]*\).*/\1/p')
export MASTER_ADDR

# Any port of this node that nobody listens on, anew at each start: one made from the job's id meets a neighbour's sooner or
# later. Below 32768, where Linux starts to hand out ports to outgoing connections.
until MASTER_PORT=$(shuf -i 20000-32767 -n 1) && ! (: < "/dev/tcp/127.0.0.1/$MASTER_PORT") 2> /dev/null; do :; done
export MASTER_PORT

# The checkout is what runs, installed or not.
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}"

# A line reaches the log when it is printed, also from a process that is killed a moment later.
export PYTHONUNBUFFERED=1

# Where each thread stood when a process dies of a signal: NCCL's watchdog ends a hung rank by SIGABRT, which otherwise
# leaves no trace of Python.
export PYTHONFAULTHANDLER=1

# The threads of one rank: its own cores. Without it torch and DeepSpeed's CPU Adam take all that the node shows, once
# per rank.
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-${SLURM_CPUS_PER_TASK:-1}}"

# Where DeepSpeed compiles its C++ parts (ZeRO-Offload has one). A folder of this start alone, because a compilation that
# was killed leaves a lock that later ones wait for without end; not in /tmp, where another user could be there first.
export TORCH_EXTENSIONS_DIR="${XDG_CACHE_HOME:-$HOME/.cache}/git_scale/$SLURM_JOB_ID-${SLURM_RESTART_COUNT:-0}"

# Compute nodes seldom reach the network: a file that is in no cache is an error at once, not after the retries of
# every rank. Fill the cache on the login node, or set 0.
export HF_HUB_OFFLINE="${HF_HUB_OFFLINE:-1}"

# NCCL says why it fails (its default is to say nothing), and its version.
export NCCL_DEBUG="${NCCL_DEBUG:-WARN}"

# torch's flight recorder (on by default) writes the last collectives of each rank when one times out: beside the log and
# by job, not into the home folder, where the next job writes over it. torch 2.13 still reads this older name.
export TORCH_NCCL_DEBUG_INFO_TEMP_FILE="$PWD/slurm-$SLURM_JOB_NAME-$SLURM_JOB_ID-nccl-rank-"

# Left out on purpose:
# CUDA_DEVICE_MAX_CONNECTIONS=1 lets megatron-core order its tensor-parallel all-reduce before the matmul beside it (its
#   core/tensor_parallel/layers.py), but it also puts ZeRO-3's prefetch in one queue with the compute it should hide
#   behind. Worth a measurement with parallel.tp > 1, of no use without. Nor does parallel.sequence need it: its gathering
#   and dividing are started before the products they run beside (git_scale/parallel/sequence.py), on NCCL's own stream.
# TORCH_NCCL_ASYNC_ERROR_HANDLING: torch's default (3: end the process) is what a job needs.
# NCCL_SOCKET_IFNAME, NCCL_IB_HCA, ...: the site's.
