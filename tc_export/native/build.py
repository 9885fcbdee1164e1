# SPDX-License-Identifier: Apache-2.0
"""Build the TensorRT plugin library for a target, once for each state of its sources.

The target's file decides the SM and the processor, and nothing else does. A library is kept under
the hash of all that it is made from: the sources, the SM, the processor and the compiler. The CUDA
compiler is the one on the PATH; where there is none, that of the package registry.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tc_export.errors import EnvironmentLacks, UsageError
from tc_export.targets import Release, Target

ROOT = Path(__file__).resolve().parents[2]
SOURCES = "plugins"
OTHER_PARTS = ("cpu", "emulator", "onnxruntime", "tests")  # not in this library
LIBRARY = "libtc_tensorrt.so"
CMAKE_TARGET = "tc_tensorrt"
CROSS_COMPILER = "aarch64-linux-gnu-g++"
WITHOUT_REGISTRY = {  # what to do where a package cannot be fetched
    "nvcc": "install CUDA's own package, and put nvcc on the PATH",
    "tensorrt-headers": "where the headers are on this machine, give --tensorrt-root",
}
LAST_LINES = 15  # of a failed build's log, in the message


@dataclass(frozen=True, kw_only=True)
class PluginLibrary:
    """A built library. `cached` says that it was there already."""

    path: Path
    target: str
    sm: int
    architecture: str
    cached: bool


def build_plugins(
    target: Target,
    *,
    tensorrt_root: Path | None = None,
    root: Path = ROOT,
    on_step: Callable[[str], None] = lambda phrase: None,
) -> PluginLibrary:
    """Compile the plugin library for `target`, or find it.

    Args:
        target: the device.
        tensorrt_root: folder of TensorRT's headers; by default those of the package registry.
        root: a source checkout.
        on_step: called with a phrase before each step.

    Raises:
        UsageError: the target has no GPU.
        EnvironmentLacks: no sources, no compiler, no headers, or the compiler failed.
    """
    sm, architecture = _device(target)
    sources = root / SOURCES
    key = library_key(target, root=root, on_step=on_step)
    folder = root / "build" / "plugins" / f"sm{sm}-{architecture}-{key[:16]}"
    path = folder / LIBRARY
    with _one_at_a_time(folder, on_step):
        cached = path.is_file()
        if not cached:
            options = _options(sources, sm, _is_cross(architecture), tensorrt_root, on_step)
            _compile(sources, folder, options, _find_nvcc(sources, on_step), on_step)
    return PluginLibrary(
        path=path, target=target.name, sm=sm, architecture=architecture, cached=cached
    )


@contextmanager
def _one_at_a_time(folder: Path, on_step: Callable[[str], None]) -> Iterator[None]:
    """Let one process compile a library; who comes later waits, and finds it."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with folder.with_name(f".{folder.name}.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            on_step("wait for another build of the same library")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def library_key(
    target: Target,
    *,
    root: Path = ROOT,
    on_step: Callable[[str], None] = lambda phrase: None,
) -> str:
    """Hash of all that the library for `target` is made from.

    Raises:
        UsageError: the target has no GPU.
        EnvironmentLacks: no sources, or no compiler.
    """
    sm, architecture = _device(target)
    sources = root / SOURCES
    if not (sources / "CMakeLists.txt").is_file():
        raise EnvironmentLacks(
            f"the plugins' sources are not at {sources}: an installed package does not have them",
            hint="run this in a source checkout of tc-export",
        )
    _check_tools(_is_cross(architecture))
    return _hash(sources, sm, architecture, _compiler(sources, on_step))


def check_cuda(
    release: Release,
    *,
    root: Path = ROOT,
    on_step: Callable[[str], None] = lambda phrase: None,
) -> None:
    """See that what the CUDA compiler makes can run on the device's release.

    The library carries the compiler's CUDA runtime, which needs a driver of its major version.

    Raises:
        EnvironmentLacks: it cannot.
    """
    said = _compiler(root / SOURCES, on_step)
    found = re.search(r"release (\d+)\.(\d+)", said)
    if found is None or found[1] != release.cuda.partition(".")[0]:
        here = f"{found[1]}.{found[2]}" if found else "of an unknown version"
        raise EnvironmentLacks(
            f"{release.name} has CUDA {release.cuda}, and the compiler here is CUDA {here}: its "
            "plugins would not load there",
            hint="build for a release of the same major version (--release), or put an nvcc of "
            f"CUDA {release.cuda} first on the PATH",
        )


def _compiler(sources: Path, on_step: Callable[[str], None]) -> str:
    """What nvcc says of itself."""
    nvcc = _find_nvcc(sources, on_step)
    said = subprocess.run([str(nvcc), "--version"], capture_output=True, text=True, check=True)
    return said.stdout


def _device(target: Target) -> tuple[int, str]:
    """The target's SM and processor."""
    architecture = target.toolchain.architecture
    if target.sm is None or architecture is None:
        raise UsageError(
            f"{target.name} has no GPU, and needs no plugins",
            hint="its ops are in the library that comes with tc-export: see tc-export doctor",
        )
    return target.sm, architecture


def _is_cross(architecture: str) -> bool:
    return architecture != platform.machine()


def _check_tools(cross: bool) -> None:
    """See that CMake and the compiler of the host's part are there."""
    needed = ["cmake", CROSS_COMPILER if cross else "g++"]
    missing = [name for name in needed if shutil.which(name) is None]
    if missing:
        raise EnvironmentLacks(
            f"building the plugins needs {', '.join(missing)}, not found on the PATH",
            hint="docs/native-code.md says where each comes from; tc-export doctor lists them",
        )


def _find_nvcc(sources: Path, on_step: Callable[[str], None]) -> Path:
    """The CUDA compiler on the PATH, else that of the package registry."""
    on_path = shutil.which("nvcc")
    return Path(on_path) if on_path else _fetched(sources, "nvcc", on_step) / "nvcc"


def _hash(sources: Path, sm: int, architecture: str, compiler: str) -> str:
    """Hash everything that the library is made from."""
    digest = hashlib.sha256(f"{sm}\n{architecture}\n{compiler}\n".encode())
    for file in sorted(sources.rglob("*")):
        relative = file.relative_to(sources)
        if file.is_file() and relative.parts[0] not in OTHER_PARTS:
            digest.update(f"{relative.as_posix()}\n{file.stat().st_size}\n".encode())
            digest.update(file.read_bytes())
    return digest.hexdigest()


def _options(
    sources: Path,
    sm: int,
    cross: bool,
    tensorrt_root: Path | None,
    on_step: Callable[[str], None],
) -> list[str]:
    """CMake's options: a preset, the one SM, and where the headers are."""
    headers = tensorrt_root or _fetched(sources, "tensorrt-headers", on_step)
    options = ["--preset", "jetson-cross" if cross else "cuda"]
    options += [f"-DCMAKE_CUDA_ARCHITECTURES={sm}-real", f"-DTENSORRT_ROOT={headers}"]
    if cross:
        options.append(f"-DTC_CUDA_AARCH64={_fetched(sources, 'cuda-aarch64', on_step)}")
    return options


def _fetched(sources: Path, name: str, on_step: Callable[[str], None]) -> Path:
    """The folder of a pinned package of the registry, which is downloaded the first time."""
    on_step(f"fetch {name}")
    ended = subprocess.run(
        [sys.executable, str(sources / "tensorrt" / "fetch.py"), name],
        capture_output=True,
        text=True,
        check=False,
    )
    if ended.returncode != 0:
        raise EnvironmentLacks(
            f"{name} could not be fetched from the package registry:\n{ended.stderr.strip()}",
            hint=WITHOUT_REGISTRY.get(name),
        )
    return Path(ended.stdout.strip())


def _compile(
    sources: Path,
    folder: Path,
    options: Sequence[str],
    nvcc: Path,
    on_step: Callable[[str], None],
) -> None:
    """Configure and build beside the library's place, then put it there at once."""
    # CMake, and the toolchain file of the cross build, take the first nvcc that they find.
    environment = os.environ | {"PATH": f"{nvcc.parent}{os.pathsep}{os.environ['PATH']}"}
    work = folder.with_name(f".{folder.name}.building")
    work.mkdir(parents=True, exist_ok=True)
    log = work / "build.log"
    commands = {
        "configure": ["cmake", "-S", str(sources), "-B", str(work), *options],
        "compile": ["cmake", "--build", str(work), "--target", CMAKE_TARGET, "--parallel"],
    }
    with log.open("w") as file:
        for phrase, command in commands.items():
            on_step(phrase)
            ended = subprocess.run(
                command,
                cwd=sources,
                env=environment,
                stdout=file,
                stderr=subprocess.STDOUT,
                check=False,
            )
            if ended.returncode != 0:
                lines = log.read_text(errors="replace").splitlines()[-LAST_LINES:]
                raise EnvironmentLacks(
                    f"to {phrase} the plugins failed:\n" + "\n".join(f"  {x}" for x in lines),
                    hint=f"the whole log is {log}",
                )
    built = next(work.rglob(LIBRARY), None)
    if built is None:
        raise EnvironmentLacks(f"the build ended without {LIBRARY}", hint=f"the whole log is {log}")
    folder.mkdir(parents=True, exist_ok=True)
    partial = folder / f".{LIBRARY}.{os.getpid()}"
    shutil.copyfile(built, partial)
    partial.replace(folder / LIBRARY)
    shutil.rmtree(work)
