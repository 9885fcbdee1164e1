# SPDX-License-Identifier: Apache-2.0
"""A budget of bits is spent where rounding loses most, and is never exceeded."""

from __future__ import annotations

import math
from itertools import product
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tc_export.checkpoint.quantized import QuantizedWeight
from tc_export.checkpoint.reader import open_checkpoint
from tc_export.dtypes import DType
from tc_export.errors import UsageError
from tc_export.plan.parameters import few_bits
from tc_export.quantize.checkpoint import quantize_checkpoint
from tc_export.quantize.mixed import Option, choose
from tc_export.recipes import Recipe
from tests.repository import DEMO_CHECKPOINT

NUMBERS = 1000


def recipe(budget: float) -> Recipe:
    rules = [
        {"names": ["decoder.layers.*_proj.weight"], "format": "int4", "group_size": 32},
        {"names": ["decoder.layers.*_proj.weight"], "format": "int8", "group_size": 32},
    ]
    values = {"name": "mine", "description": "", "weights": rules, "budget": budget, "clips": 2}
    return Recipe.read(values | {"passages": 1}, where="a test")


def options(errors: list[tuple[float, float]], rules: Recipe) -> dict[str, list[Option]]:
    """Each weight has as many numbers, and errs so much in four and in eight bits."""
    return {
        f"w{index}": [
            Option(rule, bits * NUMBERS, error)
            for rule, bits, error in zip(rules.weights, (4.5, 8.5), of, strict=True)
        ]
        for index, of in enumerate(errors)
    }


def chosen(found: Recipe, name: str) -> str:
    (rule,) = (rule for rule in found.weights if name in rule.names)
    return rule.format


Errors = st.lists(
    st.tuples(st.floats(0, 1), st.floats(0, 1)).map(lambda x: (max(x), min(x))),
    min_size=1,
    max_size=6,
)


@given(errors=Errors, budget=st.floats(4.5, 9))
def test_the_budget_is_kept_and_spent_best(
    errors: list[tuple[float, float]], budget: float
) -> None:
    """With weights of one size the best choice is known: of all, none with its bits errs less."""
    asked = recipe(budget)
    of = options(errors, asked)
    found = choose(of, asked, NUMBERS * len(errors))
    assert found.budget is None
    formats = [chosen(found, f"w{index}") for index in range(len(errors))]

    def cost(formats: tuple[str, ...] | list[str]) -> tuple[float, float]:
        taken = [of[f"w{i}"][("int4", "int8").index(x)] for i, x in enumerate(formats)]
        return sum(x.bits for x in taken), sum(x.error for x in taken)

    bits, error = cost(formats)
    assert bits <= budget * NUMBERS * len(errors) * (1 + 1e-9)
    every = (cost(x) for x in product(("int4", "int8"), repeat=len(errors)))
    least = min(e for b, e in every if b <= budget * NUMBERS * len(errors))
    assert error == pytest.approx(least, abs=1e-9)


def test_a_budget_below_the_fewest_bits_is_refused() -> None:
    asked = recipe(4.4)
    with pytest.raises(UsageError, match=r"the fewest that its rules take are 4\.500"):
        choose(options([(1, 0)], asked), asked, NUMBERS)


def test_a_checkpoint_has_the_bits_that_its_plan_says(tmp_path: Path) -> None:
    source = open_checkpoint(DEMO_CHECKPOINT)
    asked = recipe(6.0)
    made = quantize_checkpoint(source, asked, tmp_path / "new")
    found = open_checkpoint(made.folder)
    quantized = [x for x in found.tensors.values() if isinstance(x, QuantizedWeight)]
    assert {x.dtype for x in quantized} == {DType.INT4, DType.INT8}
    stored = sum(x.values.nbytes + 2 * math.prod(x.scales.shape) for x in quantized)
    planned = few_bits(source.config.model, "decoder", asked).nbytes
    assert 0.85 * planned < stored <= planned
    # A second run finds it, and needs no calibration for that.
    assert quantize_checkpoint(source, asked, tmp_path / "new") == made
