# SPDX-License-Identifier: Apache-2.0
"""A cache that a sequence goes on from, filled with random numbers: any row can be a first row.

To see the last rows of a long cache, a comparison need not compute those before them. Every side
attends to the same numbers, and what they were made of does not matter. They are as large as the
layer's own keys and values are, so that neither those nor the sequence's own drown.

Axes: K key/value heads, D head size, E channels.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import sqrt

import numpy as np

from tc_export.checkpoint.reader import Checkpoint
from tc_export.contracts.graph_io import CACHE_PARTS
from tc_export.dtypes import DType, round_to

_ROWS_AT_ONCE = 256


@dataclass(frozen=True, kw_only=True)
class RandomCache:
    """The first `rows` rows of every layer's cache. Numbers are drawn whenever they are asked for.

    Attributes:
        checkpoint: whose weights say how large keys and values are.
        dtype: the format that the numbers are rounded to.
        rows: how many rows there are.
        seed: the same seed gives the same numbers.
    """

    checkpoint: Checkpoint
    dtype: DType
    rows: int
    seed: int = 0

    def draw(self, layer: int, part: str) -> np.ndarray:
        """The `key` or `value` rows [K, rows, D] of a layer, in float32."""
        text = self.checkpoint.config.model.text
        random = np.random.default_rng([self.seed, layer, CACHE_PARTS.index(part)])
        shape = (text.num_key_value_heads, self.rows, text.head_dim)
        values = random.standard_normal(shape, dtype=np.float32)
        values *= np.float32(usual_size(self.checkpoint, layer, part))
        return round_to(values, self.dtype)


def usual_size(checkpoint: Checkpoint, layer: int, part: str) -> float:
    """The root mean square of a layer's keys or values, by its weights.

    What is projected is normalised: channel j has the size of the norm's weight g_j. Where the
    channels are independent, projection i has the mean square sum_j (W_ij g_j)^2 + b_i^2.
    """
    name = f"decoder.layers.{layer}.self_attn.{part[0]}_proj"
    norm = checkpoint.tensors[f"decoder.layers.{layer}.input_layernorm.weight"]
    gains_E = norm.as_array().astype(np.float32)
    weight = checkpoint.tensors[f"{name}.weight"].as_array()
    squares = sum(
        float(np.square(weight[start : start + _ROWS_AT_ONCE].astype(np.float32) * gains_E).sum())
        for start in range(0, len(weight), _ROWS_AT_ONCE)
    )
    bias = checkpoint.tensors.get(f"{name}.bias")
    if bias is not None:
        squares += float(np.square(bias.as_array().astype(np.float32)).sum())
    return sqrt(squares / len(weight))
