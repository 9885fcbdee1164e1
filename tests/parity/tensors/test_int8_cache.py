# SPDX-License-Identifier: Apache-2.0
"""Parity of a decoder whose cache is in int8: it holds, and faults of the cache show."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest

from tc_export.bundle.layout import graph_path
from tc_export.checkpoint.reader import Checkpoint, open_checkpoint
from tc_export.config import CacheConfig, KvFormat, ModelSettings
from tc_export.contracts.graph_io import DECODER, VISION
from tc_export.contracts.parts import even_parts
from tc_export.dtypes import DType
from tc_export.parity.graph_engines import GraphsInTurn
from tc_export.parity.random_cache import RandomCache
from tc_export.parity.tensors.check import ParityResult, check_parity
from tc_export.parity.tensors.check_bundle import references
from tc_export.parity.tensors.scenario import standard_scenarios
from tc_export.targets import Precisions
from tests.exported import export_graph
from tests.repository import DEMO_CHECKPOINT

PARTS = 1


@pytest.fixture(scope="module")
def demo() -> Checkpoint:
    asked = ModelSettings(cache=CacheConfig(kv=KvFormat.INT8))
    return open_checkpoint(DEMO_CHECKPOINT, asked)


def export_in(checkpoint: Checkpoint, precision: str, folder: Path) -> Path:
    for name in (VISION, DECODER):
        export_graph(name, checkpoint, DType(precision), folder)
    return folder


def judge(checkpoint: Checkpoint, precision: str, folder: Path) -> ParityResult:
    config, precisions = checkpoint.config.model, Precisions.both(precision)
    parts = even_parts(config.text.num_hidden_layers, PARTS)
    side = GraphsInTurn(folder, config, precisions, parts, threads=1)
    in_float32 = GraphsInTurn(folder, config, precisions, parts, in_float32=True, threads=1)
    return check_parity(
        references(checkpoint, precisions),
        side,
        precisions,
        standard_scenarios(config, 4, 200),
        in_float32=None if precision == "float32" else in_float32,
    )


@pytest.mark.parametrize("precision", ["float32", "float16"])
def test_a_good_graph_passes(demo: Checkpoint, precision: str, tmp_path: Path) -> None:
    result = judge(demo, precision, export_in(demo, precision, tmp_path))
    assert result.passed, [x for x in (*result.tensors, *result.noise) if not x.passed]


def function_of(model: onnx.ModelProto) -> onnx.FunctionProto:
    (found,) = (x for x in model.functions if x.name == "TcBlockCausalAttentionInt8")
    return found


def cut_off(model: onnx.ModelProto) -> None:
    """Codes are cut off and not rounded."""
    for node in function_of(model).node:
        if node.op_type == "Round":
            node.op_type = "Floor"


def scales_of_the_keys(model: onnx.ModelProto) -> None:
    """The values' scales are the keys'."""
    made = {node.output[0]: node for node in function_of(model).node}
    made["present_value_scale"].input[2] = made["present_key_scale"].input[2]


def seven_bits(model: onnx.ModelProto) -> None:
    """Half as many codes as there are."""
    for node in function_of(model).node:
        for attribute in node.attribute:
            if attribute.name == "value_float" and attribute.f == 127.0:
                attribute.f = 63.0


@pytest.mark.parametrize("fault", [cut_off, scales_of_the_keys, seven_bits])
def test_a_fault_of_the_cache_shows(
    demo: Checkpoint, fault: Callable[[onnx.ModelProto], None], tmp_path: Path
) -> None:
    path = export_in(demo, "float32", tmp_path) / graph_path(DECODER)
    model = onnx.load(path, load_external_data=False)
    fault(model)
    onnx.save(model, path)
    assert not judge(demo, "float32", tmp_path).passed


def test_random_rows_are_codes_and_scales(demo: Checkpoint) -> None:
    truth = references(demo, Precisions.both("float32")).truth
    embeds = np.random.default_rng(3).standard_normal((16, demo.config.model.text.hidden_size))
    computed = truth.caches(embeds)
    cache = RandomCache(config=demo.config.model, computed=computed, dtype=DType.FLOAT32, rows=90)
    text = demo.config.model.text
    for layer in range(text.num_hidden_layers):
        for index, part in enumerate(("key", "value")):
            codes, scales = cache.draw(layer, part), cache.draw(layer, f"{part}_scale")
            assert codes.dtype == np.int8
            assert codes.shape == (text.num_key_value_heads, 90, text.head_dim)
            assert scales.shape == codes.shape[:2]
            assert (np.abs(codes).max(-1) == 127).all()
            # What the truth computed is what codes and scales stand for, to half a code.
            plain = codes[:, :16] * scales[:, :16, None]
            off = np.abs(plain - computed[layer][index])
            assert (off <= 0.51 * scales[:, :16, None]).all()
