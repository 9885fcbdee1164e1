# SPDX-License-Identifier: Apache-2.0
"""What the reports of both comparisons share: the verdict, and numbers that JSON cannot write."""

from __future__ import annotations

from collections.abc import Mapping
from math import isfinite
from typing import Any

from rich.text import Text


def verdict(passed: bool) -> Text:
    """The word for people, in its colour."""
    return Text("passed", style="green") if passed else Text("FAILED", style="red")


def spell_infinite(value: Any) -> Any:
    """The value with every number in it that is not finite as a string: "inf", "-inf", "nan"."""
    if isinstance(value, Mapping):
        return {name: spell_infinite(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [spell_infinite(part) for part in value]
    return str(value) if isinstance(value, float) and not isfinite(value) else value


def spell_share(share: float) -> str:
    """A share of the tolerance as a person reads it: `37 %`, `2.4 times`, `not finite`."""
    if not isfinite(share):
        return "not finite"
    if share < 1e-3:
        return "under 0.1 %"
    return f"{share:.2g} times" if share > 1 else f"{100 * share:.2g} %"
