"""The installed command, and how many threads it takes."""

import os
import subprocess
import sys

import pytest

from hf_robust_transfer.cli.main import COMMANDS, run_command
from hf_robust_transfer.cli.threads import available_cores, use_threads


def run(*arguments, code=None, **environment):
    command = [sys.executable, "-c", code] if code else [sys.executable, "-m", "hf_robust_transfer.cli", *arguments]
    return subprocess.run(
        command, capture_output=True, text=True, timeout=120, env={**os.environ, **environment}, check=False
    )


def test_help_lists_every_command_without_loading_torch():
    code = "import sys; sys.argv = ['x', '--help']; from hf_robust_transfer.cli.main import main; main()"
    done = run(code=code + "; assert 'torch' not in sys.modules")
    assert done.returncode == 0, done.stderr
    assert all(f"  {command} " in done.stdout for command in COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself(command, capsys):
    with pytest.raises(SystemExit) as stopped:
        run_command(command, ["--help"])
    printed = capsys.readouterr().out
    assert stopped.value.code == 0 and f"usage: hf-robust-transfer {command}" in printed and "--" in printed


def test_an_unknown_command_is_one_line():
    done = run("fine-tune")
    assert done.returncode == 1 and done.stderr.startswith("error: fine-tune is no command: use finetune, ")


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"cpu.max": "150000 100000"}, 1),
        ({"cpu.max": "50000 100000"}, 1),
        ({"cpu.max": "max 100000"}, None),
        ({"cpu/cpu.cfs_quota_us": "100000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 1),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, None),
        ({}, None),
    ],
)
def test_a_containers_quota_counts(tmp_path, files, expected):
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    assert available_cores(tmp_path) == (expected or len(os.sched_getaffinity(0)))


def test_affinity_counts():
    code = "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))}); import hf_robust_transfer.cli, torch"
    done = run(code=code + "; print(torch.get_num_threads())", OMP_NUM_THREADS="")
    assert done.stdout == "1\n", done.stderr


def test_threads_are_divided_by_the_processes_and_the_users_choice_stays(tmp_path):
    environment = {"LOCAL_WORLD_SIZE": "1000"}
    use_threads(environment)
    assert environment["OMP_NUM_THREADS"] == "1" and environment["OMP_WAIT_POLICY"] == "PASSIVE"
    environment = {"OMP_NUM_THREADS": "7", "OMP_WAIT_POLICY": "ACTIVE"}
    use_threads(environment)
    assert environment == {"OMP_NUM_THREADS": "7", "OMP_WAIT_POLICY": "ACTIVE"}
