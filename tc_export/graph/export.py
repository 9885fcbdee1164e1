# SPDX-License-Identifier: Apache-2.0
"""Checkpoint to ONNX: the `vision` and `decoder` graphs, and the embedding table.

Each graph is traced with fake weights, gets the custom ops' bodies as model-local functions, has
its weights attached from the checkpoint's files, and is checked before it is saved. What was lost
on the way (a custom op, a dynamic axis) is an error here, not a surprise later.
"""

from __future__ import annotations

import logging
import stat
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import onnx
import onnx_ir as ir
import torch
from safetensors.torch import save_file
from torch.export import ExportedProgram

from tc_export.checkpoint.reader import Checkpoint
from tc_export.config import KvFormat, ModelConfig
from tc_export.contracts.graph_io import (
    DECODER,
    VISION,
    GraphTensor,
    decoder_inputs,
    decoder_outputs,
    names,
    vision_inputs,
    vision_outputs,
)
from tc_export.contracts.ops import (
    BLOCK_CAUSAL_ATTENTION,
    BLOCK_CAUSAL_ATTENTION_INT8,
    DUAL_ROPE,
    OpContract,
)
from tc_export.dtypes import DType
from tc_export.errors import TcExportError
from tc_export.graph.onnx_ops import (
    attach_functions,
    custom_node_counts,
    register_schemas,
    translation_table,
)
from tc_export.graph.passes.dequantize_weights import dequantize_weights
from tc_export.graph.passes.fold_reshaped_constants import fold_reshaped_constants
from tc_export.graph.trace import trace_decoder, trace_vision
from tc_export.graph.weights import WeightsReport, attach_weights
from tc_export.graph.weights_plan import own_weights, plan_weights
from tc_export.model.rope import inverse_frequencies

OPSET = 23
MODULE_NOTE = "pkg.torch.onnx.name_scopes"
EMBEDDING_TENSOR = "embed_tokens.weight"

Advance = Callable[[int], None]
"""Called with a number of bytes that are done."""


@dataclass(frozen=True, kw_only=True)
class GraphReport:
    """An exported graph: its custom nodes by name, and what its weights cost on disk."""

    custom_nodes: dict[str, int]
    bytes_written: int
    bytes_referenced: int


def export_vision(
    checkpoint: Checkpoint, dtype: DType, path: Path, advance: Advance
) -> GraphReport:
    """Write the graph `pixel_values` -> `visual_features` to `path`.

    Its weights lie beside it: see `plan_weights`. Shards are not brought there.
    """
    config = checkpoint.config.model
    model = _to_onnx(
        trace_vision(config, dtype.torch), vision_inputs(config), vision_outputs(config)
    )
    plan = plan_weights(checkpoint, VISION, dtype)
    dequantize_weights(model, plan.quantized, dtype)
    report = attach_weights(model, plan, {}, own_weights(path), advance)
    return _save(model, path, report, expected={})


def export_decoder(
    checkpoint: Checkpoint, dtype: DType, path: Path, advance: Advance
) -> GraphReport:
    """Write the graph from embeddings and cache to logits and cache to `path`.

    Its weights lie beside it, as those of `export_vision` do.
    """
    config = checkpoint.config.model
    model = _to_onnx(
        trace_decoder(config, dtype.torch), decoder_inputs(config), decoder_outputs(config)
    )
    inv_freq, _ = inverse_frequencies(config.text)
    plan = plan_weights(checkpoint, DECODER, dtype)
    dequantize_weights(model, plan.quantized, dtype)
    constants = {"decoder.inv_freq": inv_freq.numpy()}
    report = attach_weights(model, plan, constants, own_weights(path), advance)
    return _save(model, path, report, expected=expected_custom_nodes(config))


def export_embedding(checkpoint: Checkpoint, dtype: DType, path: Path) -> int:
    """Write the token embedding table [vocabulary, channels]; return its bytes.

    Tokens are embedded outside the graphs, so that visual features can take their places.
    """
    table = checkpoint.embedding.as_tensor().to(dtype.torch)
    path.touch()
    mode = stat.S_IMODE(path.stat().st_mode)  # what the umask gives to a new file
    save_file({EMBEDDING_TENSOR: table.contiguous()}, path)
    path.chmod(mode)  # the library lets nobody but the owner read what it writes
    return table.nbytes


def expected_custom_nodes(config: ModelConfig, part: range | None = None) -> dict[str, int]:
    """Of the decoder, or of a part: each layer rotates query and key, and attends once."""
    layers = config.text.num_hidden_layers if part is None else len(part)
    expected = {DUAL_ROPE.name: 2 * layers}
    if config.temporal.mask.is_prefix:
        expected[attention_op(config).name] = layers
    return expected


def attention_op(config: ModelConfig) -> OpContract:
    """The op by which a decoder whose mask is a prefix attends."""
    if config.cache.kv is KvFormat.OWN:
        return BLOCK_CAUSAL_ATTENTION
    return BLOCK_CAUSAL_ATTENTION_INT8


def _to_onnx(
    program: ExportedProgram, inputs: Sequence[GraphTensor], outputs: Sequence[GraphTensor]
) -> ir.Model:
    """Translate the traced program; nothing is folded, since folding would copy weights."""
    register_schemas()
    with _quiet_exporter():
        exported = torch.onnx.export(
            program,
            (),
            dynamo=True,
            custom_translation_table=translation_table(),
            optimize=False,
            opset_version=OPSET,
            input_names=names(inputs),
            output_names=names(outputs),
            verbose=False,
        )
    assert exported is not None
    model: ir.Model = exported.model
    _name_axes(model, inputs)
    fold_reshaped_constants(model)
    attach_functions(model)
    _drop_tracer_notes(model)
    return model


@contextmanager
def _quiet_exporter() -> Iterator[None]:
    """Silence what PyTorch's exporter says of itself, and what no user could act on."""
    registration = logging.getLogger("torch.onnx._internal.exporter._registration")
    level = registration.level
    registration.setLevel(logging.ERROR)  # "torchvision is not installed"
    try:
        with warnings.catch_warnings():
            # It copies its own deprecated tree specs.
            warnings.filterwarnings("ignore", message=".*LeafSpec.*", category=FutureWarning)
            yield
    finally:
        registration.setLevel(level)


def _drop_tracer_notes(model: ir.Model) -> None:
    """Keep which module a node came from; drop stack traces, which hold paths of this machine."""
    for node in model.graph.all_nodes():
        kept = {k: v for k, v in node.metadata_props.items() if k == MODULE_NOTE}
        node.metadata_props.clear()
        node.metadata_props.update(kept)
        for value in node.outputs:
            value.metadata_props.clear()
    for value in [*model.graph.inputs, *model.graph.initializers.values()]:
        value.metadata_props.clear()


def _name_axes(model: ir.Model, inputs: Sequence[GraphTensor]) -> None:
    """Rename the tracer's symbols (s17, s29 …) to what they mean, and see that none was frozen."""
    meanings: dict[str, str] = {}
    for value, tensor in zip(model.graph.inputs, inputs, strict=True):
        assert value.shape is not None
        for axis, name in tensor.dynamic_axes.items():
            symbol = value.shape[axis]
            if isinstance(symbol, int):
                raise TcExportError(
                    f"axis {name!r} of {value.name} was frozen to {symbol} while tracing"
                )
            meaning = meanings.setdefault(str(symbol.value), name)
            if meaning != name:
                raise TcExportError(f"axes {meaning!r} and {name!r} were merged")
    values = [
        *model.graph.inputs,
        *(out for node in model.graph.all_nodes() for out in node.outputs),
    ]
    for value in values:
        if value.shape is not None:
            value.shape = ir.Shape(
                [d if isinstance(d, int) else meanings.get(str(d.value), d) for d in value.shape]
            )


def _save(
    model: ir.Model, path: Path, weights: WeightsReport, *, expected: dict[str, int]
) -> GraphReport:
    counts = custom_node_counts(model)
    if counts != expected:
        raise TcExportError(f"the graph has custom nodes {counts}, and should have {expected}")
    ir.save(model, path)
    check_graph(path)
    return GraphReport(
        custom_nodes=counts,
        bytes_written=weights.bytes_written + path.stat().st_size,
        bytes_referenced=weights.bytes_referenced,
    )


def save_checked(model: ir.Model, destination: Path) -> None:
    """Write a graph whose weights lie elsewhere already.

    It is renamed to its place once it is checked: nobody finds one that was not.
    """
    partial = destination.with_name(f".{destination.name}.partial")
    try:
        ir.save(model, partial)
        check_graph(partial)
        partial.replace(destination)
    finally:
        partial.unlink(missing_ok=True)


def check_graph(path: Path) -> None:
    """Run ONNX's full checker, types and shapes included, on a graph whose weights lie elsewhere.

    The checker refuses hard-linked weights, and would read all of them; so here each stands as an
    input of the same type and shape. That the bytes are right is for parity to say.
    """
    register_schemas()
    proto = onnx.load(path, load_external_data=False)
    graph = proto.graph
    inline = []
    for tensor in graph.initializer:
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            value = onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims)
            graph.input.append(value)
        else:
            inline.append(tensor)
    del graph.initializer[:]
    graph.initializer.extend(inline)
    onnx.checker.check_model(proto, full_check=True)
