# SPDX-License-Identifier: Apache-2.0
"""What every backend's sessions must keep: each has a cache of its own, whatever runs between."""

from __future__ import annotations

import threading
from collections.abc import Sequence

import numpy as np
import pytest

from tc_export.config import ModelConfig
from tc_export.engine.interface import Engine
from tc_export.engine.session import DecoderSession
from tc_export.errors import UsageError
from tc_export.model.positions import Clip, Segment, Text

ROWS = 60
STEPS = 5


def prompts(config: ModelConfig, count: int) -> list[tuple[list[Segment], np.ndarray]]:
    """Prompts of different lengths and contents."""
    random = np.random.default_rng(11)
    found = []
    for index in range(count):
        segments: list[Segment] = [
            Text(2 + index),
            Clip(2 + index, config.tokens_per_frame),
            Text(3),
        ]
        length = sum(segment.length for segment in segments)
        found.append((segments, random.standard_normal((length, config.text.hidden_size))))
    return found


def alone(
    engine: Engine, config: ModelConfig, segments: Sequence[Segment], embeds: np.ndarray
) -> list[np.ndarray]:
    """The logits of a prefill and of the steps after it, with nothing in between."""
    session = DecoderSession(engine, config, ROWS)
    return [session.prefill(embeds, segments), *(session.step(embeds[i]) for i in range(STEPS))]


def check_interleaved(engine: Engine, config: ModelConfig) -> None:
    """Turn about, two sessions give what each gives alone."""
    asked = prompts(config, 2)
    expected = [alone(engine, config, *prompt) for prompt in asked]
    sessions = [DecoderSession(engine, config, ROWS) for _ in asked]
    found: list[list[np.ndarray]] = [[], []]
    for index, (segments, embeds) in enumerate(asked):
        found[index].append(sessions[index].prefill(embeds, segments))
    for step in range(STEPS):
        for index in (1, 0) if step % 2 else (0, 1):
            found[index].append(sessions[index].step(asked[index][1][step]))
    np.testing.assert_array_equal(found[0], expected[0])
    np.testing.assert_array_equal(found[1], expected[1])


def check_threads(engine: Engine, config: ModelConfig) -> None:
    """From two threads at once, two sessions give what each gives alone."""
    asked = prompts(config, 2)
    expected = [alone(engine, config, *prompt) for prompt in asked]
    found: list[list[np.ndarray] | None] = [None, None]

    def answer(index: int) -> None:
        found[index] = alone(engine, config, *asked[index])

    threads = [threading.Thread(target=answer, args=(index,)) for index in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for index in range(2):
        assert found[index] is not None
        np.testing.assert_array_equal(found[index], expected[index])


def check_rewind(engine: Engine, config: ModelConfig) -> None:
    """What was said after a mark is forgotten, and another prompt goes on from there."""
    (segments, embeds), (others, other_embeds) = prompts(config, 2)
    expected = DecoderSession(engine, config, ROWS)
    session = DecoderSession(engine, config, ROWS)
    for each in (expected, session):
        each.prefill(embeds, segments)
    mark = session.cursor
    for token in range(STEPS):
        session.step(embeds[token] + 1)
    session.rewind(mark)
    assert session.length == expected.length == mark.position
    np.testing.assert_array_equal(
        session.prefill(other_embeds, others), expected.prefill(other_embeds, others)
    )
    with pytest.raises(UsageError, match="cannot go back"):
        DecoderSession(engine, config, ROWS).rewind(mark)


def check_fork(engine: Engine, config: ModelConfig) -> None:
    """A fork goes on by itself, and leaves what it was forked from as it was."""
    (segments, embeds), _ = prompts(config, 2)
    expected = alone(engine, config, segments, embeds)
    session = DecoderSession(engine, config, ROWS)
    session.prefill(embeds, segments)
    before = {name: buffer.numpy() for name, buffer in session.cache.buffers.items()}
    fork = session.fork()
    astray = [fork.step(embeds[token] * 2) for token in range(STEPS)]
    for name, buffer in session.cache.buffers.items():
        np.testing.assert_array_equal(buffer.numpy(), before[name])
    found = [session.step(embeds[token]) for token in range(STEPS)]
    np.testing.assert_array_equal(found, expected[1:])
    assert not np.array_equal(astray, found)
    again = DecoderSession(engine, config, ROWS)
    again.prefill(embeds, segments)
    np.testing.assert_array_equal([again.fork().step(embeds[0])], [found[0]])


def check_not_stolen(engine: Engine, config: ModelConfig, other: Engine) -> None:
    """No call can write into a session's cache unless it is handed that cache."""
    (segments, embeds), _ = prompts(config, 2)
    expected = alone(engine, config, segments, embeds)
    session = DecoderSession(engine, config, ROWS)
    found = [session.prefill(embeds, segments)]
    with pytest.raises(ValueError, match="belongs to a session"):
        engine.run({})
    name = "past_key_values.0.key"
    foreign = next(iter(engine.new_cache(ROWS).buffers.values()))
    engine.bind(name, foreign)  # by hand, behind the session's back
    found += [session.step(embeds[token]) for token in range(STEPS)]
    np.testing.assert_array_equal(found, expected)
    with pytest.raises(ValueError, match="another engine"):
        other.run({}, session.cache)


CHECKS = (check_interleaved, check_threads, check_rewind, check_fork)
