# SPDX-License-Identifier: Apache-2.0
"""What goes through the layerwise model, and what comes out.

Axes: S tokens of a sequence, E channels, C cache rows, L logits wanted, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from torch import Tensor

from tc_export.model.decoder import LayerCache
from tc_export.model.positions import Layout
from tc_export.parity.noise import Draw
from tc_export.parity.random_cache import RandomCache


@dataclass(frozen=True, kw_only=True)
class TokenSequence:
    """Embedded tokens, and the ones whose logits are wanted.

    `embeds` is [S, E]; `logits_indices` [L] are indices into it. `past` is what the cache holds
    before the first of them, which stands behind it.
    """

    embeds: np.ndarray
    layout: Layout
    logits_indices: np.ndarray
    past: RandomCache | None = None

    @property
    def rows(self) -> int:
        """Rows of the cache that it takes, those before it included."""
        return self.layout.length + (0 if self.past is None else self.past.rows)


@dataclass(frozen=True, kw_only=True)
class LayerOutput:
    """What one layer makes of S tokens: hidden states [S, E], cache rows [S, heads, head size]."""

    hidden: np.ndarray
    keys: np.ndarray
    values: np.ndarray


@dataclass(frozen=True, kw_only=True)
class GreedyAnswer:
    """Generated tokens, and the logits [V] that each was chosen by."""

    tokens: list[int] = field(default_factory=list)
    logits: list[np.ndarray] = field(default_factory=list)


@dataclass
class Running:
    """A sequence on its way through the layers."""

    x: Tensor  # [1, S, E]
    layout: Layout
    frame_ids: Tensor | None  # [1, C], of each cache row: only for the mask `frame_block`
    rows: int  # C
    kept: list[LayerCache] | None  # each layer's cache, where decoding shall go on
    draw: Draw
    before: RandomCache | None = None  # what the first rows hold
