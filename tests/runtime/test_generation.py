# SPDX-License-Identifier: Apache-2.0
"""Choosing tokens, against probabilities computed by hand."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from tc_export.errors import UsageError
from tc_export.runtime.generation import GenerationConfig, choose, generate

LOGITS = np.log(np.array([0.1, 0.5, 0.05, 0.3, 0.05]))


def draws(count: int = 4000, **options: float) -> Counter[int]:
    config = GenerationConfig.read({"temperature": 1.0, **options}, where="test")
    random = np.random.default_rng(0)
    return Counter(choose(LOGITS, config, random) for _ in range(count))


def test_greedy_takes_the_first_of_the_largest() -> None:
    random = np.random.default_rng(0)
    assert choose(np.array([1.0, 3.0, 3.0]), GenerationConfig(), random) == 1


def test_temperature_one_gives_the_softmax() -> None:
    found = draws()
    for token, probability in enumerate(np.exp(LOGITS)):
        assert abs(found[token] / 4000 - probability) < 0.03


def test_low_temperature_sharpens() -> None:
    assert draws(temperature=0.1)[1] > 3950


def test_top_k_keeps_k() -> None:
    found = draws(top_k=2)
    assert found.keys() == {1, 3}
    assert abs(found[1] / 4000 - 0.5 / 0.8) < 0.03


@pytest.mark.parametrize(
    ("top_p", "kept"), [(0.4, {1}), (0.5, {1}), (0.75, {1, 3}), (0.85, {0, 1, 3})]
)
def test_top_p_keeps_the_smallest_set_that_reaches_it(top_p: float, kept: set[int]) -> None:
    assert draws(1000, top_p=top_p).keys() <= kept
    assert len(draws(1000, top_p=top_p)) == len(kept)


def test_the_same_seed_gives_the_same_draws() -> None:
    assert draws(50) == draws(50)


@given(
    arrays(np.float32, st.integers(1, 20), elements=st.floats(-50, 50, width=32)),
    st.floats(0.01, 5),
    st.integers(0, 25),
    st.floats(0.01, 1),
)
def test_any_setting_chooses_a_token_that_it_keeps(
    logits: np.ndarray, temperature: float, top_k: int, top_p: float
) -> None:
    config = GenerationConfig(temperature=temperature, top_k=top_k, top_p=top_p)
    token = choose(logits, config, np.random.default_rng(0))
    better = int((logits > logits[token]).sum())
    assert better < (top_k or len(logits))


@pytest.mark.parametrize(
    "wrong", [{"top_p": 0}, {"temperature": -1}, {"max_new_tokens": 0}, {"top_q": 1}]
)
def test_wrong_settings_are_refused(wrong: dict[str, Any]) -> None:
    """By whichever way they come, with the key that is wrong."""
    (name,) = wrong
    for make in (
        lambda: GenerationConfig(**wrong),
        lambda: GenerationConfig.model_validate(wrong),
        lambda: GenerationConfig.read(wrong, where="test"),
    ):
        with pytest.raises(UsageError, match=f"not a valid GenerationConfig:\n  {name}: ") as found:
            make()
        assert "max_new_tokens, temperature" in str(found.value.hint)


def test_all_that_is_wrong_is_named_at_once() -> None:
    with pytest.raises(UsageError, match=r"temperature: .*\n  seed: "):
        GenerationConfig(temperature=-1, seed=-1)


class FakeBatch:
    """Gives the logits of a script for each sequence, one row a step."""

    def __init__(self, scripts: tuple[list[int], ...]) -> None:
        self.scripts = scripts
        self.embedded: list[list[list[int]]] = []  # by step, then by sequence

    def logits(self, step: int) -> np.ndarray:
        return np.stack([np.eye(9)[[*script, 0, 0, 0, 0][step]] for script in self.scripts])

    def append(self, embeds: list[np.ndarray]) -> np.ndarray:
        self.embedded.append([each.tolist() for each in embeds])
        return self.logits(len(self.embedded))


def tokens(
    *scripts: list[int], **options: int
) -> tuple[list[list[int | None]], list[list[list[int]]]]:
    """What is yielded, and what is embedded, step by step."""
    batch = FakeBatch(scripts)
    config = GenerationConfig.model_validate(options)
    found = generate(batch, batch.logits(0), np.array, {2, 7}, config)  # type: ignore[arg-type]
    return list(found), batch.embedded


def test_ends_at_any_end_token_and_does_not_yield_it() -> None:
    assert tokens([4, 5, 7, 4]) == ([[4], [5]], [[[4]], [[5]]])
    assert tokens([2, 4]) == ([], [])


def test_ends_at_the_most_tokens_without_a_step_too_many() -> None:
    assert tokens([4, 5, 6, 1], max_new_tokens=3) == ([[4], [5], [6]], [[[4]], [[5]]])


def test_a_sequence_that_has_ended_is_fed_nothing_more() -> None:
    found, embedded = tokens([4, 7, 5, 5], [1, 3, 4, 2], [2, 1, 1, 1])
    assert found == [[4, 1, None], [None, 3, None], [None, 4, None]]
    assert embedded == [[[4], [1], []], [[], [3], []], [[], [4], []]]


def test_each_sequence_draws_by_itself() -> None:
    """Beside others it says what it says alone."""
    config = GenerationConfig(max_new_tokens=6, temperature=2.0, seed=3)

    def drawn(*scripts: list[int]) -> list[list[int | None]]:
        batch = FakeBatch(scripts)
        return list(generate(batch, batch.logits(0), np.array, {2}, config))  # type: ignore[arg-type]

    one, other = [4, 5, 6, 1], [1, 3, 3, 8]
    together = drawn(one, other)
    for index, alone in enumerate((drawn(one), drawn(other))):
        said = [step[index] for step in together if step[index] is not None]
        assert said == [step[0] for step in alone]
