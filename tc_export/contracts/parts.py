# SPDX-License-Identifier: Apache-2.0
"""Parts of a decoder: consecutive layers that make a graph, and may make an engine, of their own.

`tc_export.graph.parts` cuts them.
"""

from __future__ import annotations

from dataclasses import dataclass

from tc_export.contracts.graph_io import DECODER, VISION

_PART = f"{DECODER}_part"


@dataclass(frozen=True)
class Part:
    """Consecutive layers of a decoder, from `first` to before `end`."""

    first: int
    end: int

    @property
    def layers(self) -> range:
        """The layers, by number."""
        return range(self.first, self.end)

    def __str__(self) -> str:
        """As a person reads it: `layers 0 to 7`."""
        last = self.end - 1
        return f"layer {last}" if self.first == last else f"layers {self.first} to {last}"


def even_parts(layers: int, parts: int) -> tuple[Part, ...]:
    """Cut so many layers into parts whose sizes differ by one at most; the last is the smallest.

    The last part carries the head too, which weighs about as much as a layer.

    Raises:
        ValueError: there are fewer layers than parts, or no part is asked for.
    """
    if not 1 <= parts <= layers:
        raise ValueError(f"{layers} layers cannot be cut into {parts} parts")
    size, rest = divmod(layers, parts)
    ends = [size * (index + 1) + min(index + 1, rest) for index in range(parts)]
    return tuple(Part(first, end) for first, end in zip([0, *ends], ends, strict=False))


@dataclass(frozen=True)
class EngineGraph:
    """What becomes one engine: a graph as a whole, or a part of the decoder's.

    Attributes:
        name: names its files and its stages, here and on the device.
        graph: the graph that it is of.
        part: its layers; None for the whole.
        count: how many parts there are.
    """

    name: str
    graph: str
    part: Part | None = None
    count: int = 1

    @property
    def title(self) -> str:
        """As a person reads it: `decoder`, or `decoder part 2 of 3`."""
        if self.part is None:
            return self.graph
        return f"{self.graph} part {self.name.removeprefix(_PART)} of {self.count}"


def decoder_names(parts: int) -> tuple[str, ...]:
    """The names of the decoder's engines, in the order in which they run."""
    return (DECODER,) if parts == 1 else tuple(f"{_PART}{i + 1}" for i in range(parts))


def engine_graphs(layers: int, parts: int) -> tuple[EngineGraph, ...]:
    """What becomes an engine each, where a decoder of so many layers is built in so many parts.

    Raises:
        ValueError: there are fewer layers than parts, or no part is asked for.
    """
    cut = even_parts(layers, parts)
    vision = EngineGraph(VISION, VISION)
    if parts == 1:
        return vision, EngineGraph(DECODER, DECODER)
    names = decoder_names(parts)
    decoders = (
        EngineGraph(name, DECODER, part, parts) for name, part in zip(names, cut, strict=True)
    )
    return (vision, *decoders)
