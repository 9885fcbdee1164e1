# SPDX-License-Identifier: Apache-2.0
"""How much a chat template may make, and how large what it is about to make would be."""

from __future__ import annotations

import re
from typing import Any

from tc_export.errors import CheckpointError

VALUE_CHARACTERS = 4_000_000
ALL_CHARACTERS = 64_000_000
STEPS = 200_000
SECONDS = 5.0
DEPTH = 32
"""Most lists within lists, and objects within objects."""

_INTEGER_BITS = 4096
_ITEM_CHARACTERS = 8  # what an item of a list weighs beside its contents

# A width of three digits, one that is an argument, or a field within a field.
_WIDE_FORMAT = re.compile(r"%[^%]*?(\d{3}|\*)|\{[^{}]*?\d{3}|\{[^{}]+\{")


class TemplateLimitError(CheckpointError):
    """A template asks for more than it is allowed."""

    def __init__(self, what: str) -> None:
        super().__init__(
            f"the chat template {what}",
            hint="check chat_template.jinja, or remove it to use Vicuna's prompt",
        )


def weigh(value: Any) -> int:
    """How many characters writing a value out takes, about.

    Raises:
        TemplateLimitError: more than a value may have, or deeper than it may be.
    """
    if isinstance(value, str):
        weight = len(value)
    elif isinstance(value, int):
        weight = value.bit_length() // 3
        if value.bit_length() > _INTEGER_BITS:
            raise TemplateLimitError(f"computes a number of more than {_INTEGER_BITS} bits")
    else:
        weight = _weigh_items([(value, 0)])
    if weight > VALUE_CHARACTERS:
        raise TemplateLimitError(f"makes a value of more than {VALUE_CHARACTERS} characters")
    return weight


def _weigh_items(left: list[tuple[Any, int]]) -> int:
    """The weight of collections, up to where it is too much."""
    weight = 0
    while left and weight <= VALUE_CHARACTERS:
        value, depth = left.pop()
        weight += _ITEM_CHARACTERS + (len(value) if isinstance(value, str) else 0)
        if not isinstance(value, (list, tuple, dict)):
            continue
        if depth == DEPTH:
            raise TemplateLimitError(f"puts more than {DEPTH} collections into each other")
        items = [*value, *value.values()] if isinstance(value, dict) else value
        weight += _ITEM_CHARACTERS * len(items)
        if weight <= VALUE_CHARACTERS:
            left += [(item, depth + 1) for item in items]
    return weight


def check_characters(count: int) -> None:
    """Refuse a value of so many characters, where they are too many."""
    if count > VALUE_CHARACTERS:
        raise TemplateLimitError(f"makes a value of more than {VALUE_CHARACTERS} characters")


def check_product(left: Any, right: Any) -> None:
    """Refuse a product that would be too large: of numbers, or of a text or list and a number."""
    if isinstance(left, int) and isinstance(right, int):
        _check_bits(left.bit_length() + right.bit_length())
    for value, times in ((left, right), (right, left)):
        if isinstance(value, (str, list, tuple)) and isinstance(times, int):
            check_characters(max(1, weigh(value)) * times)


def check_power(left: Any, right: Any) -> None:
    """Refuse a power of too many bits."""
    if isinstance(left, int) and isinstance(right, int):
        _check_bits(left.bit_length() * right)


def _check_bits(bits: int) -> None:
    if bits > _INTEGER_BITS:
        raise TemplateLimitError(f"computes a number of more than {_INTEGER_BITS} bits")


def check_format(form: str, values: Any) -> None:
    """Refuse a format, of `%` or of `str.format`, that pads its values, or says them too often."""
    if _WIDE_FORMAT.search(form):
        raise TemplateLimitError("formats text to a width of 100 or more")
    fields = form.count("%") + form.count("{")
    check_characters(len(form) + fields * weigh(values))


def check_replace(text: str, old: Any, new: Any) -> None:
    """Refuse to replace, where the text would become too long."""
    check_characters(len(text) + text.count(str(old)) * len(str(new)))


def check_join(separator: Any, values: Any) -> None:
    """Refuse to join, where the text would become too long."""
    if isinstance(values, (str, list, tuple, dict)):
        check_characters(weigh(values) + len(values) * len(str(separator)))
