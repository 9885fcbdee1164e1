# SPDX-License-Identifier: Apache-2.0
"""A batch of sequences gives what each of them gives in a session of its own."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tc_export.config import ModelConfig
from tc_export.engine.batch import DecoderBatch, takes_batches
from tc_export.engine.interface import Engine
from tc_export.engine.onnxruntime import OrtEngine
from tc_export.engine.session import DecoderSession
from tc_export.errors import UsageError
from tc_export.model.positions import Clip, Segment, Text
from tests.exported import Exported, export_small

ROWS = 48
LENGTHS = [(3, 1, 1, 2), (9, 1, 0, 1), (1, 0, 1, 1)]
"""Tokens that each of three sequences appends, call by call; the first call is its question."""


def watched(engine: Engine, config: ModelConfig, chunk_tokens: int = 1024) -> DecoderSession:
    """A session that has read text, a clip and text, and had gone astray before."""
    segments: list[Segment] = [Text(2), Clip(3, config.tokens_per_frame), Text(2)]
    session = DecoderSession(engine, config, ROWS, chunk_tokens)
    random = np.random.default_rng(5)
    start = session.cursor
    astray: list[Segment] = [Text(7), Clip(4, config.tokens_per_frame)]
    for some in (astray, segments):
        session.rewind(start)
        length = sum(segment.length for segment in some)
        session.prefill(random.standard_normal((length, config.text.hidden_size)), some)
    return session


def texts(config: ModelConfig) -> list[list[np.ndarray]]:
    """Embeddings [S, E], by sequence and call."""
    random = np.random.default_rng(9)
    return [
        [random.standard_normal((length, config.text.hidden_size)) for length in lengths]
        for lengths in LENGTHS
    ]


def expected(engine: Engine, config: ModelConfig) -> list[list[np.ndarray | None]]:
    """Logits, by sequence and call, of sessions of their own; None where nothing is appended."""
    found: list[list[np.ndarray | None]] = []
    for sequence in texts(config):
        session = watched(engine, config)
        found.append([session.prefill(x, [Text(len(x))]) if len(x) else None for x in sequence])
    return found


def check(batch: DecoderBatch, config: ModelConfig, wanted: list[list[np.ndarray | None]]) -> None:
    for call in range(len(LENGTHS[0])):
        logits = batch.append([sequence[call] for sequence in texts(config)])
        assert len(logits) == len(LENGTHS)
        for row, sequence in enumerate(wanted):
            true = sequence[call]
            if true is not None:
                np.testing.assert_allclose(
                    logits[row], true, rtol=0, atol=2e-5 * np.abs(true).max()
                )


@pytest.mark.parametrize("chunk_tokens", [1024, 6, 4])
def test_a_batch_says_what_each_sequence_says_alone(
    exported: Exported, either_engine: OrtEngine, chunk_tokens: int
) -> None:
    """With questions of different lengths, some that pause, and a question that is cut."""
    session = watched(either_engine, exported.config, chunk_tokens)
    batch = DecoderBatch(session, len(LENGTHS))
    wanted = expected(either_engine, exported.config)
    check(batch, exported.config, wanted)
    batch.rewind()
    check(batch, exported.config, wanted)
    assert session.length == 4 + 3 * exported.config.tokens_per_frame


@pytest.fixture(scope="module", params=["causal", "full_visual", "frame_block"])
def masked(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """Exported with each of the other masks."""
    temporal = {"mask": request.param, "after_clip": "share"}
    return export_small(tmp_path_factory.mktemp(request.param), temporal=temporal)


def test_every_mask(masked: Exported, native_library: Path | None) -> None:
    path = masked.graph("decoder")
    engine = OrtEngine(path, native_library=native_library, threads=1)
    batch = DecoderBatch(watched(engine, masked.config), len(LENGTHS))
    check(batch, masked.config, expected(engine, masked.config))


def test_the_last_sequences_may_be_left_out(exported: Exported, either_engine: OrtEngine) -> None:
    batch = DecoderBatch(watched(either_engine, exported.config), len(LENGTHS) + 2)
    check(batch, exported.config, expected(either_engine, exported.config))


def test_one_sequence_needs_no_cache_of_its_own(
    exported: Exported, either_engine: OrtEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And the session is where it was: the next one starts from there."""
    wanted = expected(either_engine, exported.config)
    session = watched(either_engine, exported.config)
    monkeypatch.setattr(either_engine, "allocate", None)
    length = session.length
    for sequence, true in zip(texts(exported.config), wanted, strict=True):
        batch = DecoderBatch(session, 1)
        logits = [batch.append([x])[0] for x in sequence if len(x)]
        np.testing.assert_array_equal(logits, [x for x in true if x is not None])
        assert session.length == length


def test_what_was_read_is_told(exported: Exported, either_engine: OrtEngine) -> None:
    """Without the padding; and no call has more tokens than the session's may have."""
    told: list[int] = []
    batch = DecoderBatch(watched(either_engine, exported.config, 6), len(LENGTHS))
    batch.append([sequence[0] for sequence in texts(exported.config)], told.append)
    assert told == [2 + 2 + 1, 1 + 2, 2, 2, 1]


def test_a_sequence_that_does_not_fit_changes_none(
    exported: Exported, either_engine: OrtEngine
) -> None:
    wanted = expected(either_engine, exported.config)
    session = watched(either_engine, exported.config)
    batch = DecoderBatch(session, len(LENGTHS))
    channels = exported.config.text.hidden_size
    fits = ROWS - session.length
    with pytest.raises(UsageError, match=f"needs {ROWS + 1} tokens and the cache holds {ROWS}"):
        batch.append(
            [np.ones((1, channels)), np.ones((fits + 1, channels)), np.ones((2, channels))]
        )
    check(batch, exported.config, wanted)
    batch.rewind()
    batch.append([np.ones((fits, channels))])


def test_an_engine_of_one_sequence_is_told_from_others(either_engine: OrtEngine) -> None:
    assert takes_batches(either_engine)
    info = either_engine.inputs["inputs_embeds"]
    fixed = replace(info, shape=(1, *info.shape[1:]))
    either_engine.inputs = {**either_engine.inputs, "inputs_embeds": fixed}
    assert not takes_batches(either_engine)


def test_rows_are_written_into_a_cache_and_the_rest_cleared(exported: Exported) -> None:
    decoder = OrtEngine(exported.graph("decoder"), threads=1)
    cache = decoder.new_cache(9, batch=2)
    shape = cache.buffers["0.key"].shape
    cache.write("0.key", np.full(shape, 7.0))
    rows = np.random.default_rng(0).standard_normal((2, shape[1], 4, shape[3]))
    cache.write("0.key", rows)
    held = cache.buffers["0.key"].numpy()
    np.testing.assert_array_equal(held[:, :, :4], rows.astype(held.dtype))
    assert not held[:, :, 4:].any()
    assert not cache.buffers["0.value"].numpy().any()
    assert cache.length == 0
