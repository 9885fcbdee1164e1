# SPDX-License-Identifier: Apache-2.0
"""Fetch from the package registry what the native parts need and this machine lacks.

    python plugins/tensorrt/fetch.py NAME

prints the folder that holds it, under `.cache/` of the repository. The first time it downloads;
later it only looks. Names and versions are in `PACKAGES`: each is pinned, so that the same code is
built and tested everywhere.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

CACHE = Path(__file__).resolve().parents[2] / ".cache"


@dataclass(frozen=True, kw_only=True)
class Package:
    """Wheels that are unpacked together; nothing they depend on is fetched."""

    meaning: str
    wheels: tuple[str, ...]
    subfolder: str = "."  # what is wanted, inside the unpacked wheels
    platform: str | None = None  # of the wheels; None: this machine's
    links: tuple[tuple[str, str], ...] = ()  # symbolic links to add: (path, what it points to)


PACKAGES = {
    "tensorrt-headers": Package(
        meaning="C++ headers of TensorRT 10.14.1 (Apache-2.0)",
        wheels=("kernel-lens==2.0.1",),
        subfolder="kernel_lens/include/tensorrt",
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


def fetch(name: str) -> Path:
    """Return the folder of a package, downloading it where it is not in the cache.

    Raises:
        subprocess.CalledProcessError: pip failed; its own words are in `stderr`.
    """
    package = PACKAGES[name]
    version = package.wheels[0].partition("==")[2]
    folder = CACHE / f"{name}-{version}"
    if not folder.exists():
        CACHE.mkdir(exist_ok=True)
        (CACHE / ".gitignore").write_text("*\n")
        # Unpacked beside and then renamed: an interrupted download leaves no half package, and of
        # two at once the first to finish stays.
        partial = Path(tempfile.mkdtemp(prefix=f"{name}-", dir=CACHE))
        try:
            command = pip_command(package, partial)
            subprocess.run(command, check=True, capture_output=True, text=True)
            for path, points_to in package.links:
                (partial / path).symlink_to(points_to)
            partial.chmod(0o755)
            partial.rename(folder)
        except OSError:
            if not folder.exists():
                raise
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    return folder / package.subfolder


def main() -> int:
    """Fetch one package and print its folder; 4 where it cannot be had."""
    listing = "\n".join(f"  {name:26}{package.meaning}" for name, package in PACKAGES.items())
    parser = argparse.ArgumentParser(
        description="Fetch what the native parts need from the package registry.",
        epilog=f"names:\n{listing}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("name", choices=sorted(PACKAGES), metavar="NAME")
    name = parser.parse_args().name
    try:
        print(fetch(name))
    except subprocess.CalledProcessError as error:
        last = (error.stderr.strip() or "pip said nothing").splitlines()[-1]
        print(f"{name} could not be fetched: {last}", file=sys.stderr)
        return 4
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
