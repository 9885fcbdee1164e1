# SPDX-License-Identifier: Apache-2.0
"""Number formats that an engine may be asked for, and reading `--precision`."""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING, Self

from tc_export.config import Config
from tc_export.dtypes import DType
from tc_export.errors import UsageError

if TYPE_CHECKING:
    from tc_export.targets.target import Target

SHORT_NAMES = ("fp32", "fp16", "bf16")
"""What people type; `tc_export.dtypes` knows which formats they are."""


class Precision(StrEnum):
    """A number format that weights are stored in, and multiplied in where it says so."""

    FLOAT32 = DType.FLOAT32
    FLOAT16 = DType.FLOAT16
    BFLOAT16 = DType.BFLOAT16
    INT8 = DType.INT8
    INT4 = DType.INT4  # weights only: multiplied as float16
    FP8 = DType.FP8
    NVFP4 = DType.NVFP4

    @property
    def dtype(self) -> DType:
        """The format as the table of all formats has it."""
        return DType(self)

    @property
    def is_float(self) -> bool:
        """True for the formats that a whole graph can be exported in."""
        return self in (Precision.FLOAT32, Precision.FLOAT16, Precision.BFLOAT16)


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
        precision = Precision(DType.from_alias(value) or value)
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
