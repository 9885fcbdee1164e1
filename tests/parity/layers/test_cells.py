# SPDX-License-Identifier: Apache-2.0
"""From errors of tokens to the numbers of a grid."""

from __future__ import annotations

import math

import numpy as np
import pytest

from tc_export.parity.layers.cells import Cells
from tc_export.parity.layers.result import share_of, worst_shares
from tc_export.parity.layers.tolerance import FACTOR, FLOOR_UNITS, token_tolerances

EPSILON = float(np.finfo(np.float32).eps)
LABELS = ["text before", "frame 1", "frame 1", "frame 1"]
PLACES = ["text before", "frame 1", "decode"]


def cells_of(values: np.ndarray, *, median: bool = False) -> Cells:
    truth = np.ones((4, 2))
    cells = Cells(2, PLACES, "float32", median=median)
    cells.add("hidden states", 1, LABELS, truth, [truth * (1 + 1e-6)], [values])
    return cells


def test_the_worst_token_of_a_place_counts() -> None:
    values = np.ones((4, 2))
    values[2, 1] = 1.25
    (measured,) = cells_of(values).measured()
    assert measured.errors == ((None,) * 3, (0.0, 0.25, None))
    assert measured.magnitudes[1][1] == 1.0
    shares = worst_shares([measured])
    assert shares[1][0] == 0.0
    assert shares[1][1] is not None
    assert shares[1][1] > 1e3


def test_of_a_sum_over_layers_the_median_token_counts() -> None:
    values = np.ones((4, 2))
    values[2, 1] = 1.25
    (measured,) = cells_of(values, median=True).measured()
    assert measured.errors[1][1] == 0.0


@pytest.mark.parametrize("wrong", [math.nan, math.inf, -math.inf])
def test_what_is_no_number_is_infinitely_wrong(wrong: float) -> None:
    values = np.ones((4, 2))
    values[0, 0] = wrong
    (measured,) = cells_of(values).measured()
    assert measured.shares[1][0] == math.inf


def test_another_shape_is_infinitely_wrong() -> None:
    (measured,) = cells_of(np.ones((4, 3))).measured()
    assert measured.shares[1][:2] == (math.inf, math.inf)


def test_the_worse_of_two_views_counts() -> None:
    truth = np.ones((1, 2))
    cells = Cells(1, ["decode"], "float32")
    views = [truth, truth + 0.5]
    cells.add("keys", 0, ["decode"], truth, [truth], views)
    assert cells.measured()[0].errors == ((0.5,),)


def test_a_lucky_token_may_err_as_tokens_usually_do() -> None:
    truth = np.full((5, 1), 2.0)
    draw = truth + np.array([0.1, 0.1, 0.1, 0.1, 0.0])[:, None]
    found = token_tolerances(truth, [draw, truth], EPSILON)
    np.testing.assert_allclose(found, FACTOR * 0.1 + FLOOR_UNITS * EPSILON * 2)


def test_a_large_token_does_not_excuse_the_others() -> None:
    truth = np.array([[1.0], [1.0], [1000.0]])
    draw = truth * (1 + 1e-6)
    small, _, large = token_tolerances(truth, [draw], EPSILON)
    assert large == pytest.approx(1000 * small)


def test_where_pytorch_overflows_nothing_passes() -> None:
    truth = np.array([[1.0], [1e6]])
    draw = np.array([[1.0], [np.inf]])
    tolerances = token_tolerances(truth, [draw], EPSILON)
    assert np.isfinite(tolerances[0])
    assert share_of(0.0, float(tolerances[1])) == math.inf


def test_nothing_of_nothing_is_no_error() -> None:
    assert share_of(0.0, 0.0) == 0.0
    assert share_of(1e-30, 0.0) == math.inf
    assert share_of(None, 1.0) is None
