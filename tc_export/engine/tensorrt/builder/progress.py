# SPDX-License-Identifier: Apache-2.0
"""How far a builder is: its phases, one inside another, as one fraction of the whole."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass

SMALLEST_ADVANCE = 0.002  # of the whole, that is worth a message


@dataclass
class _Phase:
    parent: str | None
    steps: int
    done: int = 0


class Phases:
    """Open phases; one that runs inside another is worth one step of it.

    TensorRT opens some phases more than once within a step of their parent. The fraction never
    goes back: it waits until it is passed again.
    """

    def __init__(self, on_fraction: Callable[[float], bool]) -> None:
        """`on_fraction` is called when the fraction has grown; False asks the builder to stop."""
        self._on_fraction = on_fraction
        self._open: dict[str, _Phase] = {}
        self._told = 0.0
        self._go_on = True
        self._lock = threading.Lock()  # TensorRT may call from several threads

    def start(self, name: str, parent: str | None, steps: int) -> None:
        """A phase of so many steps has begun, inside `parent`."""
        with self._lock:
            self._open[name] = _Phase(parent, max(steps, 1))

    def step(self, name: str, step: int) -> bool:
        """A step, counted from 0, is done; False asks the builder to stop."""
        with self._lock:
            if name in self._open:
                self._open[name].done = step + 1
                self._tell()
            return self._go_on

    def finish(self, name: str) -> None:
        """A phase has ended, whether all of its steps came or not."""
        with self._lock:
            if name in self._open:
                self._open[name].done = self._open[name].steps
                self._tell()
                del self._open[name]

    def _tell(self) -> None:
        fraction = self._fraction(None)
        ended = fraction == 1 and self._told < 1
        if ended or fraction >= self._told + SMALLEST_ADVANCE:
            self._told = fraction
            self._go_on = self._on_fraction(fraction) and self._go_on

    def _fraction(self, parent: str | None) -> float:
        """The fraction of the furthest phase that is open inside `parent`."""
        return max(
            (
                min(1.0, (phase.done + self._fraction(name)) / phase.steps)
                for name, phase in self._open.items()
                if phase.parent == parent
            ),
            default=0.0,
        )
