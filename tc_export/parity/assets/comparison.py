# SPDX-License-Identifier: Apache-2.0
"""One file of a bundle, or what is made of it, against what the checkpoint says."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from logging import ERROR
from typing import Any, TypeVar

T = TypeVar("T")

LONGEST = 160
"""Characters of a value that are shown."""


@dataclass(frozen=True, kw_only=True)
class AssetComparison:
    """What the bundle has (`found`) and what it should have; in words where both are long.

    `note` says what was looked at.
    """

    name: str
    passed: bool
    found: str
    expected: str
    note: str = ""


@dataclass
class AssetFindings:
    """All comparisons, and a sentence about each thing that could not be compared."""

    comparisons: list[AssetComparison] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def extend(self, other: AssetFindings) -> None:
        """Add another's."""
        self.comparisons += other.comparisons
        self.notes += other.notes


def agreed(name: str, what: str, note: str = "") -> AssetComparison:
    """A comparison in which nothing differs."""
    return AssetComparison(name=name, passed=True, found=what, expected=what, note=note)


def differs(name: str, found: object, expected: object, note: str = "") -> AssetComparison:
    """A comparison that fails."""
    return AssetComparison(
        name=name, passed=False, found=shown(found), expected=shown(expected), note=note
    )


def shown(value: object) -> str:
    """A value as a person reads it, cut where it is long."""
    text = value if isinstance(value, str) else repr(value)
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}…"


class CannotBeReadError(Exception):
    """transformers cannot read something; the message says what and why."""


def read_by_transformers(what: str, read: Callable[[], T]) -> T:
    """What `read` returns.

    Raises:
        CannotBeReadError: it raised something; transformers raises whatever it likes.
    """
    try:
        return read()
    except Exception as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise CannotBeReadError(f"{what}: transformers cannot read it: {shown(reason)}") from error


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Its warnings are about models that it would run: they are not ours to print."""
    from transformers.utils import logging

    before = logging.get_verbosity()
    logging.set_verbosity(ERROR)
    try:
        yield
    finally:
        logging.set_verbosity(before)


def first_difference(found: Any, expected: Any, path: str = "") -> tuple[str, Any, Any] | None:
    """The place where two JSON values differ first, and both values there; None where none does."""
    if isinstance(found, dict) and isinstance(expected, dict):
        for key in [*expected, *(key for key in found if key not in expected)]:
            place = f"{path}.{key}" if path else str(key)
            inner = first_difference(found.get(key), expected.get(key), place)
            if inner is not None:
                return inner
        return None
    if isinstance(found, list) and isinstance(expected, list):
        for index, (one, other) in enumerate(zip(found, expected, strict=False)):
            inner = first_difference(one, other, f"{path}[{index}]")
            if inner is not None:
                return inner
        if len(found) != len(expected):
            return f"{path}, length", len(found), len(expected)
        return None
    return None if found == expected else (path, found, expected)
