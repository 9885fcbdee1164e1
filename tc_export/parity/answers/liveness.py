# SPDX-License-Identifier: Apache-2.0
"""Temporal liveness: an engine's logits must move as PyTorch's do when time is tampered with.

Accuracy sees only the likeliest word. The movement of all logits between the clip in order and the
perturbed clip sees how much time weighs in the answer, also where the answer stays: an engine that
lost the temporal position or the mask moves otherwise long before its answers turn.

Logits are compared without their mean, of which softmax takes no notice.
"""

from __future__ import annotations

from dataclasses import astuple, dataclass
from math import nan, sqrt
from typing import Self

import numpy as np

LEAST_MOVEMENT = 1e-3
"""A movement below this share of the logits is as small as the rounding of half precision: a model
that moves no more takes no notice of time, and nothing can be said of an engine by it."""


@dataclass(frozen=True, kw_only=True)
class Movement:
    """Sums over logits, and over items when added: of squares, and of products."""

    logits: float  # PyTorch's logits in order, squared
    pytorch: float  # PyTorch's movement, squared
    engine: float  # the engine's, squared
    difference: float  # the one less the other, squared
    product: float  # the one times the other

    @classmethod
    def of(
        cls,
        *,
        pytorch: tuple[np.ndarray, np.ndarray],
        engine: tuple[np.ndarray, np.ndarray],
    ) -> Self:
        """Measure one item: each side's logits [V] in order, and perturbed."""
        before, after = map(_centred, pytorch)
        moved, engine_moved = after - before, _centred(engine[1]) - _centred(engine[0])
        difference = engine_moved - moved
        return cls(
            logits=float(before @ before),
            pytorch=float(moved @ moved),
            engine=float(engine_moved @ engine_moved),
            difference=float(difference @ difference),
            product=float(moved @ engine_moved),
        )

    def __add__(self, other: Movement) -> Movement:
        mine, theirs = astuple(self), astuple(other)
        names = self.__dataclass_fields__
        return Movement(**{n: a + b for n, a, b in zip(names, mine, theirs, strict=True)})

    @property
    def pytorch_share(self) -> float:
        """How far PyTorch's logits move, as a share of their size."""
        return _root_of_ratio(self.pytorch, self.logits)

    @property
    def engine_share(self) -> float:
        """How far the engine's logits move, as a share of the size of PyTorch's."""
        return _root_of_ratio(self.engine, self.logits)

    @property
    def relative_difference(self) -> float:
        """How far apart the two movements are, as a share of PyTorch's. 0 is the same movement,
        1 is what an engine makes that does not move.
        """
        return _root_of_ratio(self.difference, self.pytorch)

    @property
    def correlation(self) -> float:
        """The cosine between the two movements: 1 is the same direction, whatever the size."""
        size = sqrt(self.pytorch * self.engine)
        return self.product / size if size else nan

    @property
    def is_alive(self) -> bool:
        """True where PyTorch moves enough for the comparison to say something."""
        return self.pytorch_share >= LEAST_MOVEMENT

    def passes(self, threshold: float) -> bool:
        """True where PyTorch moves, and the engine as it does (a NaN never does)."""
        return self.is_alive and self.relative_difference <= threshold


def _centred(logits: np.ndarray) -> np.ndarray:
    wide = logits.astype(np.float64)
    centred: np.ndarray = wide - wide.mean()
    return centred


def _root_of_ratio(a: float, b: float) -> float:
    return sqrt(a / b) if b else nan
