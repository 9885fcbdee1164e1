# SPDX-License-Identifier: Apache-2.0
"""Which weight gets which of several formats, so that all of them together stay in a budget.

How sensitive a product is, is measured: the square error of what it gives, relative to what it
gives, when its weight is rounded, on the calibration's inputs. All weights begin in the format of
fewest bits that fits them. Then the one goes over to a wider format that loses most error for a
bit, as long as the budget lasts.
"""

from __future__ import annotations

import heapq
import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from tc_export.errors import UsageError
from tc_export.quantize.channels import some_rows
from tc_export.quantize.layer import LayerWeight
from tc_export.recipes import Recipe, WeightRule


@dataclass(frozen=True)
class Option:
    """A weight stored by one rule: the bits that all its numbers take, and the error of its
    product relative to what it gives."""

    rule: WeightRule
    bits: float
    error: float


def options_of(
    weight: LayerWeight, rules: Sequence[WeightRule], inputs: Mapping[str, Tensor]
) -> list[Option]:
    """What each rule would make of a weight whose product gets these inputs [T, K], by its name."""
    some_TK = some_rows(inputs[weight.module])
    values = weight.read().to(torch.float32)
    truth = some_TK @ values.T
    size = truth.square().mean().clamp(min=torch.finfo(torch.float32).tiny)
    options = []
    for rule in rules:
        rounded = replace(weight, rule=rule).rounded(values)
        lost = some_TK @ rounded.widened().T - truth
        bits = rule.bits(weight.location.shape) * math.prod(weight.location.shape)
        options.append(Option(rule, bits, float(lost.square().mean() / size)))
    return options


def choose(options: Mapping[str, Sequence[Option]], recipe: Recipe, numbers: int) -> Recipe:
    """The recipe with one rule for each weight, chosen under its budget.

    Args:
        options: for each weight by its name in the model.
        recipe: has a budget.
        numbers: how many the weights have in all.

    Raises:
        UsageError: the budget is less than all weights take in the fewest bits.
    """
    assert recipe.budget is not None
    chosen = {name: min(of, key=lambda x: x.bits) for name, of in options.items()}
    left = recipe.budget * numbers - sum(x.bits for x in chosen.values())
    if left < 0:
        least = sum(x.bits for x in chosen.values()) / numbers
        raise UsageError(
            f"the recipe {recipe.name!r} has a budget of {recipe.budget:g} bits, and the fewest "
            f"that its rules take are {least:.3f}",
            hint="give a larger budget, or a rule with fewer bits",
        )
    heap = [step for name in options for step in _steps(name, options[name], chosen[name])]
    heapq.heapify(heap)
    while heap:
        _, name, index = heapq.heappop(heap)
        wider = options[name][index]
        more = wider.bits - chosen[name].bits
        if wider.error < chosen[name].error and 0 < more <= left:
            left -= more
            chosen[name] = wider
            for step in _steps(name, options[name], wider):
                heapq.heappush(heap, step)
    names: dict[int, list[str]] = defaultdict(list)
    for name, option in chosen.items():
        names[recipe.weights.index(option.rule)].append(name)
    rules = [
        recipe.weights[index].model_copy(update={"names": tuple(of)})
        for index, of in sorted(names.items())
    ]
    return recipe.model_copy(update={"weights": tuple(rules), "budget": None})


def _steps(name: str, options: Sequence[Option], now: Option) -> Iterator[tuple[float, str, int]]:
    """Wider formats for a weight: minus the error that each loses for a bit, and which it is."""
    for index, option in enumerate(options):
        if option.bits > now.bits and option.error < now.error:
            yield -(now.error - option.error) / (option.bits - now.bits), name, index
