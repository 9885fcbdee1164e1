# SPDX-License-Identifier: Apache-2.0
"""Whether a target's engines can take quantised weights, before anything is quantised."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeGuard

from packaging.version import Version

from tc_export.config import CacheConfig, ModelSettings
from tc_export.errors import UsageError
from tc_export.recipes.recipe import QUANT_METHOD, Recipe, list_recipes, load_recipe
from tc_export.targets import SCALES_FOR_BLOCKS, Precision, Release, Target, choose_release

WIDENED_BY_RTX = (
    "TensorRT-RTX widens {} weights with scales for groups in a kernel of its own, and reads "
    "them in full then (seen in engines that 1.7 built)"
)

NOT_ON_PROCESSORS = {Precision.FP8, Precision.NVFP4}


def is_ours(quantization: object) -> TypeGuard[Mapping[str, Any]]:
    """True where a `quantization_config` is of the form that recipes lead to."""
    return isinstance(quantization, Mapping) and quantization.get("quant_method") == QUANT_METHOD


def choose_recipe(
    asked: str | None, stored: Recipe | None, target: Target, release: str | None
) -> Recipe | None:
    """What weights are quantised by: what is asked for, or what they are by now; None for nothing.

    Raises:
        UsageError: there is no such recipe or release, the target's engines cannot run it, or the
            checkpoint is quantised already.
        InputError: the recipe's file cannot be read.
    """
    if asked and stored:
        raise UsageError(
            f"the checkpoint is quantised already ({stored.name}), and is not quantised again",
            hint="leave --quantize out, or give the checkpoint before it was quantised",
        )
    recipe = load_recipe(asked) if asked else stored
    if recipe is not None:
        check_target(recipe, target, choose_release(target, release))
    return recipe


def recipe_of(document: Mapping[str, Any]) -> Recipe | None:
    """The recipe that a checkpoint's config.json says it was quantised by."""
    quantization = document.get("quantization_config")
    if not is_ours(quantization):
        return None
    stated = quantization.get("recipe")
    values = stated if isinstance(stated, Mapping) else {}
    return Recipe.read(values, where="quantization_config.recipe of config.json")


def settings_with_recipe(asked: ModelSettings, quantize: str | None) -> ModelSettings:
    """What is asked for of the model, with the cache that the recipe asks for.

    Raises:
        UsageError: there is no such recipe, or another cache is asked for beside it.
        InputError: the recipe's file cannot be read.
    """
    recipe = None if quantize is None else load_recipe(quantize)
    if recipe is None or "kv" not in recipe.model_fields_set:
        return asked
    if "kv" in asked.cache.model_fields_set and asked.cache.kv is not recipe.kv:
        raise UsageError(
            f"the cache is asked for in {asked.cache.kv}, and the recipe {recipe.name!r} has "
            f'kv = "{recipe.kv}"',
            hint="leave --kv out, or change a copy of the recipe",
        )
    return asked.model_copy(update={"cache": CacheConfig(kv=recipe.kv)})


def check_target(recipe: Recipe, target: Target, release: Release | None) -> None:
    """See that the target's engines multiply by weights as the recipe stores them.

    Raises:
        UsageError: they do not; names the recipes that they do.
    """
    reason = reason_against(recipe, target, release)
    if reason is None:
        return
    others = [x.name for x in list_recipes() if reason_against(x, target, release) is None]
    before = "" if recipe.method else "give the checkpoint before it was quantised; "
    raise UsageError(
        f"{target.name} cannot run the recipe {recipe.name!r}: {reason}",
        hint=f"{before}recipes for {target.name}: {', '.join(others)}" if others else None,
    )


def reason_against(recipe: Recipe, target: Target, release: Release | None) -> str | None:
    """Why a target's engines cannot multiply by a recipe's weights; None where they can."""
    if target.toolchain.engine == "onnxruntime":
        found = ", ".join(sorted(recipe.formats & NOT_ON_PROCESSORS))
        return f"ONNX Runtime's processor kernels have no products in {found}" if found else None
    lacking = recipe.formats - {*target.precisions}
    if lacking:
        found = ", ".join(x for x in target.precisions if not Precision(x).is_float) or "none"
        return f"it has no {', '.join(sorted(lacking))} (formats of few bits: {found})"
    in_groups = [rule for rule in recipe.weights if rule.group_size]
    if target.toolchain.engine == "tensorrt-rtx":
        widened = sorted({x.format for x in in_groups} & {Precision.INT8, Precision.NVFP4})
        return WIDENED_BY_RTX.format(" and ".join(widened)) if widened else None
    if release is None or not in_groups or Version(release.tensorrt).release >= SCALES_FOR_BLOCKS:
        return None
    first = ".".join(map(str, SCALES_FOR_BLOCKS))
    return (
        f"a scale for each group of channels is read by TensorRT {first} and later, and "
        f"{release.name} has {release.tensorrt}"
    )
