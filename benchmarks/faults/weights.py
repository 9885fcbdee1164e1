# SPDX-License-Identifier: Apache-2.0
"""Faults of the decoder's weights and of its norms. Each function plants one."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from faults.edits import Graph, Plant


def _swapped(axis: int, size: int) -> Callable[[np.ndarray], np.ndarray]:
    """Exchanges the first two blocks of `size` along an axis."""

    def change(weight: np.ndarray) -> np.ndarray:
        order = np.arange(weight.shape[axis])
        order[: 2 * size] = np.roll(order[: 2 * size], size)
        return np.take(weight, order, axis)

    return change


def heads_swapped(projection: str, axis: int = 0) -> Plant:
    """Two heads of a projection stand in each other's place."""
    return lambda graph: graph.weight(
        graph.module(f"self_attn.{projection}.weight"), _swapped(axis, graph.config.text.head_dim)
    )


def rows_swapped(module: str) -> Plant:
    """Two rows of a weight stand in each other's place."""
    return lambda graph: graph.weight(graph.module(f"{module}.weight"), _swapped(0, 1))


def scaled(module: str, factor: float) -> Plant:
    """A weight is too large."""
    return lambda graph: graph.weight(graph.module(f"{module}.weight"), lambda x: x * factor)


def one_weight_changed(graph: Graph) -> None:
    """One number of a weight is another one, by as much as its numbers usually are."""

    def change(weight: np.ndarray) -> np.ndarray:
        weight[1, 2] += 3 * weight.std()
        return weight

    graph.weight(graph.module("self_attn.v_proj.weight"), change)


def last_bit_changed(graph: Graph) -> None:
    """One number of a weight is off by a unit in its last place."""

    def change(weight: np.ndarray) -> np.ndarray:
        weight[1, 2] = np.nextafter(weight[1, 2], np.inf, dtype=weight.dtype)
        return weight

    graph.weight(graph.module("self_attn.v_proj.weight"), change)


def epsilon_slightly_off(graph: Graph) -> None:
    """The epsilon of a norm is 1 % too large."""
    epsilon("input_layernorm", 1.01 * graph.config.text.rms_norm_eps)(graph)


def exchanged(one: str, other: str) -> Plant:
    """Two weights of a layer stand in each other's place."""

    def plant(graph: Graph) -> None:
        first, second = (graph.nodes(graph.module(x), "Transpose")[0] for x in (one, other))
        first.input[0], second.input[0] = second.input[0], first.input[0]

    return plant


def layers_swapped(graph: Graph) -> None:
    """A layer has the weights of the next, and the other way round."""
    here, there = f"decoder.layers.{graph.layer - 1}.", f"decoder.layers.{graph.layer}."
    for node in graph.model.graph.node:
        node.input[:] = [
            x.replace(here, there) if x.startswith(here) else x.replace(there, here)
            for x in node.input
        ]


def epsilon(module: str, value: float) -> Plant:
    """The epsilon of a norm is another one."""

    def plant(graph: Graph) -> None:
        name = module if module == "decoder.norm" else graph.module(module)
        (add,) = graph.nodes(name, "Add")
        add.input[1] = graph.constant(np.array(value, dtype=np.float32))

    return plant


def norm_without_weight(graph: Graph) -> None:
    """A norm's weight is all ones."""
    graph.weight(graph.module("post_attention_layernorm.weight"), np.ones_like)


def head_rows_swapped(graph: Graph) -> None:
    """Two tokens' logits stand in each other's place."""
    graph.weight("decoder.lm_head.weight", _swapped(0, 1))
