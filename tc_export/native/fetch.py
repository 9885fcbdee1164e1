# SPDX-License-Identifier: Apache-2.0
"""Fetch from the package registry what the native code needs and this machine does not have.

    python -m tc_export.native.fetch NAME

prints the folder that holds it, under `.cache/` of the source checkout. The first time it
downloads; later it only looks. Names and versions are in `PACKAGES`: each is pinned, so that the
same code is built and tested everywhere.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from tc_export.errors import UnsupportedEnvironment

CACHE = Path(__file__).resolve().parents[2] / ".cache"


@dataclass(frozen=True, kw_only=True)
class Package:
    """Wheels that are unpacked together; what they depend on is not fetched."""

    meaning: str
    wheels: tuple[str, ...]
    subfolder: str = "."  # what is wanted, inside the unpacked wheels
    platform: str | None = None  # of the wheels; None: this machine's
    links: tuple[tuple[str, str], ...] = ()  # symbolic links to add: (path, what it points to)
    alternative: str | None = None  # what to do where the registry cannot be reached


PACKAGES = {
    "tensorrt-headers": Package(
        meaning="C++ headers of TensorRT 10.14.1 (Apache-2.0)",
        wheels=("kernel-lens==2.0.1",),
        subfolder="kernel_lens/include/tensorrt",
        alternative="where the headers are on this machine, give --tensorrt-root",
    ),
    "cuda-headers": Package(
        meaning="C headers of the CUDA 13.0 runtime",
        wheels=("nvidia-cuda-runtime==13.0.96", "nvidia-cuda-crt==13.0.88"),
        subfolder="nvidia/cu13/include",
    ),
    "nvcc": Package(
        meaning="the CUDA 13.0 compiler, with its headers and runtime",
        wheels=(
            "nvidia-cuda-nvcc==13.0.88",
            "nvidia-nvvm==13.0.88",
            "nvidia-cuda-crt==13.0.88",
            "nvidia-cuda-runtime==13.0.96",
            "nvidia-cuda-cccl==13.0.85",
        ),
        subfolder="nvidia/cu13/bin",
        # nvcc and CMake look for the runtime where a whole toolkit has it.
        links=(
            ("nvidia/cu13/lib64", "lib"),
            ("nvidia/cu13/lib/libcudart.so", "libcudart.so.13"),
        ),
        alternative="install CUDA's own package, and put nvcc on the PATH",
    ),
    "nvrtc-12.6": Package(
        meaning="the CUDA 12.6 compiler of device code, as a library, and its headers; for tests",
        wheels=("nvidia-cuda-nvrtc-cu12==12.6.85", "nvidia-cuda-cccl-cu12==12.6.77"),
        subfolder="nvidia",
    ),
    "cuda-aarch64": Package(
        meaning="CUDA 13.0 headers and runtime for aarch64, to compile and link against",
        wheels=(
            "nvidia-cuda-runtime==13.0.96",
            "nvidia-cuda-crt==13.0.88",
            "nvidia-cuda-cccl==13.0.85",
            "nvidia-cuda-nvcc==13.0.88",  # for its headers
        ),
        subfolder="nvidia/cu13",
        platform="manylinux2014_aarch64",
        # The name that a linker looks for, which the wheel lacks.
        links=(("nvidia/cu13/lib/libcudart.so", "libcudart.so.13"),),
    ),
    "cuobjdump": Package(
        meaning="lists the device code in a library, of any host architecture",
        wheels=("nvidia-cuda-cuobjdump==13.2.51",),
        subfolder="nvidia/cu13/bin",
    ),
    "tensorrt-rtx": Package(
        meaning="TensorRT-RTX with its parser and Python bindings; builds engines without a GPU",
        wheels=("tensorrt-rtx-cu13-libs==1.7.1.116", "tensorrt-rtx-cu13-bindings==1.7.1.116"),
        # Its parser opens this name, which the wheel lacks, and aborts at the first plugin node.
        links=(("tensorrt_rtx_libs/libtensorrt_rtx.so", "libtensorrt_rtx.so.1"),),
    ),
    "tensorrt-lean": Package(
        meaning="TensorRT's lean runtime with its plugin registry; no builder, no parser",
        wheels=(
            "tensorrt-lean-cu13-libs==11.4.0.106",
            "tensorrt-lean-cu13-bindings==11.4.0.106",
        ),
    ),
    **{
        f"tensorrt-bindings-{'.'.join(version.split('.')[:2])}": Package(
            meaning=f"Python bindings of TensorRT {version}, without what they bind",
            wheels=(f"tensorrt-cu12-bindings=={version}",),
        )
        for version in ("10.3.0", "10.13.3.9", "10.16.1.11", "11.4.0.106")
    },
}


def pip_command(package: Package, target: Path) -> list[str]:
    """The pip call that unpacks a package's wheels into `target`."""
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps"]
    command += ["--disable-pip-version-check", "--only-binary=:all:", "--target", str(target)]
    if package.platform is not None:
        command += ["--platform", package.platform]
    return [*command, *package.wheels]


def fetch(name: str, *, cache: Path | None = None) -> Path:
    """Return the folder of a package, downloading it where it is not in the cache.

    Args:
        name: one of `PACKAGES`.
        cache: where packages are kept; by default `CACHE`.

    Raises:
        UnsupportedEnvironment: pip could not fetch it.
    """
    package = PACKAGES[name]
    cache = cache or CACHE
    version = package.wheels[0].partition("==")[2]
    folder = cache / f"{name}-{version}"
    if not folder.exists():
        cache.mkdir(exist_ok=True)
        (cache / ".gitignore").write_text("*\n")
        # Unpacked beside and then renamed: an interrupted download leaves no half package, and of
        # two at once the first to finish stays.
        partial = Path(tempfile.mkdtemp(prefix=f"{name}-", dir=cache))
        try:
            _unpack(name, partial)
            partial.chmod(0o755)
            partial.rename(folder)
        except OSError:
            if not folder.exists():
                raise
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    return folder / package.subfolder


def _unpack(name: str, folder: Path) -> None:
    """Download a package's wheels, unpack them into `folder`, and add its links."""
    package = PACKAGES[name]
    try:
        subprocess.run(pip_command(package, folder), check=True, capture_output=True, text=True)
    except subprocess.CalledProcessError as error:
        last = (error.stderr.strip() or "pip said nothing").splitlines()[-1]
        raise UnsupportedEnvironment(
            f"{name} could not be fetched from the package registry: {last}",
            hint=package.alternative,
        ) from error
    for path, points_to in package.links:
        (folder / path).symlink_to(points_to)


def main() -> int:
    """Fetch one package and print its folder; the exit code is 4 where it cannot be had."""
    listing = "\n".join(f"  {name:26}{package.meaning}" for name, package in PACKAGES.items())
    parser = argparse.ArgumentParser(
        prog="python -m tc_export.native.fetch",
        description="Fetch what the native code needs from the package registry.",
        epilog=f"names:\n{listing}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("name", choices=sorted(PACKAGES), metavar="NAME")
    name = parser.parse_args().name
    try:
        print(fetch(name))
    except UnsupportedEnvironment as error:
        print(error, file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
