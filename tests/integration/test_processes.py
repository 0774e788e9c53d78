"""What the tests themselves promise of processes: none of them outlives its test."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from processes import MARK, left_behind, marked, run_to_end, session_mark, started

# A launcher whose rank is in a session of its own, as torchrun's are.
LAUNCHER = """
import subprocess, sys, time
rank = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
print(rank.pid, flush=True)
time.sleep(600)
"""


def is_alive(pid: int) -> bool:
    return bool(Path(f"/proc/{pid}/cmdline").is_file() and Path(f"/proc/{pid}/cmdline").read_bytes())


def wait_until_gone(pid: int) -> bool:
    until = time.monotonic() + 10
    while is_alive(pid) and time.monotonic() < until:
        time.sleep(0.01)
    return not is_alive(pid)


def test_a_time_out_ends_ranks_in_sessions_of_their_own() -> None:
    with pytest.raises(subprocess.TimeoutExpired, match="which said") as late:
        run_to_end([sys.executable, "-c", LAUNCHER], timeout=3)
    rank = int(str(late.value.cmd).rsplit("\n", 2)[-2])
    assert wait_until_gone(rank)


def test_a_test_that_fails_ends_what_it_started() -> None:
    with pytest.raises(ZeroDivisionError), started([sys.executable, "-c", LAUNCHER], stdout=subprocess.PIPE) as process:
        rank = int(process.stdout.readline())  # type: ignore[union-attr]
        assert rank in marked(session_mark()) and is_alive(rank)
        raise ZeroDivisionError
    assert wait_until_gone(rank) and wait_until_gone(process.pid)


def test_what_ends_by_itself_is_not_disturbed() -> None:
    done = run_to_end([sys.executable, "-c", "import sys; print('a'); sys.exit('b')"], timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (1, "a\n", "b\n")


def test_a_run_of_tests_that_leaves_a_process_fails_and_names_it(tmp_path: Path) -> None:
    settings = (Path(__file__).parents[1] / "conftest.py").read_text()
    assert "seconds=10" in settings
    settings = settings.replace("seconds=10", "seconds=1")
    # What these tests need not, and would import for long.
    for line in (
        "import torch\n",
        "torch.set_num_threads(1)\n",
        'pytest_plugins = ["loopback_hub.fixtures", "small_disk"]\n',
    ):
        assert line in settings
        settings = settings.replace(line, "")
    (tmp_path / "conftest.py").write_text(settings)
    (tmp_path / "test_left.py").write_text(
        "import subprocess, sys\n"
        "def test_leaves():\n"
        "    subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(601)'], start_new_session=True)\n"
        "def test_leaves_none():\n"
        "    subprocess.run([sys.executable, '-c', ''], check=True)\n"
    )
    paths = os.pathsep.join([str(Path(__file__).parents[1]), str(Path(__file__).parents[2])])
    # A session of its own, with a mark of its own.
    env = {name: value for name, value in os.environ.items() if name != MARK and not name.startswith("PYTEST")}
    for options, code in ((["-n", "1", "-k", "none"], 0), (["-n", "0"], 1), (["-n", "1"], 1)):
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *options, tmp_path]
        done = run_to_end(command, env={**env, "PYTHONPATH": paths}, cwd=tmp_path, timeout=300)
        assert done.returncode == code, done.stdout + done.stderr
        assert ("left processes behind" in done.stderr and "time.sleep(601)" in done.stderr) == (code == 1)
    assert not [line for line in left_behind(0).values() if "sleep(601)" in line]
