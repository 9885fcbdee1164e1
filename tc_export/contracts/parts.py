# SPDX-License-Identifier: Apache-2.0
"""Parts of a decoder: consecutive layers that make a graph, and may make an engine, of their own.

`tc_export.graph.parts` cuts them.
"""

from __future__ import annotations

from dataclasses import dataclass


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
