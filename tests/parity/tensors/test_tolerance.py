# SPDX-License-Identifier: Apache-2.0
"""The verdict, on noise that was made up: what fails, where, and how often wrongly."""

from __future__ import annotations

import json
from math import inf, nan

import numpy as np
import pytest

from tc_export.dtypes import DType
from tc_export.parity.sequences import GreedyAnswer
from tc_export.parity.tensors import tolerance
from tc_export.parity.tensors.report import failures, result_as_json
from tc_export.parity.tensors.result import AnswerComparison, ParityResult, compare_answers
from tc_export.parity.tensors.tolerance import (
    ABSOLUTE_UNITS,
    FALSE_ALARMS,
    ILL_SHARE,
    NOISIER,
    absolute_tolerance,
    factor_of,
    measure_noise,
    token_errors,
)
from tc_export.parity.tensors.verdict import Measured, NoiseVerdict, TensorComparison, judge

VALUES, DRAWS = 40, 6
SHAPES = [(70, VALUES), (90, VALUES), *[(1, VALUES)] * 8]
TOKENS = sum(tokens for tokens, _ in SHAPES)
FLOAT32 = DType.FLOAT32


class Made:
    """A tensor whose noise lies in some directions, and differs between tokens by a hundred."""

    def __init__(self, seed: int, directions: int = VALUES) -> None:
        self.random = np.random.default_rng(seed)
        self.truth = self.random.standard_normal((TOKENS, VALUES))
        self.scale = 1e-4 * 10 ** self.random.uniform(-1, 1, (TOKENS, 1))
        self.lines = self.random.standard_normal((TOKENS, directions, VALUES)) / directions**0.5
        self.draws = [self.truth + self.noise() for _ in range(DRAWS)]

    def noise(self) -> np.ndarray:
        """Errors of another draw."""
        strength = self.random.standard_normal((TOKENS, self.lines.shape[1]))
        noise: np.ndarray = self.scale * np.einsum("td,tdv->tv", strength, self.lines)
        return noise

    def measured(self, engine: np.ndarray, stage: str = "stage") -> Measured:
        errors = token_errors(engine, self.truth)
        each = np.arange(TOKENS)
        return Measured(
            stage=stage,
            tensor="logits",
            shapes=SHAPES,
            rows=100 + each,
            noise=measure_noise(
                [self.truth], [token_errors(x, self.truth) for x in self.draws], FLOAT32
            ),
            engine=errors,
            values=engine[each, errors.place],
            true_values=self.truth[each, errors.place],
        )


def verdict(
    made: Made, engine: np.ndarray, rate: float = FALSE_ALARMS
) -> tuple[list[TensorComparison], NoiseVerdict]:
    tensors, (noise,) = judge([made.measured(engine)], rate)
    return tensors, noise


def passes(made: Made, engine: np.ndarray, rate: float = FALSE_ALARMS) -> bool:
    tensors, noise = verdict(made, engine, rate)
    return all(x.passed for x in tensors) and noise.passed


@pytest.mark.parametrize("directions", [1, 3, 40])
@pytest.mark.parametrize("times", [1.0, NOISIER])
def test_no_false_alarm(directions: int, times: float) -> None:
    for seed in range(40):
        made = Made(seed, directions)
        assert passes(made, made.truth + times * made.noise()), seed


@pytest.mark.parametrize("directions", [1, 3, 40])
def test_false_alarms_are_as_rare_as_is_said(
    directions: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At a rate that can be counted, and without the allowance for a noisier engine."""
    monkeypatch.setattr(tolerance, "NOISIER", 1.0)
    alarms, runs = 0, 150
    for seed in range(runs):
        made = Made(seed, directions)
        alarms += not passes(made, made.truth + made.noise(), rate=0.1)
    assert alarms < 0.18 * runs


@pytest.mark.parametrize("directions", [3, 40])
def test_one_wrong_number_is_found(directions: int) -> None:
    made = Made(1, directions)
    factor = verdict(made, made.truth)[0][0].factor
    for token, value in ((3, 7), (75, 0), (TOKENS - 1, VALUES - 1)):
        errors = np.stack([np.abs(x - made.truth).max(axis=1) for x in made.draws])
        scale = np.sqrt(np.square(errors).mean(axis=0))[token]
        for times, passed in ((0.97, True), (1.03, False), (-1.03, False)):
            engine = made.truth.copy()
            engine[token, value] += times * factor * scale
            tensors, noise = verdict(made, engine)
            assert noise.passed
            wrong = [x for x in tensors if not x.passed]
            assert (not wrong) == passed
            for x in wrong:
                assert x.step == (0 if token < 70 else 1 if token < 160 else token - 158)
                assert x.row == 100 + token
                assert x.worst_index[-1] == value
                assert x.worst_index[0] == token - (0, 70)[x.step] if x.step < 2 else True
                assert x.engine_error == pytest.approx(1.03 * factor * scale)
                assert x.tolerance == pytest.approx(factor * scale, rel=1e-3)
                assert x.share == pytest.approx(1.03, rel=1e-3)
                assert x.engine_value == engine[token, value]
                assert x.true_value == made.truth[token, value]


def test_a_call_whose_tokens_all_err_a_little_more_is_found() -> None:
    """No token is outside, and the call's median is."""
    made = Made(2, directions=2)
    engine = made.truth + made.noise()
    engine[70:160] = made.truth[70:160] + 5 * made.scale[70:160]
    tensors, noise = verdict(made, engine)
    assert all(x.passed for x in tensors)
    assert not noise.passed
    assert noise.median_step == 1
    assert noise.median_factor < noise.factor / 2
    assert "stage, step 1: the median token's error" in failures(result_of(tensors, (), [noise]))[0]


def test_tokens_of_another_order_are_named_and_not_judged() -> None:
    made = Made(3)
    made.scale[[5, 100]] = 1.0
    for k in range(DRAWS):
        made.draws[k][[5, 100]] = (made.truth + made.noise())[[5, 100]]
    engine = made.truth + made.noise()
    engine[5] += 1e4
    tensors, noise = verdict(made, engine)
    assert all(x.passed for x in tensors)
    assert noise.passed
    assert [x.row for x in noise.ill_conditioned] == [105, 200]
    assert noise.ill_conditioned_share == pytest.approx(2 / TOKENS)
    assert all(x.times_median > 1000 for x in noise.ill_conditioned)
    for value in (nan, inf):
        engine[5, 0] = value
        assert not passes(made, engine), "what is not finite is not excused"


def test_tokens_whose_draws_part_are_ill_conditioned() -> None:
    made = Made(4)
    for k in range(DRAWS - 1):
        made.draws[k][50] = made.truth[50] + 1e-3 * (made.draws[k][50] - made.truth[50])
    _, noise = verdict(made, made.truth)
    assert [x.row for x in noise.ill_conditioned] == [150]
    assert noise.ill_conditioned[0].spread > 100


def test_where_too_many_are_ill_conditioned_nothing_passes() -> None:
    made = Made(5)
    many = int(ILL_SHARE * TOKENS) + 1
    for k in range(DRAWS):
        made.draws[k][:many] = made.truth[:many] + made.random.standard_normal((many, VALUES))
    tensors, noise = verdict(made, made.truth)
    assert not noise.passed
    assert "nothing to judge by" in failures(result_of(tensors, (), [noise]))[0]


@pytest.mark.parametrize("value", [nan, inf, -inf])
def test_what_is_not_finite_never_passes(value: float) -> None:
    made = Made(6)
    engine = made.truth.copy()
    engine[80, 3] = value
    tensors, _ = verdict(made, engine)
    assert [x.step for x in tensors if not x.passed] == [1]
    assert tensors[1].worst_index == (10, 3)


@pytest.mark.parametrize("value", [nan, inf, -inf])
def test_nothing_passes_where_pytorch_itself_overflows(value: float) -> None:
    """A multiple of an infinite error would pass anything."""
    made = Made(7)
    made.draws[2][80, 3] = value
    tensors, noise = verdict(made, made.truth)
    wrong = [x for x in tensors if not x.passed]
    assert [(x.step, x.share) for x in wrong] == [(1, inf)]
    result = result_of(tensors, (), [noise])
    assert "PyTorch itself leaves the range" in failures(result)[0]
    written = json.loads(json.dumps(result_as_json(result), allow_nan=False))
    assert written["tensors"][1]["passed"] is False


def test_the_report_has_what_was_judged_by() -> None:
    made = Made(8)
    made.scale[5] = 1.0
    for k in range(DRAWS):
        made.draws[k][5] = (made.truth + made.noise())[5]
    tensors, noise = verdict(made, made.truth + made.noise())
    written = json.loads(json.dumps(result_as_json(result_of(tensors, (), [noise]))))
    assert written["false_alarm_rate"] == pytest.approx(FALSE_ALARMS)
    assert written["ill_conditioned_share"] == pytest.approx(1 / TOKENS)
    (stage,) = written["noise"]
    assert stage["ill_conditioned"][0]["row"] == 105
    assert {"factor", "ratio", "median_factor", "median_ratio", "draws", "tokens"} <= set(stage)
    assert {"ratio", "factor", "row", "share", "tolerance"} <= set(written["tensors"][0])


def test_the_fewer_the_directions_the_wider_the_band() -> None:
    factors = [verdict(Made(9, n), Made(9, n).truth)[1].factor for n in (1, 3, 40)]
    assert factors[0] > 2 * factors[1] > 2 * factors[2]
    assert factors[2] >= NOISIER
    assert factor_of(4, 2, 1e-6) > factor_of(4, 6, 1e-6) > factor_of(16, 6, 1e-6) > NOISIER


def test_scenarios_of_a_graph_are_judged_together() -> None:
    """A small scenario has the median token of all, and the share of all."""
    one, other = Made(10), Made(11)
    other.scale *= 1000
    other.draws = [other.truth + other.noise() for _ in range(DRAWS)]
    pair = [one.measured(one.truth, "one"), other.measured(other.truth, "other")]
    _, noise = judge(pair, FALSE_ALARMS)
    assert noise[0].factor == noise[1].factor
    assert noise[0].ill_conditioned_share == noise[1].ill_conditioned_share
    assert sum(x.false_alarm_rate for x in noise) == pytest.approx(FALSE_ALARMS)


def test_other_shapes_are_not_stretched_to_fit() -> None:
    with pytest.raises(ValueError, match="shapes"):
        token_errors(np.zeros((1, 3)), np.zeros((2, 3)))


def test_nothing_is_allowed_where_all_is_zero() -> None:
    made = Made(12)
    made.truth[:] = 0
    made.draws = [made.truth] * DRAWS
    assert passes(made, made.truth)
    engine = made.truth.copy()
    engine[2, 3] = 1e-30
    tensors, _ = verdict(made, engine)
    assert [x.passed for x in tensors][:2] == [False, True]


def test_an_absolute_tolerance_holds_at_every_token() -> None:
    made = Made(13)
    errors = [token_errors(x, made.truth) for x in made.draws]
    found = absolute_tolerance(made.truth, errors, FLOAT32)
    assert max(x.largest.max() for x in errors) < found < 20 * max(x.largest.max() for x in errors)
    exact = [token_errors(made.truth, made.truth)] * DRAWS
    floor = ABSOLUTE_UNITS * 2.0**-23 * np.abs(made.truth).max()
    assert absolute_tolerance(made.truth, exact, FLOAT32) == pytest.approx(floor)
    overflowed = token_errors(np.full_like(made.truth, inf), made.truth)
    assert absolute_tolerance(made.truth, [*exact, overflowed], FLOAT32) == inf


def result_of(
    tensors: list[TensorComparison],
    answers: tuple[AnswerComparison, ...] = (),
    noise: list[NoiseVerdict] | None = None,
) -> ParityResult:
    return ParityResult(
        engine="engine",
        truth="truth",
        precision="float16",
        tensors=tuple(tensors),
        answers=answers,
        noise=tuple(noise or ()),
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
    made = Made(14)
    right, wrong = (verdict(made, made.truth + error)[0][0] for error in (0, 1))
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
