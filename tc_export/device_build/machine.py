# SPDX-License-Identifier: Apache-2.0
"""Is this the machine that the engines are to be built on?"""

from __future__ import annotations

import platform
from dataclasses import dataclass
from pathlib import Path

from packaging.version import Version

from tc_export.bundle import locate
from tc_export.device_build.spec import DeviceBuildSpec
from tc_export.engine.tensorrt.bindings import import_tensorrt
from tc_export.engine.tensorrt.cuda import compute_capability, open_cuda
from tc_export.engine.tensorrt.flavours import FLAVOURS, TENSORRT
from tc_export.errors import BundleError, UnsupportedEnvironment
from tc_export.native import elf


@dataclass(frozen=True)
class Machine:
    """A machine that builds engines: its processor as `uname -m` says it, TensorRT, and its GPU."""

    architecture: str
    tensorrt: str
    sm: int


def this_machine(spec: DeviceBuildSpec) -> Machine:
    """The machine that we run on.

    Raises:
        UnsupportedEnvironment: it is not of the spec's processor, has no GPU, no TensorRT, or not
            the bindings to reach it.
    """
    architecture = platform.machine()
    _check_processor(spec, architecture)  # first: a host need not be told that it has no TensorRT
    tensorrt = import_tensorrt(FLAVOURS[TENSORRT])
    sm = compute_capability()
    open_cuda()  # the engines will need it: better to say so before they are built
    return Machine(architecture, tensorrt.__version__, sm)


def _check_processor(spec: DeviceBuildSpec, architecture: str) -> None:
    if architecture != spec.architecture:
        raise UnsupportedEnvironment(
            f"this machine is {architecture}; the bundle is for {spec.target}, which is "
            f"{spec.architecture}",
            hint=f"copy the bundle to the {spec.target}, and run the command there",
        )


def check_machine(spec: DeviceBuildSpec, machine: Machine, bundle: Path) -> None:
    """See that the engines of `bundle` can be built here.

    Raises:
        UnsupportedEnvironment: another processor or GPU, or another TensorRT than the graphs were
            made for.
        BundleError: the plugin library is missing, or for another processor than the spec names.
    """
    _check_processor(spec, machine.architecture)
    if machine.sm != spec.sm:
        raise UnsupportedEnvironment(
            f"this machine's GPU is of SM {machine.sm}; the plugins in the bundle are for SM "
            f"{spec.sm} ({spec.target})",
            hint="build the bundle for a target of this GPU: tc-export targets lists them",
        )
    here, made_for = Version(machine.tensorrt), Version(spec.tensorrt)
    # A parser keeps what older ones of its major version took.
    if here.major != made_for.major or here.minor < made_for.minor:
        raise UnsupportedEnvironment(
            f"this machine has TensorRT {machine.tensorrt}; the graphs in the bundle were made for "
            f"TensorRT {spec.tensorrt} or a later {made_for.major}.x",
            hint=f"build the bundle again for a release of {spec.target} that has TensorRT "
            f"{here.major}.{here.minor} (tc-export targets lists the releases)",
        )
    if spec.plugin_sources is None:
        check_library(spec, locate(bundle, spec.plugin_library))


def check_library(spec: DeviceBuildSpec, library: Path) -> None:
    """See that the plugin library is for the device.

    Raises:
        BundleError: it is missing, or for another processor than the spec names.
    """
    found = library_architecture(library)
    if found != spec.architecture:
        raise BundleError(
            f"the plugin library {library} is for {found}, expected {spec.architecture}",
            hint="build the bundle again; tc-export verify BUNDLE names what was changed",
        )


def library_architecture(library: Path) -> str:
    """The processor of a shared library, as `uname -m` says it.

    Raises:
        BundleError: it is missing, or no shared library.
    """
    try:
        with library.open("rb") as file:
            header = file.read(elf.HEADER_BYTES)
    except OSError as error:
        raise BundleError(
            f"the plugin library {library} cannot be read: {error.strerror}",
            hint="get the bundle again from where it was built",
        ) from error
    architecture = elf.architecture(header)
    if architecture is None:
        raise BundleError(
            f"{library} is no shared library", hint="get the bundle again from where it was built"
        )
    return architecture
