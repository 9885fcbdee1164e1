# SPDX-License-Identifier: Apache-2.0
"""Perturbations of the frames, and the comparison of how logits move under them."""

from __future__ import annotations

from functools import reduce
from math import isnan, sqrt
from operator import add

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tc_export.parity.answers.liveness import Movement
from tc_export.parity.answers.perturbations import Perturbation, frame_order, perturb
from tc_export.tasks import Item, Kind, Split, make_item, make_items

Logits = tuple[np.ndarray, np.ndarray]


@given(
    st.sampled_from(list(Kind)),
    st.integers(1, 3),
    st.integers(0, 1000),
    st.sampled_from(Perturbation),
)
def test_a_perturbation_only_moves_frames(
    kind: Kind, grade: int, seed: int, perturbation: Perturbation
) -> None:
    item = make_item(kind, grade, Split.TEST, seed)
    under = perturb(item, perturbation)
    assert (under.question, under.answer, under.kind) == (item.question, item.answer, item.kind)
    assert len(under.clip.frames) == len(item.clip.frames)
    assert set(under.clip.frames) <= set(item.clip.frames)
    if not kind.needs_time:
        assert under == item
    assert frame_order(perturbation, item) == frame_order(perturbation, item)


@pytest.fixture
def item() -> Item:
    return make_item(Kind.DIRECTION, 1, Split.TEST, 3)


def test_orders(item: Item) -> None:
    frames = len(item.clip.frames)
    assert frame_order(Perturbation.REVERSED, item) == list(range(frames - 1, -1, -1))
    assert len(set(frame_order(Perturbation.FROZEN, item))) == 1


def test_shuffled_is_a_permutation_of_its_own_and_never_the_identity() -> None:
    orders = [
        frame_order(Perturbation.SHUFFLED, item)
        for item in make_items(Split.TEST, 40, kinds=[Kind.DIRECTION])
    ]
    in_order = list(range(len(orders[0])))
    assert all(sorted(order) == in_order for order in orders)
    assert in_order not in orders
    assert len(set(map(tuple, orders))) > len(orders) // 2


def random_logits(seed: int, count: int = 4) -> list[np.ndarray]:
    return list(np.random.default_rng(seed).normal(size=(count, 9)).astype(np.float32))


def by_hand(items: list[tuple[Logits, Logits]]) -> dict[str, float]:
    """The definitions in plain loops."""
    sums = dict.fromkeys(("logits", "p", "e", "d", "product"), 0.0)
    for (p0, p1), (e0, e1) in items:
        changes_p = [float(b) - float(a) for a, b in zip(p0, p1, strict=True)]
        changes_e = [float(b) - float(a) for a, b in zip(e0, e1, strict=True)]
        mean_p, mean_e = sum(changes_p) / len(p0), sum(changes_e) / len(p0)
        mean = sum(map(float, p0)) / len(p0)
        for logit, one, other in zip(p0, changes_p, changes_e, strict=True):
            p, e = one - mean_p, other - mean_e
            sums["logits"] += (float(logit) - mean) ** 2
            sums["p"] += p * p
            sums["e"] += e * e
            sums["d"] += (e - p) ** 2
            sums["product"] += p * e
    return {
        "pytorch_share": sqrt(sums["p"] / sums["logits"]),
        "engine_share": sqrt(sums["e"] / sums["logits"]),
        "relative_difference": sqrt(sums["d"] / sums["p"]),
        "correlation": sums["product"] / sqrt(sums["p"]) / sqrt(sums["e"]),
    }


@given(st.lists(st.integers(0, 2**32), min_size=1, max_size=4))
def test_movement_equals_its_definition(seeds: list[int]) -> None:
    items = []
    for seed in seeds:
        a, b, c, d = random_logits(seed)
        items.append(((a, b), (c, d)))
    total = reduce(add, (Movement.of(pytorch=p, engine=e) for p, e in items))
    for name, expected in by_hand(items).items():
        assert getattr(total, name) == pytest.approx(expected, rel=1e-9), name


def test_a_constant_on_all_logits_is_no_difference() -> None:
    before, after, *_ = random_logits(0)
    shifted = (before.astype(np.float64) + 5, after.astype(np.float64) - 3)
    movement = Movement.of(pytorch=(before, after), engine=shifted)
    assert movement.relative_difference < 1e-12


@pytest.mark.parametrize("factor", [0.0, 0.5, -1.0, 1.5])
def test_an_engine_that_moves_less_or_more_or_elsewhere_fails(factor: float) -> None:
    before, after, *_ = random_logits(1)
    moved = before + factor * (after.astype(np.float64) - before)
    movement = Movement.of(pytorch=(before, after), engine=(before, moved))
    assert movement.relative_difference == pytest.approx(abs(1 - factor))
    assert movement.passes(abs(1 - factor) + 0.01)
    assert not movement.passes(abs(1 - factor) - 0.01)
    if factor:
        assert movement.correlation == pytest.approx(np.sign(factor))
    else:
        assert isnan(movement.correlation)


def test_nothing_is_said_where_pytorch_does_not_move() -> None:
    before, after, *_ = random_logits(2)
    still = Movement.of(pytorch=(before, before), engine=(before, before))
    assert not still.passes(1.0)
    barely = before + 1e-5 * (after - before)
    assert not Movement.of(pytorch=(before, barely), engine=(before, barely)).passes(1.0)


def test_nan_never_passes() -> None:
    before, after, *_ = random_logits(3)
    broken = after.copy()
    broken[0] = np.nan
    assert not Movement.of(pytorch=(before, after), engine=(before, broken)).passes(1e9)
