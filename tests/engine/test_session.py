# SPDX-License-Identifier: Apache-2.0
"""The ONNX Runtime engine and the session on it: binding, chunks, decode, bad feeds."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from tc_export.config import ModelConfig
from tc_export.engine.interface import Engine
from tc_export.engine.onnxruntime import OrtEngine
from tc_export.engine.session import DecoderSession
from tc_export.errors import BundleError, UsageError
from tc_export.model.positions import Clip, Cursor, Segment, Text
from tc_export.parity.torch_engine import TorchDecoderEngine
from tests.engine import sessions
from tests.exported import Exported, export_small

ROWS = 60


@pytest.fixture
def engine(exported: Exported) -> OrtEngine:
    return OrtEngine(exported.graph("decoder"), threads=1)


def prompt(exported: Exported) -> tuple[list[Segment], np.ndarray]:
    segments: list[Segment] = [Text(3), Clip(5, exported.config.tokens_per_frame), Text(4)]
    length = sum(segment.length for segment in segments)
    random = np.random.default_rng(3)
    return segments, random.standard_normal((length, exported.config.text.hidden_size))


def close(actual: np.ndarray, expected: np.ndarray) -> None:
    np.testing.assert_allclose(actual, expected, rtol=0, atol=2e-5 * np.abs(expected).max())


@pytest.mark.parametrize("chunk_tokens", [4, 7, 1000])
def test_chunks_and_steps_equal_pytorch_at_once(
    exported: Exported, engine: OrtEngine, chunk_tokens: int
) -> None:
    """Frame by frame or at once, then token by token: the logits of float64 PyTorch, unchunked."""
    segments, embeds = prompt(exported)
    truth = TorchDecoderEngine(exported.checkpoint.load_model(torch.float64))
    expected = DecoderSession(truth, exported.config, ROWS, 1000)
    actual = DecoderSession(engine, exported.config, ROWS, chunk_tokens)
    done: list[int] = []
    close(actual.prefill(embeds, segments, done.append), expected.prefill(embeds, segments))
    assert sum(done) == len(embeds)
    assert max(done) <= max(chunk_tokens, exported.config.tokens_per_frame)
    for token in range(6):
        embed = embeds[token] + token
        close(actual.step(embed), expected.step(embed))
    assert actual.length == len(embeds) + 6


def test_the_cache_is_updated_in_place(exported: Exported, engine: OrtEngine) -> None:
    """The bound buffers are the cache: no output is handed out for it, and rows fill up."""
    session = DecoderSession(engine, exported.config, ROWS)
    segments, embeds = prompt(exported)
    session.prefill(embeds, segments)
    for cache in session.cache.buffers.values():
        rows = np.abs(cache.numpy()).sum(axis=(0, 1, 3))
        assert (rows[: len(embeds)] > 0).all()
        assert (rows[len(embeds) :] == 0).all()
    outputs = engine.run(_one_token_feeds(exported), session.cache)
    assert outputs.keys() == {"logits"}


def _one_token_feeds(exported: Exported) -> dict[str, np.ndarray]:
    zero = np.zeros((1, 1), dtype=np.int64)
    return {
        "inputs_embeds": np.ones((1, 1, exported.config.text.hidden_size)),
        "position_ids": zero,
        "temporal_ids": zero,
        "kv_end": zero + 1,
        "logits_indices": zero,
    }


def test_a_buffer_can_be_written_and_read(exported: Exported, engine: OrtEngine) -> None:
    shape = engine.inputs["past_key_values.0.key"].shape
    buffer = engine.allocate("past_key_values.0.key", (1, int(shape[1]), 5, int(shape[3])))
    values = np.random.default_rng(0).standard_normal((1, int(shape[1]), 5, int(shape[3])), "f")
    assert (buffer.numpy() == 0).all()
    buffer.write(values)
    np.testing.assert_array_equal(buffer.numpy(), values)


def test_two_sessions_do_not_share_a_cache(exported: Exported, engine: OrtEngine) -> None:
    """A new session binds its own buffers, and starts from nothing."""
    segments, embeds = prompt(exported)
    first = DecoderSession(engine, exported.config, ROWS).prefill(embeds, segments)
    again = DecoderSession(engine, exported.config, ROWS).prefill(embeds, segments)
    np.testing.assert_array_equal(first, again)


def test_a_full_cache_is_an_error(exported: Exported, engine: OrtEngine) -> None:
    segments, embeds = prompt(exported)
    session = DecoderSession(engine, exported.config, len(embeds))
    session.prefill(embeds, segments)
    with pytest.raises(UsageError, match=rf"needs {len(embeds) + 1} tokens"):
        session.step(embeds[0])


def test_full_visual_is_prefilled_at_once(tmp_path: Path) -> None:
    """Its frames see later frames: the session must not cut the clip, whatever the chunk."""
    exported = export_small(tmp_path, temporal={"mask": "full_visual"})
    segments, embeds = prompt(exported)
    truth = TorchDecoderEngine(exported.checkpoint.load_model(torch.float64))
    engine = OrtEngine(exported.graph("decoder"), threads=1)
    done: list[int] = []
    logits = DecoderSession(engine, exported.config, ROWS, 4).prefill(embeds, segments, done.append)
    assert done == [len(embeds)]
    close(logits, DecoderSession(truth, exported.config, ROWS).prefill(embeds, segments))


def test_a_missing_input_is_named(exported: Exported, engine: OrtEngine) -> None:
    feeds = _one_token_feeds(exported)
    del feeds["kv_end"]
    with pytest.raises(ValueError, match="kv_end"):
        engine.run(feeds, engine.new_cache(ROWS))


def test_a_graph_that_is_none(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(b"not a graph")
    with pytest.raises(BundleError, match="cannot load"):
        OrtEngine(path)
    with pytest.raises(BundleError, match="cannot load"):
        OrtEngine(tmp_path / "none.onnx")


@pytest.mark.parametrize("check", sessions.CHECKS)
def test_sessions_of_one_engine(
    check: Callable[[Engine, ModelConfig], None], exported: Exported, either_engine: OrtEngine
) -> None:
    check(either_engine, exported.config)


def test_a_cache_is_not_stolen(
    exported: Exported, engine: OrtEngine, either_engine: OrtEngine
) -> None:
    sessions.check_not_stolen(either_engine, exported.config, engine)


def test_a_failed_prefill_leaves_the_session_as_it_was(
    exported: Exported, engine: OrtEngine
) -> None:
    segments, embeds = prompt(exported)
    session = DecoderSession(engine, exported.config, len(embeds) + 2)
    first = session.prefill(embeds, segments)
    with pytest.raises(UsageError, match="the cache holds"):
        session.prefill(embeds, segments)
    assert session.length == session.cache.length == len(embeds)
    session.rewind(Cursor())
    np.testing.assert_array_equal(session.prefill(embeds, segments), first)


def test_a_vision_engine_has_no_cache(exported: Exported) -> None:
    engine = OrtEngine(exported.graph("vision"), threads=1)
    with pytest.raises(UsageError, match="takes no cache"):
        engine.new_cache(4)
