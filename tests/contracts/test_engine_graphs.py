# SPDX-License-Identifier: Apache-2.0
"""What becomes an engine each: every layer once, under names that say the order."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tc_export.contracts.graph_io import DECODER, VISION
from tc_export.contracts.parts import decoder_names, engine_graphs


@given(st.integers(1, 80), st.data())
def test_every_layer_is_in_one_engine(layers: int, data: st.DataObject) -> None:
    parts = data.draw(st.integers(1, layers))
    vision, *decoders = engine_graphs(layers, parts)
    assert (vision.name, vision.graph, vision.part) == (VISION, VISION, None)
    assert tuple(each.name for each in decoders) == decoder_names(parts)
    assert {each.graph for each in decoders} == {DECODER}
    if parts == 1:
        assert decoders[0].part is None
    else:
        cut = [each.part for each in decoders if each.part is not None]
        assert [layer for part in cut for layer in part.layers] == list(range(layers))


def test_names_and_titles() -> None:
    _, first, second, _ = engine_graphs(32, 3)
    assert first.name == "decoder_part1"
    assert first.title == "decoder part 1 of 3"
    assert str(second.part) == "layers 11 to 21"
    _, whole = engine_graphs(32, 1)
    assert (whole.name, whole.title) == ("decoder", "decoder")


@pytest.mark.parametrize("parts", [0, -1, 5])
def test_parts_that_cannot_be(parts: int) -> None:
    with pytest.raises(ValueError, match="4 layers cannot be cut"):
        engine_graphs(4, parts)
