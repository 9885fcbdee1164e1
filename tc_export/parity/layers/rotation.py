# SPDX-License-Identifier: Apache-2.0
"""What is wrong with a rotation: a position, or the frequencies.

Each channel pair of a rotated tensor is a complex number, and a wrong rotation turns it too far by
some phase. Where that phase divided by the pair's inverse frequency is the same for all pairs, the
position is wrong, by that much; its course over the tokens says which position. Where it is not,
but grows with the position, the frequencies are wrong, and their ratio says whether by the base.

Axes: S tokens, H heads, D head size, R channel pairs.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from tc_export.model.rope import inverse_frequencies
from tc_export.parity.layers.nodes import Seen
from tc_export.parity.layers.patterns import (
    GLOBAL_POSITION,
    POSITION_OFFSET,
    ROPE_BASE,
    ROPE_FREQUENCIES,
    ROTATION,
    TEMPORAL_POSITION,
    Pattern,
    exchanged_heads,
    is_explained,
)
from tc_export.parity.layers.tolerance import Floats

COHERENT = 0.99
"""Of 1: how alike a pair must be on both sides, but for a turn, for it to be one."""

UNALIASED = 2.0
"""Radians; a phase that may have gone round is of no use for a frequency's ratio."""

FREQUENCY_TOLERANCE = 0.05
"""How far the logarithms of frequency ratios may be from a line, for the base to be at fault."""


@dataclass(frozen=True, kw_only=True)
class Turn:
    """How far the graph turned each pair beyond the truth.

    `phases` [S, R] in radians, `shifts` [S] in positions, `left` [S, R] what they do not explain.
    """

    phases: Floats
    shifts: Floats
    left: Floats
    coherence: float
    gain: float


def rotation_pattern(seen: Seen, tensor: str) -> Pattern:
    """Queries or keys that are wrong after the rotation, though right before it."""
    inv_freq = inverse_frequencies(seen.config.text)[0].numpy().astype(np.float64)
    wrong = seen.wrong(tensor)
    truth, engine = (x[tensor][wrong].astype(np.float64) for x in (seen.truth, seen.engine))
    turn = measure_turn(truth, engine, inv_freq)
    if turn.coherence < COHERENT:
        flat = (
            x[tensor].astype(np.float64).reshape(len(wrong), -1) for x in (seen.truth, seen.engine)
        )
        exchanged = exchanged_heads(seen, *flat)
        return Pattern(ROTATION, exchanged or "it is no rotation of the right numbers")
    if is_explained(np.abs(turn.left), np.abs(turn.phases)):
        return _position_pattern(seen, wrong, turn.shifts)
    found = _frequency_pattern(seen, wrong, turn, inv_freq)
    if found is not None:
        return found
    if abs(turn.gain - 1) > 1e-3:
        return Pattern(ROTATION, f"everywhere alike: {turn.gain:.4g} times as long")
    return Pattern(ROTATION, "turned too far by no position and no frequency")


def measure_turn(truth: np.ndarray, engine: np.ndarray, inv_freq: np.ndarray) -> Turn:
    """Compare rotated tensors [S, H, D] pair by pair."""
    half = len(inv_freq)
    true, found = (x[..., :half] + 1j * x[..., half : 2 * half] for x in (truth, engine))
    product = (found * true.conj()).sum(axis=1)
    true_power, found_power = ((np.abs(x) ** 2).sum(axis=1) for x in (true, found))
    phases = np.angle(product)
    shifts = _shifts(phases, inv_freq)
    total = np.sqrt(true_power * found_power).sum()
    return Turn(
        phases=phases,
        shifts=shifts,
        left=_wrapped(phases - shifts[:, None] * inv_freq),
        coherence=float(np.abs(product).sum() / total) if total else 0.0,
        gain=float(np.sqrt(found_power.sum() / true_power.sum())) if true_power.sum() else 0.0,
    )


def _shifts(phases: np.ndarray, inv_freq: np.ndarray) -> Floats:
    """Positions [S] that explain the phases best: from the slowest pair, which cannot go round."""
    numerator, denominator = np.zeros(len(phases)), 0.0
    shifts = np.zeros(len(phases))
    for pair in np.argsort(inv_freq):
        frequency = inv_freq[pair]
        unwrapped = shifts * frequency + _wrapped(phases[:, pair] - shifts * frequency)
        numerator += frequency * unwrapped
        denominator += frequency**2
        shifts = numerator / denominator
    return shifts


def _wrapped(phases: np.ndarray) -> Floats:
    found: Floats = (phases + np.pi) % (2 * np.pi) - np.pi
    return found


def _position_pattern(seen: Seen, wrong: np.ndarray, shifts: Floats) -> Pattern:
    """Name a position that is wrong by `shifts` at the tokens `wrong`."""
    layout, gamma = seen.layout, seen.config.temporal.gamma
    every = np.zeros(len(wrong))
    every[wrong] = shifts
    n, T = (x.astype(np.float64) for x in (layout.position_ids, layout.temporal_ids))
    constant = float(np.median(every))
    if abs(constant) > 0 and is_explained(np.abs(every - constant), np.abs(every)):
        origin = ": counted from 1" if np.isclose(constant, 1 + gamma, rtol=0.02) else ""
        return Pattern(POSITION_OFFSET, f"off by {constant:.3g} everywhere{origin}")
    slopes = {name: float(every @ x / (x @ x)) for name, x in (("n", n), ("T", T))}
    if is_explained(np.abs(every - slopes["T"] * T), np.abs(every)):
        counted = round(gamma + slopes["T"], 3) + 0.0  # no negative zero
        return Pattern(
            TEMPORAL_POSITION,
            f"grows with the frame: T counts {counted:.3f} times, not {gamma:.3f}",
        )
    if is_explained(np.abs(every - slopes["n"] * n), np.abs(every)):
        words = f"grows with n: n counts {1 + slopes['n']:.3f} times, not 1"
        return Pattern(GLOBAL_POSITION, words)
    return _partial_position(seen, every)


def _partial_position(seen: Seen, shifts: Floats) -> Pattern:
    """A position that is wrong at some tokens: of whole frames it is a temporal one."""
    frames = seen.layout.frame_ids
    groups = [shifts[frames == frame] for frame in range(int(frames.max()) + 1)]
    most = float(np.abs(shifts).max())
    whole = all(np.ptp(x) <= 0.01 * most for x in groups)
    first, last = shifts[np.flatnonzero(shifts)[0]], shifts[np.abs(shifts).argmax()]
    words = f"off by {first:.3g}"
    if abs(last) > 1.01 * abs(first):
        words += f" at first, and grows to {last:.3g}"
    if not whole:
        return Pattern(GLOBAL_POSITION, f"{words}, different within a frame")
    in_frames = any(np.abs(x).max() > 0.01 * most for x in groups if len(x))
    return Pattern(TEMPORAL_POSITION, words + (", the same within each frame" if in_frames else ""))


def _frequency_pattern(
    seen: Seen, wrong: np.ndarray, turn: Turn, inv_freq: np.ndarray
) -> Pattern | None:
    """Name frequencies that are wrong: the phase is the position times what they differ by."""
    layout = seen.layout
    P = layout.position_ids + seen.config.temporal.gamma * layout.temporal_ids
    P = P[wrong].astype(np.float64)
    clear = (np.abs(turn.phases).max(axis=1) < UNALIASED) & (P > 0)
    # The first tokens have not gone round; later ones may have, and look like any phase.
    first = np.flatnonzero(~clear)
    count = int(first[0]) if len(first) else len(clear)
    if count < 2:
        return None
    phases, P = turn.phases[:count], P[:count]
    slopes = (P[:, None] * phases).sum(axis=0) / (P @ P)
    if not is_explained(np.abs(phases - P[:, None] * slopes), np.abs(phases)):
        return None
    logs = np.log(np.maximum(1 + slopes / inv_freq, 1e-9))
    steps = np.arange(len(inv_freq)) / len(inv_freq)
    line = float(steps @ logs / (steps @ steps))
    usual = seen.config.text.rope.theta
    if np.abs(logs - line * steps).max() <= FREQUENCY_TOLERANCE * np.abs(logs).max():
        base = usual * np.exp(-line)
        return Pattern(
            ROPE_BASE, f"grows with n, in text too: the base is {base:.6g}, not {usual:.6g}"
        )
    return Pattern(ROPE_FREQUENCIES, "grows with n, in text too: the frequencies are others")
