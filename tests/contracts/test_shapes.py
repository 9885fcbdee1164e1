# SPDX-License-Identifier: Apache-2.0
"""Shapes that engines are built for: every call that a session makes lies inside them."""

from __future__ import annotations

import pytest

from tc_export.config import AttentionMask, ModelConfig, TemporalConfig
from tc_export.contracts.graph_io import PREFILL_TOKENS
from tc_export.contracts.shapes import decoder_shapes, vision_shapes
from tc_export.demo_model.config import tiny_model
from tc_export.device_build.write import trtexec_flags

CONFIG = tiny_model(100)


def with_mask(mask: AttentionMask) -> ModelConfig:
    return tiny_model(100, TemporalConfig(mask=mask))


def test_vision_takes_one_frame_to_a_call_s_most() -> None:
    (shape,) = vision_shapes(CONFIG, 5).values()
    assert (shape.smallest, shape.largest) == ((1, 3, 32, 32), (5, 3, 32, 32))
    (shape,) = vision_shapes(CONFIG, 500).values()
    assert shape.largest == (8, 3, 32, 32)


def test_the_cache_has_one_size_and_tokens_from_one_to_a_chunk() -> None:
    shapes = decoder_shapes(CONFIG, 1800)
    cache = shapes["past_key_values.0.key"]
    assert cache.smallest == cache.usual == cache.largest == (1, 2, 1800, 64)
    assert shapes["inputs_embeds"].smallest == (1, 1, 128)
    assert shapes["kv_end"].largest == (1, PREFILL_TOKENS)
    assert decoder_shapes(CONFIG, 40)["kv_end"].largest == (1, 40)


def test_a_mask_that_cannot_be_cut_takes_all_tokens_at_once() -> None:
    shapes = decoder_shapes(with_mask(AttentionMask.FULL_VISUAL), 1800)
    assert shapes["kv_end"].largest == (1, 1800)


def test_every_input_of_the_graph_has_shapes() -> None:
    from tc_export.contracts.graph_io import decoder_inputs, names

    assert set(decoder_shapes(CONFIG, 64)) == set(names(decoder_inputs(CONFIG)))


@pytest.mark.parametrize("flag", ["--minShapes", "--optShapes", "--maxShapes"])
def test_flags_name_every_input(flag: str) -> None:
    spelt = trtexec_flags(decoder_shapes(CONFIG, 64))[flag]
    assert spelt.startswith("inputs_embeds:1x")
    assert spelt.count(":") == 5 + 2 * CONFIG.text.num_hidden_layers
