# SPDX-License-Identifier: Apache-2.0
"""Fisher's F distribution against its closed forms, its symmetry, and draws."""

from __future__ import annotations

from math import atan, log, pi, sqrt

import numpy as np
import pytest

from tc_export.parity.tensors.f_distribution import (
    degrees_that_exceed,
    degrees_that_vary,
    f_quantile,
    f_tail,
    trigamma,
)

VALUES = [1e-6, 0.3, 1.0, 2.5, 40.0, 1e5]


@pytest.mark.parametrize("x", VALUES)
def test_closed_forms(x: float) -> None:
    for below in (1.0, 2.0, 7.5, 60.0):
        exact = (1 + 2 * x / below) ** (-below / 2)
        assert f_tail(x, 2, below) == pytest.approx(exact, rel=1e-9)
    assert f_tail(x, 1, 1) == pytest.approx(1 - 2 / pi * atan(sqrt(x)), rel=1e-9)
    assert f_tail(x, 1, 2) == pytest.approx(1 - sqrt(x / (x + 2)), rel=1e-7)


@pytest.mark.parametrize("x", VALUES)
def test_the_reciprocal_is_f_with_degrees_exchanged(x: float) -> None:
    assert f_tail(x, 3.5, 11) + f_tail(1 / x, 11, 3.5) == pytest.approx(1, rel=1e-9)


def test_draws_of_normal_numbers() -> None:
    random = np.random.default_rng(0)
    above = np.square(random.standard_normal((200_000, 3))).mean(axis=1)
    below = np.square(random.standard_normal((200_000, 12))).mean(axis=1)
    for x in (0.5, 2.0, 5.0):
        assert f_tail(x, 3, 12) == pytest.approx((above / below > x).mean(), rel=0.05)


@pytest.mark.parametrize("tail", [0.5, 1e-2, 1e-5, 1e-9])
@pytest.mark.parametrize("degrees", [(1, 2), (1.5, 9), (16, 96)])
def test_the_quantile_is_the_tails_inverse(tail: float, degrees: tuple[float, float]) -> None:
    assert f_tail(f_quantile(tail, *degrees), *degrees) == pytest.approx(tail, rel=1e-6)


def test_what_cannot_be_exceeded_has_a_tail_of_one() -> None:
    assert f_tail(0, 3, 4) == 1
    assert f_tail(-1, 3, 4) == 1


@pytest.mark.parametrize("degrees", [1.2, 3, 9.5])
def test_degrees_are_found_again(degrees: float) -> None:
    x = f_quantile(0.01, degrees, 5 * degrees)
    assert degrees_that_exceed(x, 0.01, 5, 1, 16) == pytest.approx(degrees, rel=1e-6)


def test_degrees_stay_between_their_bounds() -> None:
    assert degrees_that_exceed(1e6, 0.01, 5, 1, 16) == 1
    assert degrees_that_exceed(1.01, 0.01, 5, 1, 16) == 16


def test_trigamma() -> None:
    assert trigamma(1) == pytest.approx(pi**2 / 6, rel=1e-9)
    assert trigamma(0.5) == pytest.approx(pi**2 / 2, rel=1e-9)
    assert trigamma(3.25) == pytest.approx(trigamma(4.25) + 1 / 3.25**2, rel=1e-9)
    assert trigamma(1e6) == pytest.approx(1e-6, rel=1e-5)


@pytest.mark.parametrize("degrees", [1, 2, 6])
def test_degrees_are_found_by_how_draws_vary(degrees: int) -> None:
    random = np.random.default_rng(degrees)
    sizes = np.sqrt(np.square(random.standard_normal((100_000, degrees))).mean(axis=1))
    variance = float(np.log(sizes).var())
    assert degrees_that_vary(variance, 0.5, 16) == pytest.approx(degrees, rel=0.03)
    assert degrees_that_vary(1e-3, 1, 8) == 8
    assert degrees_that_vary(log(10) ** 2, 1, 8) == 1
