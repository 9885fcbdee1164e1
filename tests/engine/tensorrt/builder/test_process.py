# SPDX-License-Identifier: Apache-2.0
"""A worker's output, its death, and its end when we end."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tc_export.engine.tensorrt.builder.process import Ended, descriptor, path_of, run_worker

Run = Callable[..., tuple[Ended, list[str]]]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs source code as a worker; returns how it ended, and its lines."""
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)

    def run(source: str, task: str = "") -> tuple[Ended, list[str]]:
        (tmp_path / "little_worker.py").write_text(f"import os, sys\n{source}\n")
        lines: list[str] = []
        return run_worker("little_worker", task, lines.append), lines

    return run


def test_lines_come_from_stdout_and_last_words_from_stderr(run: Run) -> None:
    ended, lines = run(
        "print(sys.stdin.read().upper()); print('noise', file=sys.stderr); sys.exit(3)", "a task"
    )
    assert lines == ["A TASK\n"]
    assert ended == Ended(3, "noise\n")
    assert ended.signal_name is None


def test_an_abort_is_seen(run: Run) -> None:
    ended, lines = run("print('one', flush=True); os.write(2, b'assert failed'); os.abort()")
    assert lines == ["one\n"]
    assert (ended.signal_name, ended.said) == ("SIGABRT", "assert failed")


def test_a_worker_that_does_not_read_its_task(run: Run) -> None:
    ended, _ = run("os.close(0); sys.exit(5)", "x" * 1_000_000)
    assert ended.returncode == 5


def test_much_noise_neither_blocks_nor_is_kept(run: Run) -> None:
    ended, _ = run("os.write(2, b'x' * 3_000_000 + b'the end')")
    assert len(ended.said) == 4_000
    assert ended.said.endswith("xthe end")


def test_the_current_folder_is_no_place_for_libraries(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "tensorrt_bindings.py").write_text("raise SystemExit('not me')")
    monkeypatch.chdir(elsewhere)
    ended, _ = run("import importlib.util as u; sys.exit(u.find_spec('tensorrt_bindings') and 1)")
    assert ended.returncode == 0


def test_a_worker_gets_few_variables_and_the_files_that_it_is_given(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EDITOR", "ed")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    (tmp_path / "file").write_text("content")
    with descriptor(tmp_path / "file", os.O_RDONLY) as number:
        source = (
            f"print(open({path_of(number)!r}).read(), 'EDITOR' in os.environ,"
            " os.environ['CUDA_VISIBLE_DEVICES'])"
        )
        (tmp_path / "little_worker.py").write_text(f"import os\n{source}\n")
        lines: list[str] = []
        run_worker("little_worker", "", lines.append, [number])
    assert lines == ["content False 1\n"]
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(number)


def test_addresses_are_the_same_each_time(run: Run) -> None:
    source = (
        "from tc_export.engine.tensorrt.builder.process import fix_addresses\n"
        "fix_addresses()\n"
        "import ctypes\n"
        "where = ctypes.addressof(ctypes.c_int.in_dll(ctypes.CDLL(None), 'stdout'))\n"
        "print(sys.stdin.read(), where)"
    )
    runs = [run(source, "task")[1] for _ in range(3)]
    need_fixed_addresses()
    assert runs[0] == runs[1] == runs[2]
    assert runs[0][0].startswith("task ")


def need_fixed_addresses() -> None:
    """Skip where a process may not choose how its memory is laid out, as in some containers."""
    fixed = "import ctypes, sys; sys.exit(ctypes.CDLL(None).personality(0x0040000) == -1)"
    if subprocess.run([sys.executable, "-c", fixed], check=False).returncode:
        pytest.skip("this system gives every process memory at random addresses")


def test_an_interrupt_ends_the_worker_and_its_children(tmp_path: Path, run: Run) -> None:
    source = (
        "import subprocess\n"
        "child = subprocess.Popen(['sleep', '600'])\n"
        "print(child.pid, flush=True)\n"
        "import time; time.sleep(600)"
    )
    (tmp_path / "little_worker.py").write_text(source)
    pids: list[int] = []

    def interrupt(line: str) -> None:
        pids.append(int(line))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_worker("little_worker", "", interrupt)
    wait_until(lambda: not is_running(pids[0]))


def is_running(pid: int) -> bool:
    """False too for a process that has ended and that nobody has asked for."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"


def wait_until(true: Callable[[], bool]) -> None:
    end = time.monotonic() + 10
    while not true():
        assert time.monotonic() < end, "waited for ten seconds"
        time.sleep(0.02)
