# SPDX-License-Identifier: Apache-2.0
"""How far a rotation went too far, from rotated numbers alone."""

from __future__ import annotations

import numpy as np
import pytest

from tc_export.parity.layers.rotation import measure_turn

PAIRS, HEADS, TOKENS = 16, 3, 40
INV_FREQ = 10000.0 ** -(np.arange(PAIRS) / PAIRS)


def rotated(x: np.ndarray, positions: np.ndarray, inv_freq: np.ndarray) -> np.ndarray:
    """By the definition: pairs (k, k + PAIRS) turn by position times frequency."""
    angle = positions[:, None, None] * inv_freq
    first, second = x[..., :PAIRS], x[..., PAIRS:]
    return np.concatenate(
        [
            first * np.cos(angle) - second * np.sin(angle),
            first * np.sin(angle) + second * np.cos(angle),
        ],
        axis=-1,
    )


@pytest.mark.parametrize("shift", [0.01, -1.0, 7.5, 300.0, -2000.0])
def test_a_wrong_position_is_measured(shift: float) -> None:
    random = np.random.default_rng(0)
    x = random.standard_normal((TOKENS, HEADS, 2 * PAIRS))
    positions = np.arange(TOKENS) * 1.5
    turn = measure_turn(
        rotated(x, positions, INV_FREQ), rotated(x, positions + shift, INV_FREQ), INV_FREQ
    )
    np.testing.assert_allclose(turn.shifts, shift, rtol=1e-6)
    assert np.abs(turn.left).max() < 1e-6
    assert turn.coherence == pytest.approx(1)
    assert turn.gain == pytest.approx(1)


def test_wrong_frequencies_are_no_position() -> None:
    random = np.random.default_rng(1)
    x = random.standard_normal((TOKENS, HEADS, 2 * PAIRS))
    positions = np.arange(TOKENS) * 1.5
    other = 10100.0 ** -(np.arange(PAIRS) / PAIRS)
    turn = measure_turn(rotated(x, positions, INV_FREQ), rotated(x, positions, other), INV_FREQ)
    assert np.abs(turn.left).max() > 0.3 * np.abs(turn.phases).max()


def test_other_numbers_are_no_rotation() -> None:
    random = np.random.default_rng(2)
    x, y = random.standard_normal((2, TOKENS, HEADS, 2 * PAIRS))
    assert measure_turn(x, y, INV_FREQ).coherence < 0.9
    assert measure_turn(x, 2 * x, INV_FREQ).gain == pytest.approx(2)
