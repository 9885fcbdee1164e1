# SPDX-License-Identifier: Apache-2.0
"""The verdict on one tensor: how large an error passes, by the definition in docs/numerics.md."""

from __future__ import annotations

import json
from math import inf, nan

import numpy as np
import pytest

from tc_export.parity.layerwise import GreedyAnswer
from tc_export.parity.tensors.check import AnswerComparison, ParityResult, compare_answers
from tc_export.parity.tensors.report import failures, result_as_json
from tc_export.parity.tensors.tolerance import TensorComparison, compare

TRUTH = np.array([[0.5, -4.0, 0.0], [1.0, 2.0, -1.0]])
EPSILON = {"float32": 2.0**-23, "float16": 2.0**-10, "bfloat16": 2.0**-7}


def judge(engine: np.ndarray, pytorch: np.ndarray, precision: str = "float16") -> TensorComparison:
    return compare(
        "stage", 3, "logits", truth=TRUTH, pytorch=pytorch, engine=engine, precision=precision
    )


def off_by(error: float) -> np.ndarray:
    """The truth, but for one value."""
    values = TRUTH.copy()
    values[1, 1] -= error
    return values


@pytest.mark.parametrize("pytorch_error", [0.0, 0.25])
@pytest.mark.parametrize("precision", EPSILON)
def test_an_error_passes_up_to_twice_pytorchs_and_eight_roundings(
    precision: str, pytorch_error: float
) -> None:
    limit = 2 * pytorch_error + 8 * EPSILON[precision] * 4.0  # the largest true value
    for error, passes in ((0.99 * limit, True), (1.01 * limit, False), (-1.01 * limit, False)):
        found = judge(off_by(error), off_by(pytorch_error), precision)
        assert found.tolerance == pytest.approx(limit, rel=1e-12)
        assert found.passed == passes
        assert (found.share <= 1) == passes
        assert found.worst_index == (1, 1)
        assert found.engine_error == pytest.approx(abs(error))


@pytest.mark.parametrize("value", [nan, inf, -inf])
def test_what_is_not_finite_never_passes(value: float) -> None:
    found = judge(off_by(value), TRUTH)
    assert not found.passed
    assert found.worst_index == (1, 1)


@pytest.mark.parametrize("value", [nan, inf, -inf])
@pytest.mark.parametrize("error", [0.0, 100.0, inf])
def test_nothing_passes_where_pytorch_itself_overflows(value: float, error: float) -> None:
    """Twice an infinite error would pass anything."""
    found = judge(off_by(error), off_by(value))
    assert not found.passed
    assert found.share == inf
    result = result_of([found])
    assert "PyTorch itself leaves the range" in failures(result)[0]
    assert (
        json.loads(json.dumps(result_as_json(result), allow_nan=False))["tensors"][0]["passed"]
        is False
    )


def test_other_shapes_are_not_stretched_to_fit() -> None:
    with pytest.raises(ValueError, match="shapes"):
        judge(TRUTH[:1], TRUTH)
    with pytest.raises(ValueError, match="shapes"):
        judge(TRUTH, TRUTH[:1])


def test_nothing_is_allowed_where_all_is_zero() -> None:
    zeros = np.zeros(3)
    found = [
        compare("s", 0, "x", truth=zeros, pytorch=zeros, engine=x, precision="float16")
        for x in (zeros, np.array([0.0, 1e-30, 0.0]))
    ]
    assert [x.passed for x in found] == [True, False]
    assert [x.share for x in found] == [0, inf]


def result_of(
    tensors: list[TensorComparison], answers: tuple[AnswerComparison, ...] = ()
) -> ParityResult:
    return ParityResult(
        engine="engine", truth="truth", precision="float16", tensors=tuple(tensors), answers=answers
    )


def answer(engine_tokens: tuple[int, ...], margin: float) -> AnswerComparison:
    return AnswerComparison(
        scenario="s",
        true_tokens=(1, 2, 3),
        engine_tokens=engine_tokens,
        margin=margin,
        tolerance=0.5,
    )


def test_one_failure_is_enough() -> None:
    right, wrong = judge(TRUTH, TRUTH), judge(off_by(1), TRUTH)
    assert result_of([right, right]).passed
    assert not result_of([right, wrong, right]).passed
    assert not result_of([right], (answer((1, 2, 4), 1.01),)).passed
    assert not result_of([]).passed


def test_answers_part_at_a_tie_only() -> None:
    assert answer((1, 2, 3), 9.0).passed
    assert answer((1, 2, 4), 1.0).passed  # twice the tolerance of one logit
    assert not answer((1, 2, 4), 1.01).passed
    assert not answer((1, 2, 4), nan).passed
    assert answer((1, 0), 0.0).first_difference == 1


# What the truth thinks of four tokens at each step of an answer: 1, then 0, then 3.
LOGITS = [
    np.array([4.99, 5.0, 0.0, 1.0]),
    np.array([3.0, 1.0, 2.5, -6.0]),
    np.array([0.0, 1.0, 2.0, 4.0]),
]


@pytest.mark.parametrize(
    ("engine_tokens", "margin", "first_difference"),
    [
        ((1, 0, 3), 0.01, None),
        ((0, 0, 3), 0.01, 0),
        ((1, 2, 3), 0.5, 1),
        ((1, 3, 1), 9.0, 1),  # not the second choice, but the last
        ((1, 0, 2), 2.0, 2),  # the tie before, where both chose alike, excuses nothing
    ],
)
def test_the_margin_is_that_of_the_tokens_that_differ(
    engine_tokens: tuple[int, ...], margin: float, first_difference: int | None
) -> None:
    truth = GreedyAnswer(tokens=[1, 0, 3], logits=LOGITS)
    engine_logits = [np.eye(4)[token] for token in engine_tokens]
    found = compare_answers("s", truth, engine_logits, 0.1)
    assert found.margin == pytest.approx(margin)
    assert found.first_difference == first_difference
    said = engine_tokens if first_difference is None else engine_tokens[: first_difference + 1]
    assert found.engine_tokens == said
