# SPDX-License-Identifier: Apache-2.0
"""A cache that a sequence goes on from, filled at random: any row can be a first row.

To see the last rows of a long cache, a comparison need not compute those before them. Every side
attends to the same numbers, and what they were made of does not matter: but that they be such as
the model makes. Normal noise, of whatever size, is not. It drowns what real heads attend to (the
first token, mostly), and the model answers with chaos, in which float16 errs by as much as a fault
does. So a few tokens are computed, and each further row is one of theirs at random: its key is
turned on to the row's position, and noise is added, so that no two rows are alike. A cache in eight
bits is given the codes and scales of these rows.

Axes: K key/value heads, R rows, D head size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from tc_export import ops
from tc_export.config import KvFormat, ModelConfig
from tc_export.contracts.graph_io import KEY, SCALE, VALUE
from tc_export.dtypes import DType, round_to
from tc_export.model.rope import inverse_frequencies
from tc_export.ops.quantized_rows import quantize_rows

COMPUTED_TOKENS = 16
"""Tokens whose keys and values are computed: text, from the first row on."""

NOISE = 0.25
"""What is added, as a share of the spread of a channel over the computed rows."""


@dataclass(frozen=True, kw_only=True)
class RandomCache:
    """The first `rows` rows of every layer's cache. Numbers are drawn whenever they are asked for.

    Attributes:
        config: the model's.
        computed: each layer's key and value [K, R, D] of the first rows, whose T is n: text.
        dtype: the decoder's format, which the numbers are rounded to.
        rows: how many rows there are.
        seed: the same seed gives the same numbers.
    """

    config: ModelConfig
    computed: Sequence[tuple[np.ndarray, np.ndarray]]
    dtype: DType
    rows: int
    seed: int = 0
    _last: dict[str, tuple[int, np.ndarray]] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    def draw(self, layer: int, part: str) -> np.ndarray:
        """A part of a layer's cache: `key` or `value` rows [K, rows, D] in float32.

        Of a cache in eight bits these are codes, and their scales [K, rows] are parts too.
        Those of the last layer asked for are kept: several draws of a format's noise start there.
        """
        last, values = self._last.get(part, (None, None))
        if values is None or last != layer:
            of = part.removesuffix(SCALE)
            rows = self._draw(layer, of)
            if self.config.cache.kv is KvFormat.OWN:
                self._last[of] = (layer, rows)
            else:
                codes, scale = quantize_rows(torch.from_numpy(rows))
                self._last[of] = (layer, codes.numpy())
                self._last[of + SCALE] = (layer, scale.numpy())
            values = self._last[part][1]
        return values

    def _draw(self, layer: int, part: str) -> np.ndarray:
        kind = (KEY, VALUE).index(part)
        first_KRD = self.computed[layer][kind][:, : self.rows].astype(np.float32)
        further = self.rows - first_KRD.shape[1]
        if not further:
            return round_to(first_KRD, self.dtype)
        # A row has its key and its value from the same token, but never from the first.
        count = first_KRD.shape[1]
        sources = np.random.default_rng(self.seed).integers(min(1, count - 1), count, further)
        random = np.random.default_rng([self.seed, layer, kind])
        drawn = first_KRD[:, sources]
        spread = NOISE * first_KRD[:, 1:].std(axis=1, keepdims=True) if count > 1 else 0
        drawn += spread * random.standard_normal(drawn.shape, dtype=np.float32)
        if part == KEY:
            drawn = self._turned(drawn, np.arange(count, self.rows) - sources)
        return round_to(np.concatenate([first_KRD, drawn], axis=1), self.dtype)

    def _turned(self, keys_KRD: np.ndarray, steps_R: np.ndarray) -> np.ndarray:
        """Keys as they are so many places later, in n and in T."""
        inv_freq, _ = inverse_frequencies(self.config.text)
        steps = torch.from_numpy(steps_R)[None]
        keys = torch.from_numpy(keys_KRD)[None]
        gamma = self.config.temporal.gamma
        turned: np.ndarray = ops.dual_rope(keys, steps, steps, inv_freq, gamma, 1.0)[0].numpy()
        return turned
