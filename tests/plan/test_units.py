# SPDX-License-Identifier: Apache-2.0
"""Two digits, in a unit that fits."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tc_export.plan.units import (
    round_to_two_digits,
    spell_bytes,
    spell_count,
    spell_number,
)


@pytest.mark.parametrize(
    ("nbytes", "spelt"),
    [
        (0, "0 B"),
        (7, "7.0 B"),
        (950, "950 B"),
        (999, "1.0 KB"),
        (560_000, "560 KB"),
        (1_449_999, "1.4 MB"),
        (13_500_000_000, "14 GB"),
        (999_500_000_000, "1.0 TB"),
        (5_600_000_000_000_000, "5600 TB"),
    ],
)
def test_bytes(nbytes: int, spelt: str) -> None:
    assert spell_bytes(nbytes) == spelt


@pytest.mark.parametrize(
    ("value", "spelt"), [(834_258, "830000"), (0.0342, "0.034"), (9.96, "10"), (12.4, "12")]
)
def test_numbers(value: float, spelt: str) -> None:
    assert spell_number(value) == spelt


@given(st.floats(1e-9, 1e18))
def test_nothing_is_lost_but_the_third_digit(value: float) -> None:
    assert abs(round_to_two_digits(value) - value) <= 0.051 * value
    assert float(spell_number(value)) == pytest.approx(round_to_two_digits(value), rel=1e-9)


@pytest.mark.parametrize(
    ("count", "expected"),
    [
        (0, "0"),
        (999, "999"),
        (589_824, "590 thousand"),
        (1_000_000, "1.0 million"),
        (6_476_267_520, "6.5 billion"),
    ],
)
def test_large_numbers_are_in_words(count: int, expected: str) -> None:
    assert spell_count(count) == expected
