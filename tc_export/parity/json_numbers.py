# SPDX-License-Identifier: Apache-2.0
"""JSON has no word for an infinite number or a NaN: reports spell them as strings."""

from __future__ import annotations

from collections.abc import Mapping
from math import isfinite
from typing import Any


def spell_infinite(value: Any) -> Any:
    """The value with every number in it that is not finite as a string: "inf", "-inf", "nan"."""
    if isinstance(value, Mapping):
        return {name: spell_infinite(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [spell_infinite(part) for part in value]
    return str(value) if isinstance(value, float) and not isfinite(value) else value
