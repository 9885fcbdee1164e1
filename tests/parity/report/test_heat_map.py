# SPDX-License-Identifier: Apache-2.0
"""The drawing: every cell says what it is, and what fails is marked without colours too."""

from __future__ import annotations

from math import inf, nan
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tc_export.parity.report.heat_map import CLASSES, class_of, heat_map

SVG = "{http://www.w3.org/2000/svg}"


def cells(svg: str) -> dict[str, tuple[str, str | None]]:
    """What each cell says of itself -> its class and its mark."""
    found = {}
    for group in ElementTree.fromstring(svg).iter("g"):
        title, mark = group.find("title"), group.find("text")
        assert title is not None
        assert title.text is not None
        found[title.text] = (group.attrib["class"], None if mark is None else mark.text)
    return found


@pytest.mark.parametrize(
    ("share", "name"),
    [
        (0.0, "a"),
        (0.1, "a"),
        (0.11, "b"),
        (0.6, "c"),
        (1.0, "d"),
        (1.0000001, "e"),
        (10.0, "f"),
        (11.0, "g"),
        (inf, "g"),
        (nan, "g"),
    ],
)
def test_the_class_of_a_share(share: float, name: str) -> None:
    assert class_of(share).name == name


@given(st.floats(0, 1e30), st.floats(0, 1e30))
def test_classes_are_in_order_and_what_fails_is_marked(one: float, other: float) -> None:
    low, high = sorted((one, other))
    assert CLASSES.index(class_of(low)) <= CLASSES.index(class_of(high))
    assert bool(class_of(one).mark) == (one > 1)


def test_every_cell_says_where_it_is() -> None:
    svg = heat_map(
        "a map", ["layer 0", "layer 1"], ["frame 1", "text after"], [[0.05, 2], [None, inf]]
    )
    assert cells(svg) == {
        "layer 0, frame 1: 5 %": ("share-a", None),
        "layer 0, text after: 2 times": ("share-e", "+"),
        "layer 1, text after: not finite": ("share-g", "■"),
    }


def test_all_lies_within_the_drawing() -> None:
    columns = [f"frame {index}" for index in range(64)]
    svg = ElementTree.fromstring(heat_map("m", ["layer 0"] * 80, columns, [[0.5] * 64] * 80))
    width, height = float(svg.attrib["width"]), float(svg.attrib["height"])
    assert svg.attrib["viewBox"] == f"0 0 {width:g} {height:g}"
    for rect in svg.iter("rect"):
        assert float(rect.attrib["x"]) + float(rect.attrib["width"]) <= width
        assert float(rect.attrib["y"]) + float(rect.attrib["height"]) <= height


def test_names_are_text_and_no_markup() -> None:
    """A long one is shortened, and whole where it is asked for."""
    name = '</svg><script>alert("x")</script>' * 3
    svg = heat_map(name, [name], [name], [[0.5]])
    assert "<script" not in svg
    assert name in {title.text for title in ElementTree.fromstring(svg).iter("title")}


def test_nothing_to_draw() -> None:
    assert cells(heat_map("empty", [], [], [])) == {}
