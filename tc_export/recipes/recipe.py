# SPDX-License-Identifier: Apache-2.0
"""Recipes as data: which weights are stored in which format, and what stays as it is.

A recipe is a TOML file: one of those that are shipped, or the user's own, given by its path.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Literal, Self, get_args

from pydantic import Field, model_validator

from tc_export.config import Config, KvFormat
from tc_export.dtypes import DType
from tc_export.errors import UsageError
from tc_export.shipped_files import ShippedFiles
from tc_export.targets.precision import Precision

QUANT_METHOD = "tc-export"
"""What `quantization_config` in config.json calls the form that recipes lead to."""

SHIPPED = ShippedFiles("recipe", "recipes", "A file of your own is given by its path")

GroupSize = Literal[16, 32, 64, 128, 256]
GROUP_SIZES: tuple[int, ...] = get_args(GroupSize)


class WeightRule(Config):
    """How the weights of some names are stored, and what they are multiplied with.

    Attributes:
        names: patterns as of a shell, for names such as
            `decoder.layers.0.self_attn.q_proj.weight`.
        format: of the numbers.
        group_size: neighbouring input channels that share a scale; of the sizes that ONNX
            Runtime's kernels multiply by. None: all of an output channel do.
        search: try smaller scales too, and keep the one that errs least in the mean square; where
            what enters is known, each channel counts by that.
        inputs: what enters the product is rounded to the same format, with one scale that
            calibration finds; the device multiplies numbers of eight bits then. None: it stays
            in the graph's own format, and weights are widened to that.
    """

    names: tuple[str, ...] = Field(min_length=1)
    format: Literal["int4", "int8", "fp8", "nvfp4"]
    group_size: GroupSize | None = None
    search: bool = False
    inputs: Literal["int8", "fp8"] | None = None

    @model_validator(mode="after")
    def _check_product(self) -> Self:
        if self.inputs is None and self.format == "fp8":
            raise ValueError("weights in fp8 are multiplied with inputs in fp8: say inputs")
        if self.inputs is None and self.group_size is None:
            raise ValueError("group_size is missing")
        if self.inputs is not None and self.inputs != self.format:
            raise ValueError(f"inputs in {self.inputs} are multiplied with weights in the same")
        if self.inputs is not None and self.group_size is not None:
            raise ValueError("inputs are rounded where an output channel has one scale alone")
        if self.format == "nvfp4" and self.group_size != 16:
            raise ValueError("nvfp4 has groups of 16")
        return self

    @property
    def dtype(self) -> DType:
        """The format as the table of all formats has it."""
        return DType(self.format)

    def bits(self, shape: tuple[int, ...], scales: DType = DType.FLOAT16) -> float:
        """Of a weight [N, K] of this rule, a number's share of its scales included.

        `scales` is their format; those of nvfp4 have eight bits.
        """
        K = math.prod(shape[1:])
        scale = DType.FP8 if self.dtype is DType.NVFP4 else scales
        return self.dtype.bits + scale.bits / (self.group_size or K)


class Recipe(Config):
    """What becomes of each weight: the first rule that fits counts, unless it is to be kept.

    Attributes:
        name: of the file.
        description: for a person.
        method: how numbers are found: `round` to the nearest; `awq`, `gptq`, `awq-gptq`, the one
            after the other, and `smooth`, which look at what enters the decoder's layers. None
            where another library found them: a file of the user's cannot say that.
        clips: that the model is shown for that, with a question each.
        passages: of text that it reads for that.
        weights: the rules, in order.
        keep: patterns of weights that stay as they are.
        budget: bits of a weight in the mean, scales included. With it, a weight that several rules
            fit is stored by the one that its error is worth.
        kv: format of the key/value cache.
    """

    name: str
    description: str
    method: Literal["round", "awq", "gptq", "awq-gptq", "smooth"] | None = "round"
    clips: int = Field(default=16, ge=1, le=1024)
    passages: int = Field(default=16, ge=0, le=1024)
    weights: tuple[WeightRule, ...] = Field(min_length=1)
    keep: tuple[str, ...] = ()
    budget: float | None = Field(default=None, gt=0, le=16)
    kv: KvFormat = KvFormat.OWN

    @model_validator(mode="after")
    def _check_method(self) -> Self:
        formats = {rule.inputs for rule in self.weights if rule.inputs}
        if self.method == "smooth" and len(formats) != 1:
            raise ValueError("smooth is for rules with inputs, all in one format")
        if self.makes_good and any(rule.format == "nvfp4" for rule in self.weights):
            raise ValueError(f"{self.method} does not round to nvfp4: use round or awq")
        return self

    @property
    def scales_channels(self) -> bool:
        """True where channels are made larger in one place and smaller in another before."""
        return self.method in ("awq", "awq-gptq", "smooth")

    @property
    def makes_good(self) -> bool:
        """True where what a channel errs is made good by later ones (GPTQ)."""
        return self.method in ("gptq", "awq-gptq")

    @property
    def formats(self) -> set[Precision]:
        """All that its rules store weights in."""
        return {Precision(rule.format) for rule in self.weights}

    @property
    def looks_at_inputs(self) -> bool:
        """True where the model is shown clips."""
        chooses = self.method not in ("round", None) or self.budget is not None
        return chooses or any(rule.inputs for rule in self.weights)

    def rule(self, name: str) -> WeightRule | None:
        """The first rule for a weight; None where it stays as it is."""
        return next(iter(self.rules(name)), None)

    def rules(self, name: str) -> list[WeightRule]:
        """All rules that fit a weight: none where it stays as it is."""
        if any(fnmatchcase(name, pattern) for pattern in self.keep):
            return []
        return [
            rule
            for rule in self.weights
            if any(fnmatchcase(name, pattern) for pattern in rule.names)
        ]

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
