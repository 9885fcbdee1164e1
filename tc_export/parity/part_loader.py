# SPDX-License-Identifier: Apache-2.0
"""Parts of the PyTorch model with their weights, each read from the checkpoint when needed."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from tc_export.checkpoint.quantized import QuantizedWeight
from tc_export.checkpoint.reader import Checkpoint, empty_model
from tc_export.dtypes import DType
from tc_export.model.input_rounding import round_inputs
from tc_export.parity.noise import OrderedLinear, order_linears
from tc_export.targets import Precisions


class PartLoader:
    """Hands out parts that compute in one format.

    Attributes:
        empty: the whole model, without weights; its linear layers can be told how to sum.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        dtype: DType,
        weights: Precisions | None = None,
        *,
        rounds_inputs: bool = True,
    ) -> None:
        """Read nothing yet.

        Args:
            checkpoint: where the weights lie.
            dtype: the format that everything is computed in.
            weights: formats that the weights of each graph are rounded to before; None: `dtype`.
            rounds_inputs: round what enters products of eight bits, as the graph does.
        """
        self._checkpoint = checkpoint
        self._dtype = dtype.torch
        self._weights = weights
        self._rounds_inputs = rounds_inputs
        self.empty = empty_model(checkpoint.config.model)
        order_linears(self.empty)

    def load(self, name: str, *, few_tokens: bool = False) -> nn.Module:
        """A part of the model with its weights; those of linear layers wait for a few tokens."""
        module = copy.deepcopy(self.empty.get_submodule(name))
        waiting = [
            f"{key}.weight".removeprefix(".")
            for key, part in module.named_modules()
            if few_tokens and isinstance(part, OrderedLinear)
        ]
        state = {
            key: self._weight(f"{name}.{key}", widened=key not in waiting)
            for key in module.state_dict()
        }
        module.load_state_dict(state, assign=True)
        sums_in = max(self._dtype, torch.float32, key=lambda dtype: dtype.itemsize)
        for part in module.modules():
            if isinstance(part, OrderedLinear) and few_tokens:
                part.widened_to = sums_in
            elif isinstance(part, OrderedLinear):
                part.to(sums_in)
        if self._rounds_inputs:
            round_inputs(module, self._checkpoint.input_roundings(name, self._graph_format(name)))
        return module.eval()

    def _weight(self, name: str, *, widened: bool = True) -> Tensor:
        """A tensor of the checkpoint in the model's format, or in one that has the same numbers."""
        weight = self._of_the_graph(name)
        holds_all = torch.promote_types(weight.dtype, self._dtype) == self._dtype
        return weight if holds_all and not widened else weight.to(self._dtype)

    def _of_the_graph(self, name: str) -> Tensor:
        """A tensor of the checkpoint, rounded to the graph's format.

        Of a quantised one its scales are: the products are what the graph computes.
        """
        weight, dtype = self._checkpoint.tensors[name], self._graph_format(name)
        if dtype is None:
            return weight.as_tensor()
        if isinstance(weight, QuantizedWeight):
            return weight.as_tensor(scales=dtype)
        return weight.as_tensor().to(dtype.torch)

    def _graph_format(self, name: str) -> DType | None:
        """What the graph that has a part of this name stores its weights in; None: as they are."""
        if self._weights is None:
            return None
        is_vision = name.startswith("vision.")
        return (self._weights.vision if is_vision else self._weights.decoder).dtype
