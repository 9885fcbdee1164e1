# SPDX-License-Identifier: Apache-2.0
"""Recipes are read strictly, and a pattern that fits nothing is no recipe for this model."""

from __future__ import annotations

from pathlib import Path

import pytest

from tc_export.config import CacheConfig, KvFormat, ModelSettings
from tc_export.errors import InputError, UsageError
from tc_export.recipes import (
    Recipe,
    check_target,
    list_recipes,
    load_recipe,
    settings_with_recipe,
)
from tc_export.targets import choose_release, load_target

NAMES = ["decoder.layers.0.mlp.up_proj.weight", "decoder.layers.1.mlp.up_proj.weight"]


def recipe(**changes: object) -> Recipe:
    values = {
        "name": "mine",
        "description": "",
        "weights": [{"names": ["decoder.layers.*"], "format": "int4", "group_size": 32}],
    }
    return Recipe.read(values | changes, where="a test")


def rule(text: str) -> str:
    return f"description = ''\n[[weights]]\nnames = ['*']\n{text}"


def test_shipped_recipes_are_found_by_name() -> None:
    names = [x.name for x in list_recipes()]
    assert {"int4-weights", "int8-weights"} <= {*names}
    for name in names:
        assert load_recipe(name).name == name
        assert load_recipe(name).description


def test_what_is_kept_has_no_rule() -> None:
    found = recipe(keep=["*.0.*"])
    assert found.rule(NAMES[0]) is None
    assert found.rule(NAMES[1]) is found.weights[0]
    assert found.rule("vision.x.weight") is None


def test_a_pattern_that_fits_nothing_names_the_nearest() -> None:
    recipe().check_patterns(NAMES)
    with pytest.raises(UsageError, match="fits no weight") as raised:
        recipe(keep=["decoder.layer.0.mlp.up_proj.weight"]).check_patterns(NAMES)
    assert raised.value.hint == f"the nearest is {NAMES[0]}"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("weights = [", "is not TOML"),
        ("description = ''\nweights = []", "weights"),
        ("description = ''\nbits = 4", "bits"),
        (
            "description = ''\n[[weights]]\nnames = ['*']\nformat = 'int3'\ngroup_size = 64",
            "format",
        ),
        ("description = ''\n[[weights]]\nnames = ['*']\nformat = 'int4'\ngroup_size = 48", "48|16"),
        (rule("format = 'int4'"), "group_size is missing"),
        (rule("format = 'int8'"), "group_size is missing"),
        (rule("format = 'fp8'\ngroup_size = 32"), "say inputs"),
        (rule("format = 'int8'\ninputs = 'fp8'"), "weights in the same"),
        (rule("format = 'int4'\ninputs = 'int8'\ngroup_size = 32"), "weights in the same"),
        (rule("format = 'int8'\ninputs = 'int8'\ngroup_size = 32"), "one scale alone"),
        ("method = 'smooth'\n" + rule("format = 'int8'\ngroup_size = 32"), "smooth is for"),
        ("budget = -1\n" + rule("format = 'int8'\ngroup_size = 32"), "budget"),
    ],
)
def test_a_wrong_file_is_refused(tmp_path: Path, text: str, expected: str) -> None:
    path = tmp_path / "wrong.toml"
    path.write_text(text)
    with pytest.raises(UsageError, match=expected):
        load_recipe(str(path))


def test_no_file_and_no_name(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be read"):
        load_recipe(str(tmp_path / "none.toml"))
    with pytest.raises(UsageError, match="'int4-weight' is unknown") as raised:
        load_recipe("int4-weight")
    assert "did you mean int4-weights?" in str(raised.value.hint)


def check(name: str, recipe: str, release: str | None = None) -> None:
    target = load_target(name)
    check_target(load_recipe(recipe), target, choose_release(target, release))


@pytest.mark.parametrize("target", ["cpu", "rtx4090", "orin", "thor", "h100"])
def test_four_bit_weights_run_there(target: str) -> None:
    check(target, "int4-weights")


def test_an_older_tensorrt_is_refused_with_the_reason() -> None:
    with pytest.raises(UsageError, match=r"read by TensorRT 10\.14 and later"):
        check("orin", "int4-weights", "10.3")


def test_eight_bits_are_refused_where_they_are_widened() -> None:
    with pytest.raises(UsageError, match="widens int8 weights") as raised:
        check("rtx4090", "int8-weights")
    assert "int4-weights" in str(raised.value.hint)
    assert "int8-weights" not in str(raised.value.hint)
    check("cpu", "int8-weights")


def test_products_in_eight_bits_need_the_hardware() -> None:
    check("orin", "int8-smooth")
    check("orin", "int8-smooth", "10.3")  # one scale for a channel: no blocks
    check("rtx4090", "int8-smooth")
    check("rtx4090", "fp8")
    with pytest.raises(UsageError, match="no fp8"):
        check("orin", "fp8")
    check("thor", "nvfp4")
    with pytest.raises(UsageError, match="widens nvfp4 weights"):
        check("rtx5090", "nvfp4")
    with pytest.raises(UsageError, match="processor kernels have no products in fp8"):
        check("cpu", "fp8")


def test_a_target_without_the_format_names_what_it_has() -> None:
    target = load_target("orin").model_copy(update={"precisions": ("float16", "int8")})
    with pytest.raises(UsageError, match=r"no int4 .formats of few bits: int8") as raised:
        check_target(load_recipe("int4-weights"), target, choose_release(target, None))
    assert "int8-weights" in str(raised.value.hint)


def test_a_recipe_asks_for_a_cache(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    rule = "[[weights]]\nnames = ['*']\nformat = 'int8'\ngroup_size = 32\n"
    path.write_text(f"description = ''\nkv = 'int8'\n{rule}")
    plain, asked = ModelSettings(), ModelSettings(cache=CacheConfig(kv=KvFormat.INT8))
    assert load_recipe(str(path)).kv is KvFormat.INT8
    assert settings_with_recipe(plain, str(path)) == asked
    assert settings_with_recipe(asked, str(path)) == asked
    assert settings_with_recipe(asked, "int4-weights") == asked  # which says nothing of it
    assert settings_with_recipe(plain, None) == plain
    other = ModelSettings(cache=CacheConfig(kv=KvFormat.OWN))
    with pytest.raises(UsageError, match=r"asked for in 16, and the recipe 'mine' has kv = .int8."):
        settings_with_recipe(other, str(path))
    path.write_text(f"description = ''\nkv = 'int7'\n{rule}")
    with pytest.raises(UsageError, match="kv: Input should be"):
        settings_with_recipe(plain, str(path))
