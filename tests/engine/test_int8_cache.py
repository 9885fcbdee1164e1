# SPDX-License-Identifier: Apache-2.0
"""A decoder whose cache is in int8, in ONNX Runtime: sessions, forks, batches and what it holds."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from tc_export.config import ModelConfig
from tc_export.contracts.graph_io import cache_parts
from tc_export.dtypes import DType
from tc_export.engine.batch import DecoderBatch
from tc_export.engine.interface import Engine
from tc_export.engine.loading import choose_native_library
from tc_export.engine.onnxruntime import OrtEngine
from tc_export.engine.session import DecoderSession
from tc_export.graph.parts import cut_decoder
from tc_export.parity.torch_engine import TorchDecoderEngine
from tests.engine import sessions
from tests.engine.test_session import ROWS, prompt
from tests.exported import Exported, export_small


@pytest.fixture(scope="module")
def in_int8(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    return export_small(tmp_path_factory.mktemp("int8"), kv="int8")


@pytest.fixture(params=[False, True], ids=["functions", "native"])
def engine(in_int8: Exported, request: pytest.FixtureRequest) -> OrtEngine:
    library = choose_native_library(None) if request.param else None
    if request.param and library is None:
        pytest.skip("the native library was not built: no C++ compiler or no ONNX Runtime headers")
    return OrtEngine(in_int8.graph("decoder"), threads=1, native_library=library)


def test_the_graph_is_as_the_contract_says(in_int8: Exported) -> None:
    layers = in_int8.config.text.num_hidden_layers
    counts = {"TcDualRope": 2 * layers, "TcBlockCausalAttentionInt8": layers}
    assert in_int8.decoder.custom_nodes == counts
    model = onnx.load(in_int8.graph("decoder"), load_external_data=False)
    assert {function.name for function in model.functions} == set(counts)
    types = {x.name: x.type.tensor_type for x in (*model.graph.input, *model.graph.output)}
    text = in_int8.config.text
    for prefix in ("past_key_values", "present"):
        for part in cache_parts(in_int8.config):
            found = types[f"{prefix}.1.{part}"]
            is_scale = part.endswith("_scale")
            assert found.elem_type == (DType.FLOAT32 if is_scale else DType.INT8).onnx
            sizes = [axis.dim_param or axis.dim_value for axis in found.shape.dim]
            row = [] if is_scale else [text.head_dim]
            assert sizes == ["batch", text.num_key_value_heads, "cache_rows", *row]


@pytest.mark.parametrize("chunk_tokens", [4, 1000])
def test_chunks_and_steps_equal_pytorch_at_once(
    in_int8: Exported, engine: OrtEngine, chunk_tokens: int
) -> None:
    """A code beside a tie may fall either way in float32: few do, and by one. Logits are as near
    as that allows, and nowhere near those of a cache in floating point."""
    segments, embeds = prompt(in_int8)
    model = in_int8.checkpoint.load_model(torch.float64)
    expected = DecoderSession(TorchDecoderEngine(model), in_int8.config, ROWS, 1000)
    actual = DecoderSession(engine, in_int8.config, ROWS, chunk_tokens)
    truth = [expected.prefill(embeds, segments)]
    found = [actual.prefill(embeds, segments)]
    for token in range(6):
        truth.append(expected.step(embeds[token] + token))
        found.append(actual.step(embeds[token] + token))
    codes = 0
    for name, buffer in actual.cache.buffers.items():
        held, true = buffer.numpy()[:, :, : actual.length], expected.cache.buffers[name].numpy()
        true = true[:, :, : actual.length]
        if name.endswith("_scale"):
            np.testing.assert_allclose(held, true, rtol=1e-4)
        else:
            off = np.abs(held.astype(int) - true.astype(int))
            assert off.max() <= 1
            codes += int(off.sum())
    assert codes <= 3
    spread = np.abs(truth).max()
    np.testing.assert_allclose(found, truth, rtol=0, atol=(2e-5 + 2e-3 * codes) * spread)


def test_the_cache_is_updated_in_place(in_int8: Exported, engine: OrtEngine) -> None:
    session = DecoderSession(engine, in_int8.config, ROWS)
    segments, embeds = prompt(in_int8)
    session.prefill(embeds, segments)
    for cache in session.cache.buffers.values():
        rows = np.moveaxis(np.abs(cache.numpy().astype(np.float64)), 2, 0).reshape(ROWS, -1).sum(1)
        assert (rows[: len(embeds)] > 0).all()
        assert (rows[len(embeds) :] == 0).all()


@pytest.mark.parametrize("check", sessions.CHECKS, ids=lambda check: check.__name__)
def test_sessions(
    in_int8: Exported, engine: OrtEngine, check: Callable[[Engine, ModelConfig], None]
) -> None:
    check(engine, in_int8.config)


def test_a_batch_goes_on_from_a_session(in_int8: Exported, engine: OrtEngine) -> None:
    """Codes and scales of what was watched are copied for each sequence; padding has a row."""
    segments, embeds = prompt(in_int8)
    asked = [embeds[:3], embeds[3:4], embeds[4:9]]
    expected = []
    for each in asked:
        session = DecoderSession(engine, in_int8.config, ROWS)
        session.prefill(embeds, segments)
        expected.append(session.prefill(each, [sessions.Text(len(each))]))
    session = DecoderSession(engine, in_int8.config, ROWS)
    session.prefill(embeds, segments)
    found = DecoderBatch(session, len(asked)).append(asked)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-3 * np.abs(expected).max())


def test_it_takes_a_quarter_of_float32_and_its_scales(in_int8: Exported, engine: OrtEngine) -> None:
    text = in_int8.config.text
    rows = 2 * text.num_hidden_layers * text.num_key_value_heads * ROWS
    assert engine.new_cache(ROWS).nbytes == rows * (text.head_dim + 4)


def test_parts_have_their_share_of_codes_and_scales(in_int8: Exported) -> None:
    from tc_export.contracts.parts import even_parts

    parts = cut_decoder(in_int8.graph("decoder"), in_int8.config, even_parts(2, 2))
    for index, part in enumerate(parts):
        names = [str(value.name) for value in part.graph.inputs]
        for kind in cache_parts(in_int8.config):
            assert names.count(f"past_key_values.{index}.{kind}") == 1
            assert f"past_key_values.{1 - index}.{kind}" not in names


def test_a_half_precision_graph_keeps_float32_scales(tmp_path: Path) -> None:
    exported = export_small(tmp_path, precision=DType.FLOAT16, kv="int8")
    engine = OrtEngine(exported.graph("decoder"), threads=1)
    assert engine.inputs["past_key_values.0.key"].dtype == np.int8
    assert engine.inputs["past_key_values.0.key_scale"].dtype == np.float32
    segments, embeds = prompt(exported)
    truth = TorchDecoderEngine(exported.checkpoint.load_model(torch.float64))
    expected = DecoderSession(truth, exported.config, ROWS).prefill(embeds, segments)
    found = DecoderSession(engine, exported.config, ROWS).prefill(embeds, segments)
    np.testing.assert_allclose(found, expected, rtol=0, atol=0.03 * np.abs(expected).max())
