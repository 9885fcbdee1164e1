# SPDX-License-Identifier: Apache-2.0
"""Memory of weights in few bits: planned as they are kept, and not as floating point."""

from __future__ import annotations

from pathlib import Path

import pytest

from tc_export.config import ModelConfig
from tc_export.plan import build_memory
from tc_export.plan.build_cost import build_cost
from tc_export.plan.planner import make_plan
from tc_export.recipes import load_recipe
from tc_export.targets import Precision, Precisions, load_target
from tests.plan.configs import vicuna

HEAD = 32064 * 4096
MATRICES = 4 * 4096**2 + 3 * 4096 * 11008  # of a layer
NORMS = 2 * 4096  # too few to count in a part


@pytest.fixture
def config(tmp_path: Path) -> ModelConfig:
    return vicuna(tmp_path)


@pytest.mark.parametrize(("recipe", "bits"), [("int4-weights", 4 + 32 / 64), ("mixed", 5.5 + 0.25)])
def test_an_opened_part_by_hand(config: ModelConfig, recipe: str, bits: float) -> None:
    """ONNX Runtime keeps scales in float32: a group of 64 shares 32 bits, half a bit a weight.

    Of mixed formats the budget counts scales of 16 bits; those of the first rule are a quarter of
    a bit more.
    """
    opened = build_memory.opened_part_bytes(config, Precision.FLOAT16, 2, load_recipe(recipe))
    floats = 2 * build_memory.OPENED[Precision.FLOAT16] * HEAD
    few = build_memory.OPENED_FEW_BITS * 2 * MATRICES * bits / 8
    assert opened == pytest.approx(build_memory.BASE_BYTES + floats + few, abs=4)


def test_a_comparison_of_few_bits_is_cut_less(config: ModelConfig) -> None:
    precisions = Precisions.both("float16")
    parts = {
        name: len(
            build_memory.memory_limits(
                config, precisions, 8_000_000_000, recipe=load_recipe(name) if name else None
            ).parts
        )
        for name in ("", "int8-weights", "int4-weights")
    }
    assert parts["int4-weights"] < parts["int8-weights"] < parts[""]


def test_a_format_that_is_widened_counts_as_floating_point(config: ModelConfig) -> None:
    """Of nvfp4 a table is looked up: the product has the graph's own format."""
    whole, few = (
        build_memory.opened_part_bytes(config, Precision.FLOAT16, 4, recipe)
        for recipe in (None, load_recipe("nvfp4"))
    )
    assert few == whole


def test_engines_of_the_processor_have_few_bits_once(config: ModelConfig) -> None:
    cpu = load_target("cpu")
    precisions = Precisions.both("float32")
    recipe = load_recipe("int4-weights")
    whole, few = (
        build_cost(config, cpu, precisions, recipe=x).peak_by_step["engine"] for x in (None, recipe)
    )
    assert whole - few == pytest.approx(32 * MATRICES * (4 - 4.5 / 8), abs=4)
    plan = make_plan(config, cpu, precisions, 4, recipe=recipe)
    # The head is transposed beside itself, and that is never given back.
    rest = 4 * (2 * HEAD + 32 * NORMS + 4096)
    assert plan.bytes_by_part["decoder_weights"] == pytest.approx(
        32 * MATRICES * 4.5 / 8 + rest, abs=4
    )
