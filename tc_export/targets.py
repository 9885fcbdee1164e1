# SPDX-License-Identifier: Apache-2.0
"""Devices as data: what each one has, what it can run, and which of its figures are in doubt.

A target is a TOML file: one of those that are shipped, or the user's own, given by its path.
GB are 10^9 bytes; rates are dense, in units of 10^12 operations a second.
"""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from tc_export.config import Config
from tc_export.errors import InputError, UsageError

_PACKAGE = Path(__file__).resolve().parent

SHIPPED_FOLDERS = (
    _PACKAGE / "engines" / "targets",  # installed by a wheel
    _PACKAGE.parent / "engines" / "targets",  # a source checkout
)

OLDEST_SM = 80  # has cp.async and the 16-bit mma.m16n8k16, which the kernels are written with
SHORT_NAMES = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}


class Precision(StrEnum):
    """A number format that weights are stored in, and multiplied in where it says so."""

    FLOAT32 = "float32"
    FLOAT16 = "float16"
    BFLOAT16 = "bfloat16"
    INT8 = "int8"
    INT4 = "int4"  # weights only: multiplied as float16
    FP8 = "fp8"
    NVFP4 = "nvfp4"

    @property
    def is_float(self) -> bool:
        """True for the formats that a whole graph can be exported in."""
        return self in (Precision.FLOAT32, Precision.FLOAT16, Precision.BFLOAT16)


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


class Release(Config):
    """A set of versions that come together on the device."""

    name: str
    cuda: str
    tensorrt: str  # of the flavour that `Toolchain.engine` names
    system: str | None = None


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
    path = Path(name_or_path)
    if path.suffix == ".toml" or len(path.parts) > 1:
        return read_target(path)
    shipped = _shipped_files()
    if name_or_path not in shipped:
        near = difflib.get_close_matches(name_or_path.lower(), shipped, n=1, cutoff=0.5)
        raise UsageError(
            f"the target {name_or_path!r} is unknown; known targets: {', '.join(shipped)}",
            hint=(f"did you mean {near[0]}? " if near else "")
            + "A file of your own is given by its path (docs/adding-a-target.md)",
        )
    return read_target(shipped[name_or_path])


def list_targets() -> list[Target]:
    """All shipped targets, by name."""
    return [read_target(path) for path in _shipped_files().values()]


def read_target(path: Path) -> Target:
    """Read one target's file.

    Raises:
        UsageError: it is not a valid target; every wrong and unknown key is named.
        InputError: it cannot be read.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(
            f"the target's file {path} cannot be read: {error}",
            hint="tc-export targets lists those that are shipped",
        ) from error
    try:
        values = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise UsageError(f"{path} is not TOML: {error}") from error
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


def _shipped_files() -> dict[str, Path]:
    for folder in SHIPPED_FOLDERS:
        if folder.is_dir():
            return {path.stem: path for path in sorted(folder.glob("*.toml"))}
    raise UsageError(
        f"no targets are installed: looked in {', '.join(map(str, SHIPPED_FOLDERS))}",
        hint="install tc-export again",
    )


def choose_release(target: Target, wanted: str | None) -> Release | None:
    """The device's software to build for: the newest, or the one that is asked for.

    `wanted` is a release's name, or its TensorRT version. None for a target without any.

    Raises:
        UsageError: the target has no such release.
    """
    releases = target.toolchain.releases
    if wanted is None:
        return releases[-1] if releases else None
    for release in releases:
        if wanted.lower() in (release.name.lower(), release.tensorrt):
            return release
    known = ", ".join(f"{release.name!r} (TensorRT {release.tensorrt})" for release in releases)
    raise UsageError(
        f"{target.name} has no release {wanted!r}",
        hint=f"known: {known}" if releases else "leave --release out: this target has none",
    )


COMPONENTS = ("vision", "decoder")


class Precisions(Config):
    """The number format of each engine."""

    vision: Precision
    decoder: Precision

    @classmethod
    def both(cls, precision: Precision | str) -> Self:
        """One format for both engines."""
        return cls(vision=Precision(precision), decoder=Precision(precision))

    def __str__(self) -> str:
        """As a person reads it: one format, or each engine's."""
        if self.vision == self.decoder:
            return self.vision
        return f"vision {self.vision}, decoder {self.decoder}"


def read_precisions(text: str | None, target: Target) -> Precisions:
    """Read `--precision`: one format for both engines, or `vision=fp16,decoder=bf16`.

    An engine that is not named takes the target's first format; without `text` both do.

    Raises:
        UsageError: the text is wrong, or the target lacks the format.
    """
    chosen = dict.fromkeys(COMPONENTS, target.precisions[0])
    for part in [] if text is None else text.split(","):
        component, equals, value = part.strip().rpartition("=")
        if equals and component not in COMPONENTS:
            raise UsageError(
                f"--precision {text!r} names a component {component!r}",
                hint=f"known components: {', '.join(COMPONENTS)}",
            )
        for name in (component,) if equals else COMPONENTS:
            chosen[name] = _precision(value, target, name)
    return Precisions(**chosen)


def _precision(value: str, target: Target, component: str) -> Precision:
    try:
        precision = Precision(SHORT_NAMES.get(value, value))
    except ValueError:
        names = ", ".join([*Precision, *SHORT_NAMES])
        raise UsageError(
            f"the precision {value!r} is unknown", hint=f"known precisions: {names}"
        ) from None
    target.check_precision(precision, component)
    if not precision.is_float:
        floats = ", ".join(p for p in target.precisions if p.is_float)
        raise UsageError(
            f"{target.name} has {precision}, but graphs are exported in floating point only",
            hint=f"for {target.name}: {floats}",
        )
    return precision
