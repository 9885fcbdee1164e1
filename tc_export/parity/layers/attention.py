# SPDX-License-Identifier: Apache-2.0
"""What is wrong with an attention whose inputs are right: its mask, its scale, or the cache.

Axes: S tokens and cache rows, H query heads, K key/value heads, D head size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tc_export.parity.layers.nodes import Seen
from tc_export.parity.layers.patterns import (
    ATTENTION_OUTPUT,
    ATTENTION_SCALE,
    CACHE_WRITE,
    HEADS,
    MASK,
    Pattern,
    exchanged_heads,
    is_explained,
    linear_pattern,
    spell_share,
)
from tc_export.parity.layers.recorder import KEYS, QUERIES, VALUES, after_rotation, cache_rows

TOKENS = 16
"""Wrong tokens that are looked at."""

STEPS = 4
"""Of Gauss and Newton, for the scale."""


@dataclass(frozen=True, kw_only=True)
class Query:
    """One token's attention: scores [H, S] before the softmax, values [H, S, D], and its output."""

    token: int
    scores: np.ndarray
    values: np.ndarray
    engine: np.ndarray  # [H, D]
    visible: int

    def prefixes(self) -> np.ndarray:
        """What comes out [S, H, D] for each number of visible rows, from 1 on."""
        weights = np.exp(self.scores - self.scores.max(axis=1, keepdims=True))
        sums = np.cumsum(weights[:, :, None] * self.values, axis=1)
        found: np.ndarray = (sums / np.cumsum(weights, axis=1)[:, :, None]).swapaxes(0, 1)
        return found

    def scaled(self, factor: float) -> np.ndarray:
        """What comes out [H, D] where the scores are so many times as large."""
        scores = factor * self.scores[:, : self.visible]
        weights = np.exp(scores - scores.max(axis=1, keepdims=True))
        weights /= weights.sum(axis=1, keepdims=True)
        found: np.ndarray = (weights[:, :, None] * self.values[:, : self.visible]).sum(axis=1)
        return found


def attention_pattern(seen: Seen, tensor: str) -> Pattern:
    """The attention's output is wrong, though queries, keys, values and cache rows are right."""
    if not seen.config.temporal.mask.is_prefix:
        return Pattern(ATTENTION_OUTPUT, f"{spell_share(seen, tensor)} of the tokens")
    tokens = np.flatnonzero(seen.wrong(tensor))
    chosen = np.unique(tokens[np.linspace(0, len(tokens) - 1, TOKENS).round().astype(int)])
    queries = [_query(seen, tensor, int(token)) for token in chosen]
    found = _mask(seen, queries) or _scale(queries)
    if found is not None:
        return found
    truth, engine = (x[tensor].astype(np.float64) for x in (seen.truth, seen.engine))
    flat = (x.reshape(len(x), -1) for x in (truth, engine))
    exchanged = exchanged_heads(seen, *flat)
    if exchanged:
        return Pattern(HEADS, f"everywhere alike: {exchanged}")
    return Pattern(ATTENTION_OUTPUT, f"{spell_share(seen, tensor)} of the tokens")


def _query(seen: Seen, tensor: str, token: int) -> Query:
    q_HD = seen.truth[after_rotation(QUERIES)][token].astype(np.float64)
    keys, values = (
        np.repeat(rows, len(q_HD) // rows.shape[1], axis=1).swapaxes(0, 1).astype(np.float64)
        for rows in (seen.truth[cache_rows(KEYS)], seen.truth[cache_rows(VALUES)])
    )
    return Query(
        token=token,
        scores=np.einsum("hd,hsd->hs", q_HD, keys) * q_HD.shape[1] ** -0.5,
        values=values,
        engine=seen.engine[tensor][token].astype(np.float64),
        visible=int(seen.layout.kv_end[token]),
    )


def _mask(seen: Seen, queries: Sequence[Query]) -> Pattern | None:
    """Another number of visible rows explains every wrong token."""
    ends = []
    for query in queries:
        errors = np.abs(query.prefixes() - query.engine).max(axis=(1, 2))
        best = int(errors.argmin())
        if not is_explained(errors[best], errors[query.visible - 1]):
            return None
        ends.append(best + 1)
    seen_ends, right = np.array(ends), np.array([x.visible for x in queries])
    off = seen_ends - right
    causal = np.array([int(seen.layout.position_ids[x.token]) + 1 for x in queries])
    where = "inside frames" if _all_visual(seen, queries) else "in text too"
    if (seen_ends == causal).all():
        words = "causal, so that a visual token does not see the rest of its frame"
    elif (off == off[0]).all():
        words = f"kv_end is off by {off[0]:+d}"
    elif (seen_ends == seen_ends[0]).all():
        words = f"kv_end is capped at {seen_ends[0]}"
    else:
        words = f"a token sees {seen_ends[0]} rows, and should see {right[0]}"
    return Pattern(MASK, f"{where}, the attention's output alone: {words}")


def _all_visual(seen: Seen, queries: Sequence[Query]) -> bool:
    return all(seen.layout.frame_ids[x.token] >= 0 for x in queries)


def _scale(queries: Sequence[Query]) -> Pattern | None:
    """Another scale explains every wrong token."""
    factor = 1.0
    for _ in range(STEPS):
        left = np.concatenate([(x.engine - x.scaled(factor)).ravel() for x in queries])
        slope = np.concatenate(
            [((x.scaled(factor + 1e-4) - x.scaled(factor)) / 1e-4).ravel() for x in queries]
        )
        factor += float(left @ slope / max(float(slope @ slope), 1e-300))
    errors = [float(np.abs(x.engine - x.scaled(1.0)).max()) for x in queries]
    left_over = [float(np.abs(x.engine - x.scaled(factor)).max()) for x in queries]
    if not np.isfinite(factor) or not is_explained(max(left_over), max(errors)):
        return None
    return Pattern(
        ATTENTION_SCALE, f"everywhere alike: the scale is {factor:.4g} times the right one"
    )


def cache_pattern(seen: Seen, tensor: str, what: str) -> Pattern:
    """Cache rows are wrong, though what was computed for them is right."""
    other = VALUES if what == KEYS else KEYS
    right, exchanged = seen.truth[cache_rows(what)], seen.truth[cache_rows(other)]
    rows = np.flatnonzero(seen.wrong(tensor))
    shown = rows[:: max(1, len(rows) // TOKENS)]
    engine = seen.engine[tensor]
    count = f"row {rows[0]} alone" if len(rows) == 1 else f"{len(rows)} of {len(engine)} rows"
    holds = [_holder(engine[row], right, row) for row in shown]
    if all(
        is_explained(np.abs(engine[x] - exchanged[x]), np.abs(engine[x] - right[x])) for x in shown
    ):
        return Pattern(CACHE_WRITE, f"{count}: {what} hold the {other}")
    if not any(np.abs(engine[row]).max() for row in shown):
        return Pattern(CACHE_WRITE, f"{count}: never written")
    if all(x is not None for x in holds):
        words = ", ".join(
            f"row {row} holds row {x}" for row, x in zip(shown[:3], holds, strict=False)
        )
        return Pattern(CACHE_WRITE, f"{count}: {words}")
    if tensor == cache_rows(what) or len(rows) < len(engine):
        return Pattern(CACHE_WRITE, f"{count}, though the {what} computed for them are right")
    return linear_pattern(seen, tensor)


def _holder(held: np.ndarray, rows: np.ndarray, place: int) -> int | None:
    """The other row of `rows` [S, K, D] that is held [K, D] at a place, where it is one."""
    distance = np.abs(rows - held).max(axis=(1, 2))
    best = int(distance.argmin())
    is_other = best != place and is_explained(distance[best], distance[place])
    return best if is_other else None
