# SPDX-License-Identifier: Apache-2.0
"""Mean squares of normal numbers: their ratio, which is Fisher's F, and how far they vary.

Degrees of freedom need not be whole.
"""

from __future__ import annotations

from collections.abc import Callable
from math import exp, lgamma, log, log1p

_TERMS = 1000
_ACCURACY = 1e-12
_HALVINGS = 100
_ASYMPTOTIC = 8.0


def f_tail(x: float, above: float, below: float) -> float:
    """How likely F with `above` and `below` degrees of freedom exceeds `x`."""
    if x <= 0:
        return 1.0
    return _incomplete_beta(below / 2, above / 2, below / (below + above * x))


def f_quantile(tail: float, above: float, below: float) -> float:
    """The x that F exceeds with the chance `tail`."""
    largest = 1.0
    while f_tail(largest, above, below) > tail and largest < 1e300:
        largest *= 4
    return _halve(lambda x: f_tail(x, above, below) - tail, 0.0, largest)


def degrees_that_exceed(x: float, tail: float, times: float, least: float, most: float) -> float:
    """The n for which F(n, `times` n) exceeds `x` > 1 with the chance `tail`, in [least, most].

    The fewer the degrees, the heavier the tail.
    """

    def excess(degrees: float) -> float:
        return f_tail(x, degrees, times * degrees) - tail

    if excess(most) >= 0:
        return most
    return least if excess(least) <= 0 else _halve(excess, least, most)


def degrees_that_vary(variance: float, least: float, most: float) -> float:
    """The n for which the logarithm of the root mean square of n normal numbers has this variance.

    It is a quarter of the trigamma function of n / 2, which falls; the n is in [least, most].
    """

    def excess(degrees: float) -> float:
        return trigamma(degrees / 2) / 4 - variance

    if excess(most) >= 0:
        return most
    return least if excess(least) <= 0 else _halve(excess, least, most)


def trigamma(x: float) -> float:
    """The second derivative of the logarithm of the gamma function, x > 0 (DLMF 5.15.8)."""
    total = 0.0
    while x < _ASYMPTOTIC:
        total += 1 / x**2
        x += 1
    return total + 1 / x + 1 / (2 * x**2) + 1 / (6 * x**3) - 1 / (30 * x**5) + 1 / (42 * x**7)


def _halve(falling: Callable[[float], float], low: float, high: float) -> float:
    """Where a function that falls crosses zero."""
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        if falling(middle) > 0:
            low = middle
        else:
            high = middle
    return (low + high) / 2


def _incomplete_beta(a: float, b: float, x: float) -> float:
    """The regularised incomplete beta function I_x(a, b), by its continued fraction.

    DLMF 8.17.22, evaluated from the front (Lentz).
    """
    if x <= 0 or x >= 1:
        return float(x >= 1)
    if x > (a + 1) / (a + b + 2):
        return 1 - _incomplete_beta(b, a, 1 - x)
    front = exp(a * log(x) + b * log1p(-x) + lgamma(a + b) - lgamma(a) - lgamma(b)) / a
    c, d = 1.0, 1 / (1 - (a + b) * x / (a + 1))
    fraction = d
    for m in range(1, _TERMS):
        step = 1.0
        for numerator in (
            m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m)),
            -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1)),
        ):
            d = 1 / (1 + numerator * d)
            c = 1 + numerator / c
            step = c * d
            fraction *= step
        if abs(step - 1) < _ACCURACY:
            break
    return front * fraction
