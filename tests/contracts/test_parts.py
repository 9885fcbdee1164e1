# SPDX-License-Identifier: Apache-2.0
"""How layers are shared out."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tc_export.contracts.parts import Part, even_parts


@given(layers=st.integers(1, 200), data=st.data())
def test_even_parts_are_even(layers: int, data: st.DataObject) -> None:
    count = data.draw(st.integers(1, layers))
    parts = even_parts(layers, count)
    assert [layer for part in parts for layer in part.layers] == list(range(layers))
    sizes = [len(part.layers) for part in parts]
    assert len(sizes) == count
    assert max(sizes) - min(sizes) <= 1
    assert sizes == sorted(sizes, reverse=True)


@pytest.mark.parametrize("count", [0, 6])
def test_parts_that_cannot_be(count: int) -> None:
    with pytest.raises(ValueError, match="cannot be cut"):
        even_parts(5, count)


def test_a_part_says_what_it_is() -> None:
    assert [str(part) for part in even_parts(3, 2)] == ["layers 0 to 1", "layer 2"]
    assert list(Part(2, 4).layers) == [2, 3]
