# SPDX-License-Identifier: Apache-2.0
"""Recipes as data: which weights are stored in which format, and what stays as it is.

A recipe is a TOML file: one of those that are shipped, or the user's own, given by its path.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Literal, get_args

from pydantic import Field

from tc_export.config import Config
from tc_export.dtypes import DType
from tc_export.errors import UsageError
from tc_export.shipped_files import ShippedFiles

QUANT_METHOD = "tc-export"
"""What `quantization_config` in config.json calls the form that recipes lead to."""

SHIPPED = ShippedFiles("recipe", "recipes", "A file of your own is given by its path")

GroupSize = Literal[16, 32, 64, 128, 256]
GROUP_SIZES: tuple[int, ...] = get_args(GroupSize)


class WeightRule(Config):
    """How the weights of some names are stored.

    Attributes:
        names: patterns as of a shell, for names such as
            `decoder.layers.0.self_attn.q_proj.weight`.
        format: of the whole numbers.
        group_size: neighbouring input channels that share a scale; of the sizes that ONNX
            Runtime's kernels multiply by.
        search: try smaller scales too, and keep the one that errs least in the mean square.
    """

    names: tuple[str, ...] = Field(min_length=1)
    format: Literal["int4", "int8"]
    group_size: GroupSize
    search: bool = False

    @property
    def dtype(self) -> DType:
        """The format as the table of all formats has it."""
        return DType(self.format)


class Recipe(Config):
    """What becomes of each weight: the first rule that fits counts, unless it is to be kept.

    Attributes:
        name: of the file.
        description: for a person.
        method: how whole numbers are found: `round` to the nearest; `awq` and `gptq`, which look at
            what enters the decoder's layers. None where another library found them: a file of the
            user's cannot say that.
        clips: that the model is shown for that, with a question each.
        passages: of text that it reads for that.
        weights: the rules, in order.
        keep: patterns of weights that stay as they are.
    """

    name: str
    description: str
    method: Literal["round", "awq", "gptq"] | None = "round"
    clips: int = Field(default=16, ge=1, le=1024)
    passages: int = Field(default=16, ge=0, le=1024)
    weights: tuple[WeightRule, ...] = Field(min_length=1)
    keep: tuple[str, ...] = ()

    def rule(self, name: str) -> WeightRule | None:
        """The rule for a weight; None where it stays as it is."""
        if any(fnmatchcase(name, pattern) for pattern in self.keep):
            return None
        for rule in self.weights:
            if any(fnmatchcase(name, pattern) for pattern in rule.names):
                return rule
        return None

    def check_patterns(self, names: Iterable[str]) -> None:
        """See that every pattern fits a weight of the model.

        Raises:
            UsageError: one fits none; names the nearest.
        """
        known = list(names)
        for pattern in (*self.keep, *(x for rule in self.weights for x in rule.names)):
            if not any(fnmatchcase(name, pattern) for name in known):
                near = difflib.get_close_matches(pattern, known, n=1, cutoff=0.0)
                raise UsageError(
                    f"the recipe {self.name!r} names {pattern!r}, which fits no weight",
                    hint=f"the nearest is {near[0]}" if near else None,
                )


def read_recipe(path: Path) -> Recipe:
    """Read one recipe's file.

    Raises:
        UsageError: it is not a valid recipe; every wrong and unknown key is named.
        InputError: it cannot be read.
    """
    values = SHIPPED.read(path)
    return Recipe.read({"name": path.stem, **values}, where=str(path))


def list_recipes() -> list[Recipe]:
    """The recipes that are shipped, by name."""
    return [read_recipe(path) for path in SHIPPED.by_name().values()]


def load_recipe(name_or_path: str) -> Recipe:
    """A shipped recipe by its name, or the user's own by the path of its file.

    What ends in `.toml` or has a folder in it is a path.

    Raises:
        UsageError: no recipe of that name, or a file that is not a valid recipe.
        InputError: no such file, or one that cannot be read.
    """
    return read_recipe(SHIPPED.find(name_or_path))
