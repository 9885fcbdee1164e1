# SPDX-License-Identifier: Apache-2.0
"""What is missing on this machine for a target, judged from the findings, and how to get it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any

from tc_export.doctor.checks import OP_NAMES, Finding
from tc_export.targets import Target

_ITS_GPU = "a GPU of the target's SM"
_ITS_NAME = "--target TARGET"


class Purpose(StrEnum):
    """What cannot be done without it."""

    EXPORT = "export"  # the graphs
    ENGINE = "engine"  # building or finishing the engine on this machine
    PLUGINS = "plugins"  # our kernels in the engine
    SPEED = "speed"  # nothing: it is slower


@dataclass(frozen=True, kw_only=True)
class Missing:
    """Something that a target needs and that is not here.

    Said for any target, so that what several targets need alike is one thing: see `for_target`.
    """

    what: str
    needed_for: Purpose
    fix: str  # a command, or what to do instead

    def for_target(self, target: Target) -> Missing:
        """The same, with the target's own SM and name."""
        return replace(
            self,
            what=self.what.replace(_ITS_GPU, f"a GPU of SM {target.sm}"),
            fix=self.fix.replace(_ITS_NAME, f"--target {target.name}"),
        )


Findings = Mapping[str, Finding]


def find_missing(target: Target, findings: Findings) -> Iterator[Missing]:
    """Everything that is missing for the target; nothing where a build can go all the way."""
    yield from _packages(findings)
    if target.toolchain.engine == "onnxruntime":
        yield from _native_library(findings)
        return
    yield from _plugins(target, findings)
    if target.toolchain.engine == "tensorrt-rtx":
        yield from _tensorrt_rtx(findings)
    else:
        yield from _tensorrt(target, findings)


def _packages(findings: Findings) -> Iterator[Missing]:
    for name, package in findings["packages"].facts.items():
        if not package["fits"]:
            found = f"is {package['version']}" if package["version"] else "is not installed"
            yield Missing(
                what=f"the package {name} {found}",
                needed_for=Purpose.EXPORT,
                fix=f"pip install '{name}{package['wanted']}'",
            )
    if findings["onnxruntime"].failure:
        yield Missing(
            what=f"ONNX Runtime does not work: {findings['onnxruntime'].failure}",
            needed_for=Purpose.EXPORT,
            fix="pip install --force-reinstall onnxruntime",
        )


def _native_library(findings: Findings) -> Iterator[Missing]:
    served = findings["native_library"].facts.get("onnxruntime_ops", [])
    without = [name for name in OP_NAMES if name not in served]
    if not without:
        return
    compilers = findings["compilers"].facts
    if "cmake" not in compilers or "c++" not in compilers:
        yield Missing(
            what="CMake and a C++ compiler",
            needed_for=Purpose.SPEED,
            fix="sudo apt-get install cmake g++",
        )
    why = findings["native_library"].failure or findings["native_library"].missing
    yield Missing(
        what=f"native kernels of {', '.join(without)}" + (f" ({why})" if why else ""),
        needed_for=Purpose.SPEED,
        fix="cmake --preset native -S plugins && cmake --build build/native",
    )


def _plugins(target: Target, findings: Findings) -> Iterator[Missing]:
    """A plugin library for the target's processor, and what it is built with."""
    wanted = target.toolchain.architecture
    here = findings["system"].facts.get("architecture")
    libraries: Mapping[str, Any] = findings["plugins"].facts
    if any(
        library["architecture"] == wanted and set(OP_NAMES) <= set(library["ops"])
        for library in libraries.values()
    ):
        return
    compilers = findings["compilers"].facts
    cross = wanted != here
    for program, package in (
        ("cmake", "cmake"),
        (f"{wanted}-linux-gnu-g++", f"g++-{wanted}-linux-gnu") if cross else ("c++", "g++"),
    ):
        if program not in compilers:
            yield Missing(
                what=f"the program {program}",
                needed_for=Purpose.PLUGINS,
                fix=f"sudo apt-get install {package}",
            )
    # The CUDA compiler is not missed: where it is not here, it comes from the package registry.
    yield Missing(
        what=f"TensorRT plugins for {wanted}",
        needed_for=Purpose.PLUGINS,
        fix=f"tc-export plugins build {_ITS_NAME} (a build does it by itself)",
    )


def _tensorrt_rtx(findings: Findings) -> Iterator[Missing]:
    """TensorRT-RTX builds without a GPU: the module is all it needs."""
    facts = findings["tensorrt"].facts
    modules = ("tensorrt_rtx_bindings", "tensorrt_rtx")
    versions = [str(facts[module]) for module in modules if module in facts]
    if not any(version[0].isdigit() for version in versions):
        version = versions[0] if versions else "is not installed"
        yield Missing(
            what=f"TensorRT-RTX {version}",
            needed_for=Purpose.ENGINE,
            fix="pip install 'tc-export[rtx]'",
        )


def _tensorrt(target: Target, findings: Findings) -> Iterator[Missing]:
    """TensorRT builds on the device, or on a machine with the same GPU."""
    if not _has_gpu(target, findings):
        yield Missing(
            what=_ITS_GPU,
            needed_for=Purpose.ENGINE,
            fix=f"build the rest here (tc-export build {_ITS_NAME}), and the engine on the device",
        )
        return
    found = findings["tensorrt"].facts
    if "trtexec" in found or str(found.get("tensorrt", ""))[:1].isdigit():
        return
    jetson = target.toolchain.architecture == "aarch64"
    yield Missing(
        what="TensorRT",
        needed_for=Purpose.ENGINE,
        fix="sudo apt-get install nvidia-jetpack" if jetson else "pip install tensorrt",
    )


def _has_gpu(target: Target, findings: Findings) -> bool:
    facts = findings["gpus"].facts
    if "jetson" in facts:
        return findings["system"].facts.get("architecture") == target.toolchain.architecture
    return any(
        str(gpu.get("compute_cap", "")).replace(".", "") == str(target.sm)
        for gpu in facts.get("gpus", ())
    )
