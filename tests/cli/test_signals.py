# SPDX-License-Identifier: Apache-2.0
"""SIGTERM at any moment: exit code 143, nothing half written, and nothing left running."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tc_export.bundle import verify
from tc_export.cli.signals import Terminated, termination_as_interrupt
from tests.bundled import save_with_tokenizer
from tests.device_build.conftest import ARCHITECTURE, write_pending_bundle

SECONDS = 60.0
ONNX_RUNTIMES_OWN = ".ses"  # its telemetry's, in the folder for temporary files whatever happens

# Starts a process that starts another one, as CMake and nvcc do; both write who they are.
COMPILER = """#!{python}
import contextlib, os, pathlib, subprocess, sys
if "--version" in sys.argv:
    print("release 13.0")
    sys.exit()
child = subprocess.Popen(["sleep", "600"])
pathlib.Path("{pids}").write_text(f"{{os.getpid()}} {{child.pid}}")
with contextlib.suppress(KeyboardInterrupt):
    child.wait()
"""


class Command:
    """A command that runs in a process of its own, and that nothing can hide from."""

    def __init__(self, folder: Path, words: list[object]) -> None:
        self.temporary = folder / "temporary"
        self.temporary.mkdir(exist_ok=True)
        self._process = subprocess.Popen(
            [sys.executable, *map(str, words)],
            env=os.environ | {"TMPDIR": str(self.temporary)},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        self.printed = ""

    def wait_for(self, phrase: str) -> None:
        assert self._process.stderr is not None
        while phrase not in self.printed:
            line = self._process.stderr.readline()
            assert line, self.printed
            self.printed += line

    def terminate(self) -> int:
        """Send SIGTERM; return the exit code once it has ended, which it does soon."""
        assert self._process.stderr is not None
        self._process.send_signal(signal.SIGTERM)
        _, rest = self._process.communicate(timeout=SECONDS)
        self.printed += rest
        assert "Traceback" not in self.printed, self.printed
        assert {path.name for path in self.temporary.iterdir()} <= {ONNX_RUNTIMES_OWN}
        # A process group without a process does not exist.
        with pytest.raises(ProcessLookupError):
            os.killpg(self._process.pid, 0)
        return self._process.returncode


def _is_running(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


def _wait_until_ended(pids: list[int]) -> None:
    end = time.monotonic() + SECONDS
    while any(map(_is_running, pids)):
        assert time.monotonic() < end, f"still running: {pids}"
        time.sleep(0.02)


def _wait_for_pids(file: Path) -> list[int]:
    end = time.monotonic() + SECONDS
    while not file.exists() or len(file.read_text().split()) < 2:
        assert time.monotonic() < end
        time.sleep(0.02)
    return [int(pid) for pid in file.read_text().split()]


def _compiler(path: Path, pids: Path) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text(COMPILER.format(python=sys.executable, pids=pids))
    path.chmod(0o755)


def test_it_ends_every_process_that_was_started(tmp_path: Path) -> None:
    _compiler(tmp_path / "compiler", tmp_path / "pids")
    before = signal.getsignal(signal.SIGTERM)
    with termination_as_interrupt() as was_terminated:
        assert not was_terminated()
        with subprocess.Popen([tmp_path / "compiler"], stderr=subprocess.DEVNULL):
            pids = _wait_for_pids(tmp_path / "pids")
            with pytest.raises(Terminated):
                os.kill(os.getpid(), signal.SIGTERM)
        assert was_terminated()
    _wait_until_ended(pids)
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.slow
def test_a_build_at_one_moment_after_the_other(tmp_path: Path) -> None:
    """Each time it goes on from what was kept; in the end it is whole."""
    checkpoint = save_with_tokenizer(tmp_path / "checkpoint")
    output = tmp_path / "place" / "out"
    output.parent.mkdir()
    build = ["-m", "tc_export", "build", "--checkpoint", checkpoint, "--output", output]
    build += ["--max-frames", 2]

    early = Command(tmp_path, build)
    time.sleep(0.5)
    assert early.terminate() in (143, -signal.SIGTERM)  # Python itself may not have begun
    assert list(output.parent.iterdir()) == []

    for stage, delay_s in (("vision graph", 0.5), ("decoder graph", 1), ("PyTorch", 0.05)):
        command = Command(tmp_path, build)
        command.wait_for(stage)
        time.sleep(delay_s)
        assert command.terminate() == 143, command.printed
        assert "the same command resumes from there" in " ".join(command.printed.split())
        assert [path.name for path in output.parent.iterdir()] == [".out.building"]

    whole = subprocess.run(
        [sys.executable, *map(str, build)], capture_output=True, text=True, check=True
    )
    assert "export the decoder graph: unchanged" in whole.stderr
    assert [path.name for path in output.parent.iterdir()] == ["out"]


@pytest.mark.parametrize("moment", ["0.2", "sampled:"])
def test_ask(moment: str, bundle: Path, clip: Path, tmp_path: Path) -> None:
    before = sorted(bundle.rglob("*"))
    options = ["--video", clip, "--question", "What?", "--max-new-tokens", 60]
    command = Command(tmp_path, ["-m", "tc_export", "ask", bundle, *options])
    if moment == "sampled:":
        command.wait_for(moment)
        assert command.terminate() == 143
    else:
        time.sleep(float(moment))
        assert command.terminate() in (143, -signal.SIGTERM)
    assert sorted(bundle.rglob("*")) == before


@pytest.mark.parametrize("delay_s", [0.2, 1])
def test_parity(delay_s: float, bundle: Path, tmp_path: Path) -> None:
    before = sorted(bundle.rglob("*"))
    command = Command(tmp_path, ["-m", "tc_export", "parity", bundle])
    time.sleep(delay_s)
    assert command.terminate() in (143, -signal.SIGTERM)
    assert sorted(bundle.rglob("*")) == before


def test_finish(tmp_path: Path) -> None:
    """While TensorRT works, in a process of its own."""
    (tmp_path / "place").mkdir()
    bundle = write_pending_bundle(tmp_path / "place" / "bundle", tmp_path / "scratch")
    _compiler(tmp_path / "compiler", tmp_path / "pids")
    code = f"""if True:
        import functools, subprocess
        from tc_export.cli.main import main
        from tc_export.device_build import finish, machine
        def build_engine(request, on_progress):
            request.engine.write_text("half")
            subprocess.run(["{tmp_path}/compiler"])
        machine.this_machine = lambda spec: machine.Machine("{ARCHITECTURE}", "10.3.0.26", 87)
        finish.Tools = functools.partial(finish.Tools, build_engine=build_engine)
        main(["finish", "{bundle}"])
    """
    command = Command(tmp_path, ["-c", code])
    pids = _wait_for_pids(tmp_path / "pids")
    assert command.terminate() == 143, command.printed
    _wait_until_ended(pids)
    assert verify(bundle) == []
    assert "half" not in {path.read_text(errors="replace") for path in _files(tmp_path / "place")}


def _files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file() and path.stat().st_size < 100]


def test_plugins_build(tmp_path: Path) -> None:
    tools = tmp_path / "bin"
    for name in ("cmake", "nvcc", "g++"):
        _compiler(tools / name, tmp_path / "pids")
    (tmp_path / "checkout" / "plugins").mkdir(parents=True)
    (tmp_path / "checkout" / "plugins" / "CMakeLists.txt").touch()
    code = f"""if True:
        import functools, os, sys
        from pathlib import Path
        from tc_export.cli.main import main
        from tc_export.native import build
        os.environ["PATH"] = "{tools}:" + os.environ["PATH"]
        root = Path("{tmp_path}/checkout")
        build.build_plugins = functools.partial(build.build_plugins, root=root)
        main(["plugins", "build", "--target", "rtx4090", "--tensorrt-root", "{tmp_path}"])
    """
    command = Command(tmp_path, ["-c", code])
    pids = _wait_for_pids(tmp_path / "pids")
    assert command.terminate() == 143, command.printed
    _wait_until_ended(pids)
    libraries = [path.name for path in (tmp_path / "checkout/build/plugins").iterdir()]
    assert all(name.startswith(".sm89-") for name in libraries)  # where the next build goes on
