# SPDX-License-Identifier: Apache-2.0
"""Build the TensorRT plugin library for a target, once for each state of its sources.

The target's file alone decides the SM and the processor. A library is kept under the hash of all
that it is made from: the sources, the SM, the processor, the compiler, and the packages that are
fetched for it. The CUDA compiler is the one on the PATH; where there is none, that of the package
registry.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import platform
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tc_export.errors import UnsupportedEnvironment, UsageError
from tc_export.native.fetch import PACKAGES, fetch
from tc_export.native.sources import sources_digest
from tc_export.targets import Release, Target

ROOT = Path(__file__).resolve().parents[2]
PLUGINS = "plugins"  # the sources' folder in a checkout
LIBRARY = "libtc_tensorrt.so"
CMAKE_TARGET = "tc_tensorrt"
CROSS_COMPILER = "aarch64-linux-gnu-g++"
LAST_LINES = 15  # of a failed build's log, in the message


@dataclass(frozen=True, kw_only=True)
class PluginLibrary:
    """A built library. `cached`: it was there already."""

    path: Path
    target: str
    sm: int
    architecture: str
    cached: bool


@dataclass(frozen=True, kw_only=True)
class _Checkout:
    """The source checkout that a library is built in. Each step is said to `on_step`."""

    root: Path
    on_step: Callable[[str], None]

    @property
    def plugins(self) -> Path:
        return self.root / PLUGINS

    def fetch(self, package: str) -> Path:
        """The folder of a pinned package of the registry, which is downloaded the first time."""
        self.on_step(f"fetch {package}")
        return fetch(package, cache=self.root / ".cache")

    def nvcc(self) -> Path:
        """The CUDA compiler on the PATH, else that of the package registry."""
        on_path = shutil.which("nvcc")
        return Path(on_path) if on_path else self.fetch("nvcc") / "nvcc"

    def nvcc_version(self) -> str:
        """What nvcc prints of its version, in several lines."""
        command = [str(self.nvcc()), "--version"]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def build_plugins(
    target: Target,
    *,
    tensorrt_root: Path | None = None,
    root: Path = ROOT,
    on_step: Callable[[str], None] = lambda phrase: None,
) -> PluginLibrary:
    """Compile the plugin library for `target`, or find the one that was compiled before.

    Args:
        target: the device.
        tensorrt_root: folder of TensorRT's headers; by default those of the package registry.
        root: a source checkout.
        on_step: called with a phrase before each step.

    Raises:
        UsageError: the target has no GPU.
        UnsupportedEnvironment: no sources, no compiler, no headers, or the compiler failed.
    """
    sm, architecture = _device(target)
    checkout = _Checkout(root=root, on_step=on_step)
    key = library_key(target, root=root, on_step=on_step)
    folder = root / "build" / "plugins" / f"sm{sm}-{architecture}-{key[:16]}"
    path = folder / LIBRARY
    with _one_at_a_time(folder, on_step):
        cached = path.is_file()
        if not cached:
            _compile(checkout, folder, _options(checkout, sm, architecture, tensorrt_root))
    return PluginLibrary(
        path=path, target=target.name, sm=sm, architecture=architecture, cached=cached
    )


def library_key(
    target: Target,
    *,
    root: Path = ROOT,
    on_step: Callable[[str], None] = lambda phrase: None,
) -> str:
    """Hash of all that the library for `target` is made from.

    Raises:
        UsageError: the target has no GPU.
        UnsupportedEnvironment: no sources, or no compiler.
    """
    sm, architecture = _device(target)
    checkout = _Checkout(root=root, on_step=on_step)
    sources = find_sources(root)
    _check_tools(architecture)
    packages = [PACKAGES[name].wheels for name in _packages(architecture)]
    made_from = f"{sm}\n{architecture}\n{checkout.nvcc_version()}\n{packages}\n"
    return hashlib.sha256(f"{made_from}{sources_digest(sources)}".encode()).hexdigest()


def find_sources(root: Path = ROOT) -> Path:
    """The folder of the plugins' sources in a checkout.

    Raises:
        UnsupportedEnvironment: this is none.
    """
    sources = root / PLUGINS
    if not (sources / "CMakeLists.txt").is_file():
        raise UnsupportedEnvironment(
            f"the plugins' sources are not at {sources}: an installed package does not have them",
            hint="run this in a source checkout of tc-export",
        )
    return sources


def can_compile_for(release: Release) -> bool:
    """True where what the CUDA compiler here makes can run on the device's release.

    The library carries the compiler's CUDA runtime, which needs a driver of its major version.
    """
    return _cuda_version().partition(".")[0] == release.cuda.partition(".")[0]


def check_cuda(release: Release) -> None:
    """Refuse a release that `can_compile_for` does not hold for.

    Raises:
        UnsupportedEnvironment: the compiler here is of another CUDA.
    """
    if not can_compile_for(release):
        raise UnsupportedEnvironment(
            f"{release.name} has CUDA {release.cuda}, and the compiler here is CUDA "
            f"{_cuda_version()}: its plugins would not load there",
            hint="build for a release of the same major version (--release), or put an nvcc of "
            f"CUDA {release.cuda} first on the PATH",
        )


def _cuda_version() -> str:
    """Major and minor version of the CUDA compiler on the PATH, else of the registry's.

    The registry's version is pinned: nothing is downloaded to learn it.
    """
    if shutil.which("nvcc") is None:
        return ".".join(PACKAGES["nvcc"].wheels[0].partition("==")[2].split(".")[:2])
    command = ["nvcc", "--version"]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found = re.search(r"release (\d+\.\d+)", said)
    return found[1] if found else "of an unknown version"


@contextmanager
def _one_at_a_time(folder: Path, on_step: Callable[[str], None]) -> Iterator[None]:
    """Let one process compile a library; one that comes later waits, and finds it."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with folder.with_name(f".{folder.name}.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            on_step("wait for another build of the same library")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


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


def _check_tools(architecture: str) -> None:
    """See that CMake and the compiler of the host's part are there."""
    needed = ["cmake", CROSS_COMPILER if _is_cross(architecture) else "g++"]
    missing = [name for name in needed if shutil.which(name) is None]
    if missing:
        raise UnsupportedEnvironment(
            f"building the plugins needs {', '.join(missing)}, not found on the PATH",
            hint="docs/native-code.md says where each comes from; tc-export doctor lists them",
        )


def _packages(architecture: str) -> list[str]:
    """The packages of the registry that a build for this processor uses."""
    names = ["tensorrt-headers"]
    if _is_cross(architecture):
        names.append("cuda-aarch64")
    if shutil.which("nvcc") is None:
        names.append("nvcc")
    return names


def _options(
    checkout: _Checkout, sm: int, architecture: str, tensorrt_root: Path | None
) -> list[str]:
    """CMake's options: a preset, the one SM, and where the headers are."""
    headers = tensorrt_root or checkout.fetch("tensorrt-headers")
    options = ["--preset", "jetson-cross" if _is_cross(architecture) else "cuda"]
    options += [f"-DCMAKE_CUDA_ARCHITECTURES={sm}-real", f"-DTENSORRT_ROOT={headers}"]
    if _is_cross(architecture):
        options.append(f"-DTC_CUDA_AARCH64={checkout.fetch('cuda-aarch64')}")
    return options


def _compile(checkout: _Checkout, folder: Path, options: Sequence[str]) -> None:
    """Configure and build beside the library's place, then put it there at once."""
    work = folder.with_name(f".{folder.name}.building")
    work.mkdir(parents=True, exist_ok=True)
    log = work / "build.log"
    configure = ["cmake", "-S", str(checkout.plugins), "-B", str(work), *options]
    compile_ = ["cmake", "--build", str(work), "--target", CMAKE_TARGET, "--parallel"]
    log.unlink(missing_ok=True)
    _run_cmake(checkout, "configure", configure, log)
    _run_cmake(checkout, "compile", compile_, log)
    built = next(work.rglob(LIBRARY), None)
    if built is None:
        raise UnsupportedEnvironment(
            f"the build ended without making {LIBRARY}", hint=f"the whole log is {log}"
        )
    folder.mkdir(parents=True, exist_ok=True)
    partial = folder / f".{LIBRARY}.{os.getpid()}"
    shutil.copyfile(built, partial)
    partial.replace(folder / LIBRARY)
    shutil.rmtree(work)


def _run_cmake(checkout: _Checkout, phrase: str, command: Sequence[str], log: Path) -> None:
    """Run one step of a build and append what it prints to the log."""
    # CMake, and the toolchain file of the cross build, take the first nvcc that they find.
    path = f"{checkout.nvcc().parent}{os.pathsep}{os.environ['PATH']}"
    checkout.on_step(phrase)
    with log.open("a") as file:
        ended = subprocess.run(
            command,
            cwd=checkout.plugins,
            env=os.environ | {"PATH": path},
            stdout=file,
            stderr=subprocess.STDOUT,
            check=False,
        )
    if ended.returncode != 0:
        lines = log.read_text(errors="replace").splitlines()[-LAST_LINES:]
        raise UnsupportedEnvironment(
            f"could not {phrase} the plugins; the log ends with:\n"
            + "\n".join(f"  {line}" for line in lines),
            hint=f"the whole log is {log}",
        )
