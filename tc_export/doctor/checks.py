# SPDX-License-Identifier: Apache-2.0
"""Checks of this machine: each is a function that returns facts, or raises, in bounded time."""

from __future__ import annotations

import importlib.util
import json
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement

from tc_export.native import elf
from tc_export.plan.host import host_memory

COMMAND_SECONDS = 10.0
CHILD_SECONDS = 90.0  # a Python of its own, which may import much on a slow disk

TENSORRT_MODULES = (
    "tensorrt",
    "tensorrt_bindings",
    "tensorrt_rtx",
    "tensorrt_rtx_bindings",
    "tensorrt_lean",
)
OP_NAMES = ("TcDualRope", "TcBlockCausalAttention", "TcBlockCausalAttentionInt8")

_REPOSITORY = Path(__file__).resolve().parents[2]
_CUDA_FOLDER = Path("/usr/local/cuda/bin")
_TEGRA_RELEASE = Path("/etc/nv_tegra_release")


@dataclass(frozen=True, kw_only=True)
class Finding:
    """What a check found: facts, or why there are none. `missing` is no failure."""

    facts: dict[str, Any] = field(default_factory=dict)
    missing: str | None = None
    failure: str | None = None

    def __bool__(self) -> bool:
        """True where there are facts."""
        return self.missing is None and self.failure is None


class NotHere(Exception):
    """What was looked for is not on this machine."""


Check = Callable[[], dict[str, Any]]


def run_check(check: Check) -> Finding:
    """Run a check; whatever goes wrong is a finding."""
    try:
        return Finding(facts=check())
    except NotHere as absence:
        return Finding(missing=str(absence))
    except Exception as error:  # an odd machine must not stop the other checks
        return Finding(failure=f"{type(error).__name__}: {error}")


def system() -> dict[str, Any]:
    """Operating system, architecture, Python."""
    return {
        "system": platform.platform(),
        "architecture": platform.machine(),
        "python": platform.python_version(),
        "executable": sys.executable,
    }


def memory() -> dict[str, Any]:
    """Memory of this machine or container, in bytes."""
    found = host_memory()
    return {"total_bytes": found.total, "available_bytes": found.available}


def disk() -> dict[str, Any]:
    """Free disk where we stand, in bytes."""
    return {"folder": str(Path.cwd()), "free_bytes": shutil.disk_usage(Path.cwd()).free}


def gpus() -> dict[str, Any]:
    """NVIDIA GPUs and their driver; on a Jetson, its release."""
    if _TEGRA_RELEASE.is_file():
        return {"jetson": _TEGRA_RELEASE.read_text().splitlines()[0].lstrip("# ")}
    fields = ("name", "compute_cap", "driver_version", "memory.total")
    answer = ask("nvidia-smi", f"--query-gpu={','.join(fields)}", "--format=csv,noheader")
    rows = [[cell.strip() for cell in line.split(",")] for line in answer.splitlines() if line]
    if not rows:
        raise NotHere("nvidia-smi lists no GPU")
    return {"gpus": [dict(zip(fields, row, strict=True)) for row in rows]}


def cuda() -> dict[str, Any]:
    """The CUDA compiler."""
    path = find_program("nvcc", _CUDA_FOLDER)
    return {"nvcc": path, "version": _release(ask(path, "--version"))}


def _release(text: str) -> str:
    """`13.0` out of `Cuda compilation tools, release 13.0, V13.0.88`."""
    return text.partition("release ")[2].partition(",")[0] or text.strip().splitlines()[-1]


def compilers() -> dict[str, Any]:
    """What native code is built with, as far as it is there: path by name."""
    names = ("cmake", "c++", "aarch64-linux-gnu-g++")
    found = {name: path for name in names if (path := shutil.which(name))}
    if not found:
        raise NotHere(f"none of {', '.join(names)} is on the PATH")
    return found


def tensorrt() -> dict[str, Any]:
    """TensorRT's Python modules that import, with their versions, and trtexec."""
    found: dict[str, Any] = {}
    for module in TENSORRT_MODULES:
        if importlib.util.find_spec(module):
            found[module] = _version_in_child(module)
    if trtexec := shutil.which("trtexec"):
        found["trtexec"] = trtexec
    if not found:
        raise NotHere(f"neither {', '.join(TENSORRT_MODULES)} nor trtexec is here")
    return found


def _version_in_child(module: str) -> str:
    try:
        return ask_python(f"import {module}; print({module}.__version__)")
    except (RuntimeError, subprocess.TimeoutExpired) as error:
        return f"does not import: {error}"


def onnxruntime() -> dict[str, Any]:
    """ONNX Runtime's version and providers."""
    code = (
        "import json, onnxruntime as ort; print(json.dumps("
        "{'version': ort.__version__, 'providers': ort.get_available_providers()}))"
    )
    return dict(json.loads(ask_python(code)))


def native_library() -> dict[str, Any]:
    """Our compiled ops: where they are, and which of them ONNX Runtime gets."""
    found = json.loads(ask_python("from tc_export.doctor.native_check import main; main()"))
    if found is None:
        raise NotHere("the native library was not built: answers are right, and slower")
    return dict(found)


def plugins() -> dict[str, Any]:
    """TensorRT plugin libraries in the build folder: architecture and ops of each, unopened."""
    build = _REPOSITORY / "build"
    places = ("plugins/*/libtc_tensorrt.so", "*/tensorrt/libtc_tensorrt.so")
    files = sorted(path for place in places for path in build.glob(place))
    if not files:
        raise NotHere("no TensorRT plugin library was built")
    return {str(path): _describe_library(path.read_bytes()) for path in files}


def _describe_library(content: bytes) -> dict[str, Any]:
    return {
        "architecture": elf.architecture(content) or "unknown",
        "ops": [name for name in OP_NAMES if name.encode() in content],
    }


def packages() -> dict[str, Any]:
    """Every package that we need: its version, and what is wanted where that is another."""
    found: dict[str, Any] = {}
    for text in metadata.requires("tc-export") or ():
        need = Requirement(text)
        if need.marker is not None and not need.marker.evaluate({"extra": ""}):
            continue
        try:
            have = metadata.version(need.name)
        except metadata.PackageNotFoundError:
            have = None
        fits = have is not None and need.specifier.contains(have, prereleases=True)
        found[need.name] = {"version": have, "wanted": str(need.specifier), "fits": fits}
    return found


CHECKS: dict[str, Check] = {
    "system": system,
    "memory": memory,
    "disk": disk,
    "gpus": gpus,
    "cuda": cuda,
    "compilers": compilers,
    "tensorrt": tensorrt,
    "onnxruntime": onnxruntime,
    "native_library": native_library,
    "plugins": plugins,
    "packages": packages,
}


def find_program(name: str, folder: Path) -> str:
    """The path of a program, on the PATH or in `folder`."""
    path = shutil.which(name) or shutil.which(name, path=folder)
    if path is None:
        raise NotHere(f"{name} is neither on the PATH nor in {folder}")
    return path


def ask(program: str, *arguments: str, seconds: float = COMMAND_SECONDS) -> str:
    """What a program prints; raises where it is not there, fails, or takes too long."""
    if shutil.which(program) is None:
        raise NotHere(f"{program} is not on the PATH")
    command: Sequence[str] = (program, *arguments)
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=seconds, stdin=subprocess.DEVNULL
    )
    if done.returncode:
        said = (done.stderr.strip() or done.stdout.strip()).splitlines()
        raise RuntimeError(f"{program} ended with {done.returncode}: {said[-1] if said else ''}")
    return done.stdout


def ask_python(code: str) -> str:
    """What a Python program prints in a process of its own."""
    return ask(sys.executable, "-c", code, seconds=CHILD_SECONDS).strip()
