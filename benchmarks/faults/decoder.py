# SPDX-License-Identifier: Apache-2.0
"""Faults of the decoder's graph. Each function plants one; `FAULTS` says what is expected of it."""

from __future__ import annotations

import numpy as np
from onnx import NodeProto, TensorProto

from faults import weights
from faults.edits import Fault, Graph, Plant

ATTENTION, ROPE = "TcBlockCausalAttention", "TcDualRope"


def _attention(graph: Graph) -> NodeProto:
    return graph.nodes(graph.module("self_attn"), ATTENTION)[0]


def _rotations(graph: Graph) -> list[NodeProto]:
    return graph.nodes(graph.module("self_attn"), ROPE)


def _integer(graph: Graph, value: int, dtype: type = np.int64) -> str:
    return graph.constant(np.array(value, dtype=dtype))


def rope_base(factor: float, *, everywhere: bool = False) -> Plant:
    """The base of the frequencies is another one, in a layer or in all."""

    def change(inv_freq: np.ndarray) -> np.ndarray:
        exponents = np.arange(len(inv_freq)) / len(inv_freq)
        return np.asarray(inv_freq * factor**-exponents, dtype=np.float32)

    def plant(graph: Graph) -> None:
        if everywhere:
            graph.weight("decoder.inv_freq", change)
            return
        frequencies = graph.values("decoder.inv_freq")
        name = graph.constant(change(frequencies))
        for node in _rotations(graph):
            node.input[3] = name

    return plant


def gamma(factor: float, *, only: int | None = None, everywhere: bool = False) -> Plant:
    """The weight of the temporal position is another one: of queries (0), of keys (1), or both."""

    def plant(graph: Graph) -> None:
        nodes = _rotations(graph) if only is None else _rotations(graph)[only : only + 1]
        if everywhere:
            nodes = [x for x in graph.model.graph.node if x.op_type == ROPE]
        for node in nodes:
            for attribute in node.attribute:
                if attribute.name == "gamma":
                    attribute.f *= factor

    return plant


def positions_moved(*inputs: int) -> Plant:
    """A layer counts positions from 1: inputs 1 (n) and 2 (T) of the rotation."""

    def plant(graph: Graph) -> None:
        one = _integer(graph, 1)
        for node in _rotations(graph):
            for index in inputs:
                node.input[index] = graph.before(node, "Add", [node.input[index], one])

    return plant


def temporal_capped(limit: int) -> Plant:
    """T never exceeds a limit, in a layer."""

    def plant(graph: Graph) -> None:
        for node in _rotations(graph):
            node.input[2] = graph.before(node, "Min", [node.input[2], _integer(graph, limit)])

    return plant


def temporal_late(graph: Graph) -> None:
    """From the second frame on T is one too high, in a layer, where a text of 4 comes first."""
    five = _integer(graph, 5)
    for node in _rotations(graph):
        later = graph.before(node, "GreaterOrEqual", [node.input[2], five])
        step = graph.before(node, "Cast", [later], to=TensorProto.INT64)
        node.input[2] = graph.before(node, "Add", [node.input[2], step])


def interleaved(graph: Graph) -> None:
    """Channels are rotated as neighbours, and not as halves: keys alone."""
    size = graph.config.text.head_dim
    order = np.arange(size).reshape(2, -1).T.reshape(-1)
    node = _rotations(graph)[1]
    mixed = graph.before(node, "Gather", [node.input[0], graph.constant(order)], axis=3)
    node.input[0] = mixed
    graph.after(node, "Gather", ["*", graph.constant(np.argsort(order))], axis=3)


def causal(graph: Graph) -> None:
    """A visual token does not see the rest of its frame, in a layer."""
    node = _attention(graph)
    following = graph.before(node, "Add", ["position_ids", _integer(graph, 1)])
    node.input[3] = graph.before(node, "Cast", [following], to=TensorProto.INT32)


def last_frame_short(graph: Graph) -> None:
    """`kv_end` is off by one for the last frame of a call, in a layer."""
    node = _attention(graph)
    following = graph.before(node, "Add", ["position_ids", _integer(graph, 1)])
    wide = graph.before(node, "Cast", ["kv_end"], to=TensorProto.INT64)
    inside = graph.before(node, "Greater", [wide, following])
    ends = graph.before(node, "Where", [inside, wide, _integer(graph, 0)])
    last = graph.before(node, "ReduceMax", [ends], keepdims=1)
    is_last = graph.before(node, "Equal", [ends, last])
    is_short = graph.before(node, "And", [is_last, inside])
    step = graph.before(node, "Cast", [is_short], to=TensorProto.INT32)
    node.input[3] = graph.before(node, "Sub", ["kv_end", step])


def end_capped(limit: int) -> Plant:
    """No token sees more than so many rows, in a layer."""

    def plant(graph: Graph) -> None:
        node = _attention(graph)
        node.input[3] = graph.before(node, "Min", ["kv_end", _integer(graph, limit, np.int32)])

    return plant


def padding_seen(graph: Graph) -> None:
    """The last token of a sequence that is padded sees the padding after it, in a layer."""
    node = _attention(graph)
    none, axes = _integer(graph, 0, np.int32), graph.constant(np.array([1]))
    last = graph.before(node, "ReduceMax", ["kv_end", axes], keepdims=1)
    least = graph.before(node, "ReduceMin", ["kv_end", axes], keepdims=1)
    is_last = graph.before(node, "Equal", ["kv_end", last])
    is_padded = graph.before(node, "Equal", [least, none])
    moved = graph.before(node, "And", [is_last, is_padded])
    step = graph.before(node, "Cast", [moved], to=TensorProto.INT32)
    node.input[3] = graph.before(node, "Add", ["kv_end", step])


def padding_sees(graph: Graph) -> None:
    """Padding sees a row, in a layer."""
    node = _attention(graph)
    node.input[3] = graph.before(node, "Max", ["kv_end", _integer(graph, 1, np.int32)])


def first_row_for_all(graph: Graph) -> None:
    """The temporal positions of the batch's first sequence are used for all, in a layer."""
    for node in _rotations(graph):
        first = graph.before(node, "Gather", [node.input[2], graph.constant(np.array([0]))], axis=0)
        shape = graph.before(node, "Shape", ["position_ids"])
        node.input[2] = graph.before(node, "Expand", [first, shape])


def attention_scale(factor: float) -> Plant:
    """The scores' scale is another one."""

    def plant(graph: Graph) -> None:
        for attribute in _attention(graph).attribute:
            if attribute.name == "scale":
                attribute.f *= factor

    return plant


def keys_and_values_exchanged(graph: Graph) -> None:
    """Keys are written where values belong, and values where keys do."""
    node = _attention(graph)
    node.input[1], node.input[2] = node.input[2], node.input[1]


def cache_row_late(graph: Graph) -> None:
    """Row 9 of the cache is written one row late."""
    node = _attention(graph)
    late = graph.before(node, "Equal", ["position_ids", _integer(graph, 9)])
    step = graph.before(node, "Cast", [late], to=TensorProto.INT64)
    node.input[4] = graph.before(node, "Add", ["position_ids", step])


def cache_row_lost(graph: Graph) -> None:
    """Row 9 of the keys is written as zeros."""
    node = _attention(graph)
    shape = graph.constant(np.array([0, 1, -1, 1]))
    kept = graph.before(node, "Equal", ["position_ids", _integer(graph, 9)])
    kept = graph.before(node, "Not", [kept])
    kept = graph.before(node, "CastLike", [kept, node.input[1]])
    factor = graph.before(node, "Reshape", [kept, shape], allowzero=0)
    node.input[1] = graph.before(node, "Mul", [node.input[1], factor])


def sum_without_input(graph: Graph) -> None:
    """The residual connection around the attention is missing."""
    add = graph.nodes(graph.module(""), "Add")[0]
    zero = graph.before(add, "Sub", [add.input[0], add.input[0]])
    add.input[0] = zero


def sum_twice(graph: Graph) -> None:
    """The MLP is added twice."""
    add = graph.nodes(graph.module(""), "Add")[1]
    add.input[1] = graph.before(add, "Add", [add.input[1], add.input[1]])


def quick_activation(graph: Graph) -> None:
    """SiLU is computed as quick GELU."""
    (sigmoid,) = graph.nodes(graph.module("mlp"), "Sigmoid")
    factor = graph.before(sigmoid, "CastLike", [_float(graph, 1.702), sigmoid.input[0]])
    sigmoid.input[0] = graph.before(sigmoid, "Mul", [sigmoid.input[0], factor])


def _float(graph: Graph, value: float) -> str:
    return graph.constant(np.array(value, dtype=np.float32))


def product_overflows(graph: Graph) -> None:
    """The MLP's product leaves the range of float16 on its way."""
    product = graph.nodes(graph.module("mlp"), "Mul")[-1]
    name = product.output[0]
    graph.after(product, "CastLike", ["*", _float(graph, 0.0)])
    last = next(x for x in graph.model.graph.node if x.output[0] == name)
    graph.after(last, "Mul", ["*", _float(graph, 1e-8)])
    narrow = next(x for x in graph.model.graph.node if x.output[0] == name)
    wide = graph.before(narrow, "Mul", [narrow.input[0], _float(graph, 1e8)])
    small = graph.before(narrow, "Cast", [wide], to=TensorProto.FLOAT16)
    narrow.input[0] = graph.before(narrow, "Cast", [small], to=TensorProto.FLOAT)


def keys_in_half(graph: Graph) -> None:
    """Keys are rounded to float16 on their way into the cache."""
    node = _attention(graph)
    small = graph.before(node, "Cast", [node.input[1]], to=TensorProto.FLOAT16)
    node.input[1] = graph.before(node, "Cast", [small], to=TensorProto.FLOAT)


def _first(graph: Graph) -> int:
    return 0


def _before(graph: Graph) -> int:
    return graph.layer - 1


def _head(graph: Graph) -> str:
    return "head"


FAULTS = [
    Fault(name="query heads swapped", plant=weights.heads_swapped("q_proj"), patterns=("heads",)),
    Fault(name="key heads swapped", plant=weights.heads_swapped("k_proj"), patterns=("heads",)),
    Fault(name="value heads swapped", plant=weights.heads_swapped("v_proj"), patterns=("heads",)),
    Fault(
        name="heads swapped into o_proj",
        plant=weights.heads_swapped("o_proj", 1),
        patterns=("weight",),
    ),
    Fault(
        name="two rows of v_proj swapped",
        plant=weights.rows_swapped("self_attn.v_proj"),
        patterns=("channel order",),
    ),
    Fault(
        name="o_proj times 1.01",
        plant=weights.scaled("self_attn.o_proj", 1.01),
        patterns=("weight",),
    ),
    Fault(
        name="one number of v_proj changed", plant=weights.one_weight_changed, patterns=("weight",)
    ),
    Fault(
        name="gate and up exchanged",
        plant=weights.exchanged("mlp.gate_proj", "mlp.up_proj"),
        patterns=("weight",),
    ),
    Fault(
        name="two layers swapped", plant=weights.layers_swapped, layer=_before, patterns=("weight",)
    ),
    Fault(
        name="epsilon of the input norm 1e-3",
        plant=weights.epsilon("input_layernorm", 1e-3),
        patterns=("norm epsilon",),
    ),
    Fault(
        name="epsilon of the second norm 1e-3",
        plant=weights.epsilon("post_attention_layernorm", 1e-3),
        patterns=("norm epsilon",),
    ),
    Fault(
        name="second norm without its weight",
        plant=weights.norm_without_weight,
        patterns=("weight",),
    ),
    Fault(name="rope base 1 % off in a layer", plant=rope_base(1.01), patterns=("rope base",)),
    Fault(
        name="rope base 1 % off in all layers",
        plant=rope_base(1.01, everywhere=True),
        layer=_first,
        patterns=("rope base",),
    ),
    Fault(name="gamma times 1.01 in a layer", plant=gamma(1.01), patterns=("temporal position",)),
    Fault(
        name="gamma times 1.01 in all layers",
        plant=gamma(1.01, everywhere=True),
        layer=_first,
        patterns=("temporal position",),
    ),
    Fault(name="gamma of keys alone 0", plant=gamma(0.0, only=1), patterns=("temporal position",)),
    Fault(name="n and T from 1", plant=positions_moved(1, 2), patterns=("position offset",)),
    Fault(name="T from 1", plant=positions_moved(2), patterns=("position offset",)),
    Fault(name="T capped at 60", plant=temporal_capped(60), patterns=("temporal position",)),
    Fault(
        name="T one too high from the second frame on",
        plant=temporal_late,
        patterns=("temporal position",),
    ),
    Fault(name="keys rotated as neighbours", plant=interleaved, patterns=("channel order",)),
    Fault(name="causal inside frames", plant=causal, patterns=("mask",)),
    Fault(name="kv_end one short for the last frame", plant=last_frame_short, patterns=("mask",)),
    Fault(name="kv_end capped at 100", plant=end_capped(100), patterns=("mask",)),
    Fault(
        name="attention scale 1 % off", plant=attention_scale(1.01), patterns=("attention scale",)
    ),
    Fault(
        name="keys and values exchanged", plant=keys_and_values_exchanged, patterns=("cache write",)
    ),
    Fault(name="one cache row written late", plant=cache_row_late, patterns=("cache write",)),
    Fault(name="one row of keys lost", plant=cache_row_lost, patterns=("cache write",)),
    Fault(name="keys rounded to float16", plant=keys_in_half, patterns=("rounding",)),
    Fault(name="no residual around the attention", plant=sum_without_input, patterns=("sum",)),
    Fault(name="MLP added twice", plant=sum_twice, patterns=("sum",)),
    Fault(name="quick GELU for SiLU", plant=quick_activation, patterns=("activation",)),
    Fault(name="product overflows float16", plant=product_overflows, patterns=("overflow",)),
    Fault(
        name="epsilon of the last norm 1e-3",
        plant=weights.epsilon("decoder.norm", 1e-3),
        layer=_head,
    ),
    Fault(name="two rows of the head swapped", plant=weights.head_rows_swapped, layer=_head),
    Fault(
        name="T of the batch's first row for all", plant=first_row_for_all, layer=lambda graph: None
    ),
    Fault(name="padding seen by the last token", plant=padding_seen, layer=lambda graph: None),
    Fault(
        name="padding sees a row",
        plant=padding_sees,
        layer=lambda graph: None,
        unseen="nothing reads what a graph gives for a padded token",
    ),
    Fault(
        name="one number of v_proj off by its last bit",
        plant=weights.last_bit_changed,
        unseen="smaller than the rounding of the sum that it goes into",
    ),
    Fault(
        name="epsilon of the input norm 1 % off",
        plant=weights.epsilon_slightly_off,
        unseen="1e-8 beside a mean square near 1: less than float32 rounds it by",
    ),
]
