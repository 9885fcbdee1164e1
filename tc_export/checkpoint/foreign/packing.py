# SPDX-License-Identifier: Apache-2.0
"""What is known of every checkpoint that a library quantised: its configuration, and its names.

Of a linear layer `X` such a checkpoint has no tensor `X.weight` of floating point, but several
tensors `X.PART`. A library's table of parts says which, and of what kind; tensors that are in no
table stay what they are.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from tc_export.checkpoint.foreign.unpacked import Misfit, Unpacked
from tc_export.checkpoint.four_bits import NVFP4_GROUP
from tc_export.checkpoint.safetensors_file import TensorLocation
from tc_export.config import ModelConfig
from tc_export.dtypes import DType
from tc_export.errors import CheckpointError
from tc_export.model.weight_shapes import Shape, weight_shapes
from tc_export.recipes import GROUP_SIZES, Recipe

if TYPE_CHECKING:
    from torch import Tensor

Parts = Mapping[str, TensorLocation]

ONE_NUMBER = (0, 1)
"""The axes that a tensor of one number may have."""

SCALES = (DType.FLOAT16, DType.BFLOAT16, DType.FLOAT32)
_LAYER = re.compile(r"(?<=\.layers)\.\d+\.")
_PROJECTION = re.compile(r"decoder\.layers\.\d+\.\w+\.\w+_proj\.weight")


@dataclass(frozen=True)
class Part:
    """A row of a library's table: what one of a layer's tensors is.

    Attributes:
        meaning: for a person, with its axes: N outputs, K inputs, G groups.
        dtypes: the formats that it is stored in.
        axes: how many it may have.
        needed: there is no weight without it.
        used: False for what the library keeps and the weight is not made of.
    """

    meaning: str
    dtypes: tuple[DType, ...]
    axes: tuple[int, ...] = (2,)
    needed: bool = True
    used: bool = True


class Packing(BaseModel, ABC):
    """A library's configuration of one checkpoint, and how it stores a matrix by it.

    Keys that change no number are passed over; a value that is not known is an error.
    """

    model_config = ConfigDict(
        strict=True, frozen=True, extra="ignore", allow_inf_nan=False, protected_namespaces=()
    )

    library: ClassVar[str]

    @property
    @abstractmethod
    def table(self) -> Mapping[str, Part]:
        """The tensors of a layer, by the last part of their names."""

    @property
    @abstractmethod
    def dtype(self) -> DType:
        """The format of the numbers once zero points are subtracted."""

    @property
    @abstractmethod
    def channels_a_scale(self) -> int | None:
        """Input channels that share a scale; None where all do."""

    @property
    def has_zero_points(self) -> bool:
        """True for numbers of four bits whose zero points are anywhere."""
        return False

    @property
    def inputs(self) -> DType | None:
        """The format that what enters a product is rounded to, here too; None where it stays."""
        return None

    @property
    def calibrates(self) -> bool:
        """True where the library has stored no scales of `inputs`, so that calibration has to find
        them."""
        return False

    @property
    def notes(self) -> tuple[str, ...]:
        """Sentences about what the library would compute and is not computed here."""
        return ()

    @property
    def _note_of_calibration(self) -> str:
        return (
            f"{self.library} rounds what enters a product to {self.inputs} by scales that it finds "
            "as it comes; here one scale serves all, which calibration finds"
        )

    @abstractmethod
    def shape(self, parts: Parts) -> Shape:
        """The weight's [N, K], from headers alone.

        Raises:
            Misfit: the tensors do not fit each other, or the configuration.
        """

    @abstractmethod
    def unpack(self, parts: Parts, shape: Shape) -> Unpacked:
        """Read a weight of that shape.

        Raises:
            Misfit: its bytes are not what the configuration says.
        """

    def _input_scale(self, parts: Parts) -> Tensor | None:
        """The stored scale [1] of what enters, where it is used."""
        if self.inputs is None or self.calibrates:
            return None
        return one_number(parts, "input_scale")

    def is_packed(self, parts: Parts) -> bool:
        """True where a layer's tensors are a quantised weight's: one is in the table, and is used.

        A part called `weight` counts by its format: in floating point it is what it was.
        """
        return any(
            name in parts and part.used and (name != "weight" or parts[name].dtype in part.dtypes)
            for name, part in self.table.items()
        )

    def misfits(self, parts: Parts) -> Iterator[str]:
        """What the table says against a quantised layer's tensors, each taken for itself."""
        for name, part in self.table.items():
            found = parts.get(name)
            if found is None:
                if part.needed:
                    yield f"{name} is missing"
            elif found.dtype not in part.dtypes:
                yield f"{name} is {found.dtype}, expected {' or '.join(part.dtypes)}"
            elif len(found.shape) not in part.axes:
                yield f"{name} has the shape {found.shape}, expected {part.meaning}"

    def recipe(self, config: ModelConfig, packed: Collection[str] | None = None) -> Recipe:
        """What becomes of the weights that are stored so, bit for bit.

        Args:
            config: the model's.
            packed: our names of those weights. None takes all matrices of the decoder's layers:
                config.json alone does not tell.

        Raises:
            CheckpointError: they cannot be kept in a form that graphs know.
        """
        if self.dtype is DType.FP8 and self.inputs is None:
            raise CheckpointError(
                f"{self.library} has quantised the weights to fp8, and what enters a product not "
                "to fp8 by one scale; engines multiply nothing else with fp8",
                hint="give the checkpoint before it was quantised, with --quantize RECIPE",
            )
        shapes = weight_shapes(config)
        chosen = [x for x in shapes if _PROJECTION.fullmatch(x)] if packed is None else packed
        rule: dict[str, Any] = {"names": _patterns(chosen, shapes), "format": self.dtype.value}
        if self.inputs is None:
            rule["group_size"] = self._group({shapes[name][-1] for name in chosen})
        else:
            rule["inputs"] = self.inputs.value
        values = {
            "name": f"{self.library.lower()}-{self.dtype}",
            "description": f"As {self.library} quantised it: {self.description}",
            "method": None,
            "weights": [rule],
        }
        return Recipe.read(values, where="what a quantised checkpoint becomes")

    @property
    def description(self) -> str:
        """The form in a few words: `int4, a scale for 128 channels`."""
        count = self.channels_a_scale
        numbers = "int4 with zero points" if self.has_zero_points else str(self.dtype)
        if self.inputs is not None:
            numbers += " on both sides of a product"
        return f"{numbers}, a scale for {'all' if count is None else count} channels"

    @property
    def kept(self) -> str:
        """How far what is stored here is what the library stored: `kept bit for bit`."""
        subtracted = ", with the zero points subtracted, which takes eight bits a number"
        return f"kept bit for bit{subtracted if self.has_zero_points else ''}"

    @property
    def account(self) -> str:
        """What a person is told before the weights are used."""
        told = f"{self.library} has quantised the weights ({self.description})"
        return "; ".join((told, f"they are {self.kept}", *self.notes))

    def _group(self, channels: set[int]) -> int:
        """The largest group of ours that divides the library's, and all channels of a matrix."""
        counts = channels | {self.channels_a_scale or 0}
        fitting = [size for size in GROUP_SIZES if all(count % size == 0 for count in counts)]
        if not fitting:
            found = ", ".join(map(str, sorted(counts - {0})))
            raise CheckpointError(
                f"channels that share a scale, and all of a matrix ({found}), have to be multiples "
                f"of {min(GROUP_SIZES)}: engines multiply by no smaller groups",
                hint="give the checkpoint before it was quantised, with --quantize RECIPE",
            )
        return max(fitting)


class PackingInGroups(Packing):
    """A configuration that states how many channels share a scale as `group_size`."""

    group_size: int = Field(ge=-1)

    @model_validator(mode="after")
    def _has_groups(self) -> Self:
        if self.group_size == 0:
            raise ValueError("group_size 0: expected channels, or -1 for all of a row")
        return self

    @property
    def channels_a_scale(self) -> int | None:
        """See `Packing.channels_a_scale`."""
        return None if self.group_size == -1 else self.group_size


def check_shape(parts: Parts, name: str, expected: Shape) -> None:
    """See that a part has the shape that others imply.

    Raises:
        Misfit: it has another.
    """
    if parts[name].shape != expected:
        raise Misfit(f"{name} has the shape {parts[name].shape}, expected {expected}")


def check_one(parts: Parts, name: str) -> None:
    """See that a part, where it is there, is one number.

    Raises:
        Misfit: it has several, or none.
    """
    if name in parts and parts[name].shape not in ((), (1,)):
        raise Misfit(f"{name} has the shape {parts[name].shape}, expected one number")


def check_blocks(parts: Parts, numbers: str) -> Shape:
    """The shape [N, K] of a matrix in NVFP4, whose bytes are [N, K / 2] and scales [N, K / 16].

    Raises:
        Misfit: they do not fit each other.
    """
    N, columns = parts[numbers].shape
    if 2 * columns % NVFP4_GROUP:
        raise Misfit(f"{2 * columns} channels are no multiple of groups of {NVFP4_GROUP}")
    check_shape(parts, "weight_scale", (N, 2 * columns // NVFP4_GROUP))
    return N, 2 * columns


def one_number(parts: Parts, name: str) -> Tensor:
    """A part of one number, as a tensor [1]."""
    return parts[name].as_tensor().reshape(1)


def _patterns(names: Collection[str], model: Iterable[str]) -> list[str]:
    """The names, with `*` for a layer's number where all layers of the model are among them."""
    rows: dict[str, list[str]] = {}
    for name in model:
        rows.setdefault(_LAYER.sub(".*.", name), []).append(name)
    found: list[str] = []
    for row, members in rows.items():
        chosen = [name for name in members if name in names]
        found += [row] if chosen == members else chosen
    return found
