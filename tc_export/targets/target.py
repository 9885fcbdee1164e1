# SPDX-License-Identifier: Apache-2.0
"""Devices as data: what each one has, what it can run, and which of its figures are in doubt.

A target is a TOML file: one of those that are shipped, or the user's own, given by its path.
GB are 10^9 bytes; rates are dense, in units of 10^12 operations a second.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from tc_export.config import Config
from tc_export.errors import UsageError
from tc_export.shipped_files import ShippedFiles
from tc_export.targets.precision import Precision
from tc_export.targets.release import Release

SHIPPED = ShippedFiles(
    "target", "targets", "A file of your own is given by its path (docs/adding-a-target.md)"
)

OLDEST_SM = 80  # has cp.async and the 16-bit mma.m16n8k16, which the kernels are written with


class Mark(StrEnum):
    """Why a figure is in doubt."""

    DERIVED = "derived"  # computed from another figure
    UNCERTAIN = "uncertain"  # sources conflict or are weak
    ASSUMED = "assumed"  # ours: no source states it


class Doubt(Config):
    """A figure that may be wrong."""

    field: str  # the key in the target's file, with dots: rates.float16
    mark: Mark
    reason: str


class Memory(Config):
    """Memory that the engine runs in. None: the host's, read when it is asked for."""

    total_gb: float | None = Field(default=None, gt=0)
    usable_gb: float | None = Field(default=None, gt=0)  # where less can be used than is fitted
    bandwidth_gb_s: float | None = Field(default=None, gt=0)
    unified: bool  # the processor and the GPU share it
    os_reserve_gb: float = Field(ge=0)  # what the system, its driver and its display take


class Rates(Config):
    """Dense TFLOP/s by format (TOP/s for integers); None where there is no figure."""

    float32: float | None = Field(default=None, gt=0)
    float16: float | None = Field(default=None, gt=0)
    bfloat16: float | None = Field(default=None, gt=0)
    int8: float | None = Field(default=None, gt=0)
    fp8: float | None = Field(default=None, gt=0)
    nvfp4: float | None = Field(default=None, gt=0)


EngineFlavour = Literal["onnxruntime", "tensorrt", "tensorrt-rtx"]


class Toolchain(Config):
    """Who builds and runs the engine, and on which processor."""

    engine: EngineFlavour
    also: tuple[EngineFlavour, ...] = ()  # flavours that would do as well
    architecture: Literal["x86_64", "aarch64"] | None = None  # None: the host's
    releases: tuple[Release, ...] = ()


class Target(Config):
    """A device to build for."""

    name: str = Field(pattern="^[a-z0-9][a-z0-9.-]*$")
    description: str
    sm: int | None = None  # CUDA compute capability, 87 for 8.7
    precisions: tuple[Precision, ...] = Field(min_length=1)
    memory: Memory
    rates: Rates = Rates()
    toolchain: Toolchain
    source: str
    doubts: tuple[Doubt, ...] = ()

    @model_validator(mode="after")
    def _check(self) -> Self:
        values = self.model_dump()
        for doubt in self.doubts:
            if _value_at(values, doubt.field) is None:
                raise ValueError(f"a doubt about {doubt.field!r}, which this target does not state")
        if (self.sm is None) != (self.toolchain.engine == "onnxruntime"):
            raise ValueError("sm belongs to a TensorRT engine, and only to one")
        if self.sm is not None and self.sm < OLDEST_SM:
            raise ValueError(f"sm is {self.sm}: the kernels need {OLDEST_SM} or later")
        if self.sm is not None and not self.toolchain.releases:
            raise ValueError(
                "a TensorRT engine is built for a release: toolchain.releases is empty"
            )
        return self

    def doubts_about(self, field: str) -> tuple[Doubt, ...]:
        """Doubts about a figure, by its key in the file."""
        return tuple(doubt for doubt in self.doubts if doubt.field == field)

    def check_precision(self, precision: Precision, component: str) -> None:
        """See that the device has a number format.

        Raises:
            UsageError: it has not; names those that it has.
        """
        if precision not in self.precisions:
            raise UsageError(
                f"{self.name} cannot run the {component} in {precision}",
                hint=f"{self.name} has: {', '.join(self.precisions)}",
            )


def _value_at(values: Mapping[str, Any], field: str) -> Any:
    found: Any = values
    for key in field.split("."):
        found = found.get(key) if isinstance(found, Mapping) else None
    return found


def load_target(name_or_path: str) -> Target:
    """Read a shipped target by its name, or the user's own by the path of its file.

    What ends in `.toml` or has a folder in it is a path.

    Raises:
        UsageError: no target of that name, or a file that is not a valid target.
        InputError: no such file, or one that cannot be read.
    """
    return read_target(SHIPPED.find(name_or_path))


def list_targets() -> list[Target]:
    """All shipped targets, by name."""
    return [read_target(path) for path in SHIPPED.by_name().values()]


def read_target(path: Path) -> Target:
    """Read one target's file.

    Raises:
        UsageError: it is not a valid target; every wrong and unknown key is named.
        InputError: it cannot be read.
    """
    values = SHIPPED.read(path, hint="tc-export targets lists those that are shipped")
    try:
        target = Target.read(values, where=str(path))
    except UsageError as error:
        raise UsageError(str(error), hint=_known_keys()) from error
    if target.name != path.stem:
        raise UsageError(
            f"{path} names its target {target.name!r}, expected {path.stem!r}",
            hint="a target is found by the name of its file: let both be the same",
        )
    return target


def _known_keys() -> str:
    """Every key of a target's file, table by table."""
    tables: dict[str, type[Config]] = {
        "memory": Memory,
        "rates": Rates,
        "toolchain": Toolchain,
        "toolchain.releases": Release,
        "doubts": Doubt,
    }
    lines = [f"known keys: {', '.join(Target.model_fields)}"]
    lines += [f"in {name}: {', '.join(model.model_fields)}" for name, model in tables.items()]
    return "\n  ".join(lines)
