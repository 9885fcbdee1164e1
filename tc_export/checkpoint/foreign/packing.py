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
from typing import ClassVar

from pydantic import BaseModel, ConfigDict

from tc_export.checkpoint.foreign.unpacked import Misfit, Unpacked
from tc_export.checkpoint.safetensors_file import TensorLocation
from tc_export.config import ModelConfig
from tc_export.dtypes import DType
from tc_export.errors import CheckpointError
from tc_export.model.weight_shapes import Shape, weight_shapes
from tc_export.recipes import GROUP_SIZES, Recipe

Parts = Mapping[str, TensorLocation]

STORED = (DType.INT4, DType.INT8)
"""The formats that a weight of a graph can be stored in: see `tc_export.checkpoint.quantized`."""

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
    def notes(self) -> tuple[str, ...]:
        """Sentences about what the library would compute and is not computed here."""
        return ()

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
        if self.dtype not in STORED:
            raise CheckpointError(
                f"{self.library} has quantised the weights ({self.description}); graphs have "
                f"theirs in {', '.join(STORED)} or 16 bits, and none of these holds the same",
                hint="give the checkpoint before it was quantised, with --quantize RECIPE; "
                "`tc-export inspect CHECKPOINT` shows what this one has",
            )
        shapes = weight_shapes(config)
        chosen = [x for x in shapes if _PROJECTION.fullmatch(x)] if packed is None else packed
        rule = {
            "names": _patterns(chosen, shapes),
            "format": self.dtype.value,
            "group_size": self._group({shapes[name][-1] for name in chosen}),
        }
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
        return f"{numbers}, a scale for {'all' if count is None else count} channels"

    @property
    def account(self) -> str:
        """What a person is told before the weights are used."""
        kept = "they are kept bit for bit"
        if self.has_zero_points:
            kept += ", with the zero points subtracted, which takes eight bits a number"
        told = f"{self.library} has quantised the weights ({self.description}); {kept}"
        return "; ".join((told, *self.notes))

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


def check_shape(parts: Parts, name: str, expected: Shape) -> None:
    """See that a part has the shape that others imply.

    Raises:
        Misfit: it has another.
    """
    if parts[name].shape != expected:
        raise Misfit(f"{name} has the shape {parts[name].shape}, expected {expected}")


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
