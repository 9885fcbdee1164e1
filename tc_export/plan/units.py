# SPDX-License-Identifier: Apache-2.0
"""Predictions as a person reads them: two digits, in a unit that fits the size."""

from __future__ import annotations

from math import floor, log10

_UNITS = ("B", "KB", "MB", "GB", "TB")  # of 1000 each, as makers of devices count


def spell_bytes(nbytes: float) -> str:
    """Bytes with two significant digits: `560 KB`, `1.4 MB`, `13 GB`."""
    size, unit = round_to_two_digits(nbytes), 0
    while size >= 1000 and unit < len(_UNITS) - 1:
        size, unit = size / 1000, unit + 1
    return f"{_plain(size)} {_UNITS[unit]}"


def spell_number(value: float) -> str:
    """A number with two significant digits, without an exponent: `830`, `12000`, `0.034`."""
    return _plain(round_to_two_digits(value))


def spell_count(count: int) -> str:
    """A large number in words: `590 thousand`, `6.5 billion`."""
    for size, word in ((10**9, "billion"), (10**6, "million"), (10**3, "thousand")):
        if count >= size:
            return f"{spell_number(count / size)} {word}"
    return str(count)


def round_to_two_digits(value: float) -> float:
    """The value with two significant digits; 0 stays 0."""
    if value == 0:
        return 0.0
    return round(value, 1 - floor(log10(abs(value))))


def _plain(value: float) -> str:
    if value >= 10 or value == 0:
        return f"{value:.0f}"
    return f"{value:.{1 - floor(log10(value))}f}"
