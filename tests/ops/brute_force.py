# SPDX-License-Identifier: Apache-2.0
"""The two ops with Python loops and float64, one number at a time; nothing of the package is used.

Arguments and results are nested lists, as `Tensor.tolist()` gives them, so that no rounding and no
broadcasting can come in between.
"""

from __future__ import annotations

import cmath
import math
from typing import Any

Nested = list[Any]


def dual_rope(
    x: Nested,
    position_ids: Nested,
    temporal_ids: Nested,
    inv_freq: list[float],
    gamma: float,
    attention_factor: float,
) -> Nested:
    """Two rotations in turn, by n and then by gamma T: channels (k, k + R) are a complex number."""
    half = len(inv_freq)
    y = []
    for b, heads in enumerate(x):
        y.append([])
        for tokens in heads:
            y[b].append([])
            for s, channels in enumerate(tokens):
                rotated = list(channels)
                for k, frequency in enumerate(inv_freq):
                    number = complex(channels[k], channels[k + half])
                    number *= cmath.exp(1j * position_ids[b][s] * frequency)
                    number *= cmath.exp(1j * gamma * temporal_ids[b][s] * frequency)
                    rotated[k] = number.real * attention_factor
                    rotated[k + half] = number.imag * attention_factor
                y[b][-1].append(rotated)
    return y


def write_cache(cache: Nested, new: Nested, slots: Nested) -> Nested:
    """Row slots[b][s] of every head becomes new[b][head][s]; padding (-1) is not written at all."""
    written = [[[list(row) for row in rows] for rows in heads] for heads in cache]
    for b, row_of in enumerate(slots):
        for head, rows in enumerate(new[b]):
            for s, row in enumerate(rows):
                if row_of[s] >= 0:
                    written[b][head][row_of[s]] = list(row)
    return written


def attention(q: Nested, keys: Nested, values: Nested, kv_end: Nested, scale: float) -> Nested:
    """Query s sees rows [0, kv_end[b][s]); query heads share key heads in runs of H / K."""
    y = []
    for b, heads in enumerate(q):
        y.append([])
        for h, queries in enumerate(heads):
            kv_head = h * len(keys[b]) // len(heads)
            y[b].append([])
            for s, query in enumerate(queries):
                seen = min(kv_end[b][s], len(keys[b][kv_head]))
                rows = list(zip(keys[b][kv_head], values[b][kv_head], strict=True))[:seen]
                scores = [
                    scale * math.fsum(a * c for a, c in zip(query, key, strict=True))
                    for key, _ in rows
                ]
                weights = [math.exp(score - max(scores)) for score in scores]
                total = math.fsum(weights)
                y[b][h].append(
                    [
                        math.fsum(w * value[d] for w, (_, value) in zip(weights, rows, strict=True))
                        / total
                        if rows
                        else 0.0
                        for d in range(len(query))
                    ]
                )
    return y
