"""What the batch scripts decide, with stand-ins for srun and scontrol, and how they are written."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SCRIPTS = ("pretrain_git2", "pretrain_git", "finetune", "evaluate", "study")

SRUN = '#!/bin/bash\nprintf "%s\\n" "$@" > srun.arguments\nenv > srun.environment\nexit "$SRUN_CODE"\n'
SCONTROL = """#!/bin/bash
case "$1 $2" in
    "show node") echo "   NodeAddr=10.0.0.7 NodeHostName=$3 Version=22.05.8" ;;
    "show hostnames") printf "n1\\nn2\\n" ;;
    *) echo "$@" >> scontrol.arguments; exit "${SCONTROL_CODE:-0}" ;;
esac
"""
JOB = {
    "SLURM_JOB_ID": "12005",
    "SLURM_JOB_NAME": "git2",
    "SLURM_JOB_NODELIST": "n[1-2]",
    "SLURM_NTASKS": "16",
    "SLURM_NTASKS_PER_NODE": "8",
    "SLURM_GPUS_PER_NODE": "h100:8",
    "SLURM_CPUS_PER_TASK": "6",
    "SLURMD_NODENAME": "n1",
    "GIT_SCALE_PYTHON": f"env SEEN=1 {sys.executable}",
}


def start(
    checkout: Path, script: str, *arguments: str, code: int = 0, **more: str
) -> subprocess.CompletedProcess[str]:
    """Runs a batch script as slurmd does, from a copy in its spool folder."""
    spooled = checkout / "spool_script"
    spooled.write_bytes((ROOT / "slurm" / f"{script}.sh").read_bytes())
    foreign = ("SLURM", "GIT_SCALE", "OMP_")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(foreign)}
    environment = {
        **kept,
        **JOB,
        "SRUN_CODE": str(code),
        "PATH": f"{checkout}/bin:{os.environ['PATH']}",
        **more,
    }
    command = ["bash", str(spooled), *arguments]
    return subprocess.run(command, cwd=checkout, env=environment, capture_output=True, text=True, timeout=600)


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    for name, text in (("srun", SRUN), ("scontrol", SCONTROL)):
        program = tmp_path / "bin" / name
        program.parent.mkdir(exist_ok=True)
        program.write_text(text)
        program.chmod(0o755)
    (tmp_path / "slurm").symlink_to(ROOT / "slurm")
    return tmp_path


def requeues(checkout: Path) -> list[str]:
    record = checkout / "scontrol.arguments"
    return record.read_text().splitlines() if record.exists() else []


@pytest.mark.parametrize("code", [0, 1, 2, 134, 137, 138, 143])
def test_other_codes_end_the_job_as_they_are(checkout: Path, code: int) -> None:
    done = start(checkout, "pretrain_git2", code=code)
    assert (done.returncode, requeues(checkout)) == (code, []), done.stderr


def test_a_run_that_stopped_early_is_requeued(checkout: Path) -> None:
    done = start(checkout, "pretrain_git2", code=75)
    assert (done.returncode, requeues(checkout)) == (75, ["requeue 12005"])
    assert "asks for a requeue" in done.stdout


@pytest.mark.parametrize(
    ("restarts", "allowed", "requeued"), [(99, "", 1), (100, "", 0), (2, "3", 1), (3, "3", 0)]
)
def test_requeues_are_bounded(checkout: Path, restarts: int, allowed: str, requeued: int) -> None:
    more = {"SLURM_RESTART_COUNT": str(restarts), "GIT_SCALE_MAX_RESTARTS": allowed}
    done = start(checkout, "pretrain_git", code=75, **more)
    assert (done.returncode, len(requeues(checkout))) == (75, requeued)
    assert ("GIT_SCALE_MAX_RESTARTS" in done.stdout) is not bool(requeued)


def test_a_requeue_that_slurm_refuses_ends_the_job_with_75(checkout: Path) -> None:
    done = start(checkout, "finetune", code=75, SCONTROL_CODE="1")
    assert done.returncode == 75 and "not requeued" in done.stdout


def test_the_users_arguments_come_last_and_whole(checkout: Path) -> None:
    start(checkout, "pretrain_git2", "--config", "my recipe.yaml", "train.freeze=[encoder.*, a b]")
    words = (checkout / "srun.arguments").read_text().splitlines()
    given = ["--config", "my recipe.yaml", "train.freeze=[encoder.*, a b]"]
    shipped = ["--config", "git2", "--ds_config", "ds_configs/zero3_wide.json"]
    assert words[words.index("tools/pretrain.py") + 1 :] == shipped + given
    assert {"--kill-on-bad-exit=0", "--wait=60", "--cpus-per-task=6", "--distribution=block"} <= set(words)


@pytest.mark.parametrize(
    ("script", "tool"),
    [("pretrain_git", "pretrain"), ("finetune", "finetune"), ("evaluate", "evaluate")],
)
def test_each_script_has_its_tool(checkout: Path, script: str, tool: str) -> None:
    assert start(checkout, script).returncode == 0
    assert f"tools/{tool}.py" in (checkout / "srun.arguments").read_text().splitlines()


COUNTED_SRUN = """#!/bin/bash
cat > /dev/null # as srun, which would swallow what the script reads
printf "%s\\n" "$@" > "launch.$(ls launch.* 2> /dev/null | wc -l)"
exit "$SRUN_CODE"
"""


def start_study(checkout: Path, number: int, code: int = 0) -> tuple[int, str, list[list[str]]]:
    """Exit code, errors and launched commands of job `number` of the array."""
    (checkout / "bin" / "srun").write_text(COUNTED_SRUN)
    for name in ("tools", "git_scale"):
        (checkout / name).symlink_to(ROOT / name)
    for name in ("train", "heldout", "tokenizer.model"):
        (checkout / "runs" / "demo-data" / name).mkdir(parents=True)
    more = {"SLURM_ARRAY_JOB_ID": "12005", "SLURM_ARRAY_TASK_ID": str(number)}
    done = start(checkout, "study", "ablations", "data.image_sizes=[32, 64]", code=code, **more)
    launched = [file.read_text().splitlines() for file in sorted(checkout.glob("launch.*"))]
    return done.returncode, done.stderr, [words[words.index("--config") - 1 :] for words in launched]


def test_a_job_of_a_study_runs_one_run_and_what_goes_on_from_it(checkout: Path) -> None:
    code, errors, (first, second) = start_study(checkout, 0)
    assert code == 0, errors
    assert (first[0], second[0]) == ("tools/pretrain.py", "tools/finetune.py")
    (home,) = (word.removeprefix("run_dir=") for word in first if word.startswith("run_dir="))
    assert f"init_from={home}" in second and "data.image_sizes=[32, 64]" in second
    assert first[-2:] == second[-2:] == ["--ds_config", "ds_configs/zero3.json"]


def test_a_study_of_which_a_run_stops_early_is_requeued_and_launches_nothing_more(checkout: Path) -> None:
    code, _, launched = start_study(checkout, 0, code=75)
    assert (code, len(launched), requeues(checkout)) == (75, 1, ["requeue 12005_0"])


def test_a_job_beyond_the_study_is_refused(checkout: Path) -> None:
    code, errors, launched = start_study(checkout, 10)
    assert (code, launched) == (2, []) and "jobs 0 to 9" in errors


def test_a_study_whose_data_is_not_there_says_what_makes_it(checkout: Path) -> None:
    for name in ("tools", "git_scale"):
        (checkout / name).symlink_to(ROOT / name)
    done = start(checkout, "study", SLURM_ARRAY_TASK_ID="0")
    assert done.returncode == 2 and not (checkout / "srun.arguments").exists()
    assert "not there; `python tools/study.py ablations --data` makes it" in done.stderr


def test_a_job_of_an_array_is_requeued_alone(checkout: Path) -> None:
    """The number of an array's first job is the array's."""
    array = {"SLURM_ARRAY_JOB_ID": "12005", "SLURM_ARRAY_TASK_ID": "3"}
    assert start(checkout, "pretrain_git2", code=75, **array).returncode == 75
    assert requeues(checkout) == ["requeue 12005_3"]


def test_the_array_is_that_of_the_shipped_study() -> None:
    from git_scale.studies.study import chains, read_study

    assert header("study")["array"] == f"0-{len(chains(read_study('ablations'))) - 1}"


def test_the_environment_of_the_tasks(checkout: Path) -> None:
    start(checkout, "pretrain_git2", RANK="3", WORLD_SIZE="4", LOCAL_RANK="1", NCCL_DEBUG="INFO")
    lines = (checkout / "srun.environment").read_text().splitlines()
    tasks = dict(line.split("=", 1) for line in lines if "=" in line)
    assert not {"RANK", "WORLD_SIZE", "LOCAL_RANK"} & tasks.keys(), (
        "an outer launcher's would win over srun's"
    )
    assert tasks["MASTER_ADDR"] == "10.0.0.7" and 20000 <= int(tasks["MASTER_PORT"]) < 32768
    assert tasks["OMP_NUM_THREADS"] == "6"
    assert tasks["NCCL_DEBUG"] == "INFO", "the user's choice stays"
    assert tasks["PYTHONPATH"].split(":")[0] == str(checkout)


def test_a_port_that_somebody_listens_on_is_passed_over(checkout: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as busy:
        first = busy.getsockname()[1]
        draw = checkout / "bin" / "shuf"
        draw.write_text(
            f"#!/bin/bash\nif [[ -e drawn ]]; then echo 31999; else touch drawn; echo {first}; fi\n"
        )
        draw.chmod(0o755)
        start(checkout, "pretrain_git2")
    assert "MASTER_PORT=31999" in (checkout / "srun.environment").read_text().splitlines()


def test_as_many_tasks_as_gpus(checkout: Path) -> None:
    done = start(checkout, "pretrain_git2", SLURM_GPUS_PER_NODE="4")
    assert done.returncode == 2 and "--ntasks-per-node=4" in done.stderr
    assert not (checkout / "srun.arguments").exists()
    assert (
        start(checkout, "pretrain_git2", SLURM_GPUS_PER_NODE="0", SLURM_NTASKS_PER_NODE="2").returncode == 0
    )


def test_the_checkouts_own_venv_is_taken_first(checkout: Path) -> None:
    (checkout / ".venv").symlink_to(sys.prefix)
    assert start(checkout, "pretrain_git2", GIT_SCALE_PYTHON="").returncode == 0
    assert ".venv/bin/python" in (checkout / "srun.arguments").read_text().splitlines()


def test_a_python_that_lacks_something_is_one_message(checkout: Path) -> None:
    bare = start(checkout, "pretrain_git2", GIT_SCALE_PYTHON=f"{sys.executable} -I -S")
    assert bare.returncode == 2 and "torch deepspeed" in bare.stderr and "GIT_SCALE_PYTHON" in bare.stderr
    none = start(checkout, "pretrain_git2", GIT_SCALE_PYTHON="no/python")
    assert none.returncode == 2 and "no/python does not run" in none.stderr
    assert not (checkout / "srun.arguments").exists()


def test_what_a_container_says_at_its_start_is_no_missing_package(checkout: Path) -> None:
    talkative = checkout / "container"
    talkative.write_text('#!/bin/bash\necho "INFO: mounting" >&2\nexec "$@"\n')
    talkative.chmod(0o755)
    done = start(checkout, "pretrain_git2", GIT_SCALE_PYTHON=f"{talkative} {sys.executable}")
    assert done.returncode == 0, done.stderr


def test_outside_a_checkout(tmp_path: Path) -> None:
    done = start(tmp_path, "pretrain_git2")
    assert done.returncode == 2 and "sbatch --chdir=ROOT" in done.stderr


def header(script: str) -> dict[str, str]:
    text = (ROOT / "slurm" / f"{script}.sh").read_text()
    return dict(re.findall(r"^#SBATCH --([a-z-]+)(?:=(.*))?$", text, re.MULTILINE))


@pytest.mark.parametrize("script", SCRIPTS)
def test_headers(script: str) -> None:
    options = header(script)
    log = "slurm-%x-%A_%a.out" if "array" in options else "slurm-%x-%j.out"
    assert (options["output"], options["open-mode"]) == (log, "append")
    assert not {"partition", "account", "qos", "time", "constraint"} & options.keys(), "the site's"
    assert options["ntasks-per-node"] == options["gpus-per-node"]
    assert ("signal" in options) == ("requeue" in options) == (script != "evaluate")


@pytest.mark.parametrize(
    ("script", "recipe"), [("pretrain_git2", "git2"), ("pretrain_git", "git_huge"), ("study", "demo")]
)
def test_the_shipped_recipe_divides_over_the_shipped_nodes(script: str, recipe: str) -> None:
    from git_scale.config import check_world
    from git_scale.recipes import load_run

    run, options = load_run(recipe), header(script)
    check_world(run, int(options["nodes"]) * int(options["ntasks-per-node"]) // run.parallel.tp)


def test_shell_syntax() -> None:
    for script in (ROOT / "slurm").glob("*.sh"):
        done = subprocess.run(["bash", "-n", script], capture_output=True, text=True)
        assert (done.returncode, done.stderr) == (0, ""), script


def test_every_variable_has_its_reason() -> None:
    blocks = (ROOT / "slurm" / "env.sh").read_text().split("\n\n")
    exporting = [block for block in blocks if re.search(r"^(export|unset) ", block, re.MULTILINE)]
    assert len(exporting) >= 10
    for block in exporting:
        assert block.startswith("# "), block
        assert len(re.findall(r"^(?:export|unset) ", block, re.MULTILINE)) == 1, f"a reason each: {block}"
