# SPDX-License-Identifier: Apache-2.0
"""Recipes of quantisation as data: what they say, and which devices can run what comes of them."""

from tc_export.recipes.possible import (
    check_target,
    choose_recipe,
    is_ours,
    reason_against,
    recipe_of,
    settings_with_recipe,
)
from tc_export.recipes.recipe import (
    GROUP_SIZES,
    QUANT_METHOD,
    Recipe,
    WeightRule,
    list_recipes,
    load_recipe,
)

__all__ = [
    "GROUP_SIZES",
    "QUANT_METHOD",
    "Recipe",
    "WeightRule",
    "check_target",
    "choose_recipe",
    "is_ours",
    "list_recipes",
    "load_recipe",
    "reason_against",
    "recipe_of",
    "settings_with_recipe",
]
