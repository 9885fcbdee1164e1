# SPDX-License-Identifier: Apache-2.0
"""Engines by TensorRT-RTX itself, which builds for a GPU that is not there."""

from __future__ import annotations

import hashlib
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from tc_export.bundle.layout import graph_path
from tc_export.checkpoint.reader import open_checkpoint
from tc_export.config import ModelConfig
from tc_export.contracts.graph_io import GRAPHS
from tc_export.contracts.shapes import ShapeRange, decoder_shapes, vision_shapes
from tc_export.demo_model.config import tiny_model
from tc_export.demo_model.folder import write_checkpoint
from tc_export.demo_model.tokenizer import make_tokenizer
from tc_export.demo_model.trainer import new_model
from tc_export.dtypes import DType
from tc_export.engine.tensorrt.build import EngineReport, EngineRequest, build_engine
from tc_export.errors import (
    CheckFailed,
    InputError,
    TcExportError,
    UnsupportedEnvironment,
    UsageError,
)
from tests.engine.tensorrt.builder.test_process import need_fixed_addresses
from tests.exported import export_graph
from tests.plugins.native import fetched, need, run
from tests.plugins.tensorrt.graphs import Variant, one_layer

ONNX_TYPES = {"float16": TensorProto.FLOAT16, "float32": TensorProto.FLOAT}
MAX_FRAMES, MAX_LENGTH = 8, 512


@pytest.fixture(autouse=True)
def rtx(monkeypatch: pytest.MonkeyPatch) -> None:
    """The worker finds TensorRT-RTX in the fetched package, installed or not."""
    monkeypatch.setenv("PYTHONPATH", str(fetched("tensorrt-rtx")), prepend=os.pathsep)


def ignore(done: float, total: float | None) -> None:
    pass


def left(request: EngineRequest) -> list[str]:
    return [path.name for path in request.engine.parent.iterdir()]


def product(folder: Path, dtype: str = "float16", shared: bool = False) -> EngineRequest:
    """A request for one matrix product, x [-1, 64] by a weight, which lies in a file of its own."""
    folder.mkdir()
    weight = numpy_helper.from_array(np.ones((64, 32), dtype), "weight")
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "weight"], ["y"], name="product")],
        "product",
        [helper.make_tensor_value_info("x", ONNX_TYPES[dtype], ["n", 64])],
        [helper.make_tensor_value_info("y", ONNX_TYPES[dtype], ["n", 32])],
        [weight],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.save(model, folder / "model.onnx", save_as_external_data=True, location="weights.bin")
    if shared:
        os.link(folder / "weights.bin", folder.with_suffix(".checkpoint"))
    (folder / "out").mkdir()
    return EngineRequest(
        flavour="tensorrt-rtx",
        graph=folder / "model.onnx",
        engine=folder / "out" / "model.engine",
        shapes={"x": ShapeRange((1, 64), (4, 64), (9, 64))},
        precision=dtype,
        compute_capability=89,
    )


def test_a_product_whose_weights_are_hard_links(tmp_path: Path) -> None:
    request = product(tmp_path / "product", shared=True)
    told: list[float] = []
    report = build_engine(request, lambda done, total: told.append(done))
    assert report.tensorrt.startswith("TensorRT-RTX 1.")
    assert (report.precision, report.plugin_layers) == ("float16", {})
    assert report.engine_bytes == request.engine.stat().st_size > 1000
    assert 50e6 < report.peak_bytes < 1e9
    assert told[-1] == 1
    assert left(request) == ["model.engine"]


@pytest.mark.parametrize(
    ("changes", "error", "says"),
    [
        (
            {"compute_capability": 87},
            UnsupportedEnvironment,
            "SM87; it does for SM75, SM80, SM86, SM89",
        ),
        ({"shapes": {"x": ShapeRange((1, 32), (4, 32), (9, 32))}}, UsageError, "x: .*does not fit"),
        ({"shapes": {}}, UsageError, "x: no shapes are given"),
        (
            {"custom_nodes": {"TcDualRope": 1}},
            UnsupportedEnvironment,
            r"made plugin layers \{\} of",
        ),
        ({"precision": "bfloat16"}, CheckFailed, "asked for in bfloat16.*in float16"),
    ],
    ids=["SM", "shapes", "no shapes", "counts", "precision"],
)
def test_what_cannot_be_had(
    tmp_path: Path, changes: dict[str, object], error: type[TcExportError], says: str
) -> None:
    request = replace(product(tmp_path / "product"), **changes)  # type: ignore[arg-type]
    with pytest.raises(error, match=says):
        build_engine(request, ignore)
    assert left(request) == []


def test_a_graph_in_another_type_than_asked_for(tmp_path: Path) -> None:
    request = replace(product(tmp_path / "product", "float32"), precision="float16")
    with pytest.raises(CheckFailed, match=r"in float32:\n  float32: 1 layers"):
        build_engine(request, ignore)
    assert build_engine(replace(request, precision="float32"), ignore).precision == "float32"


@pytest.mark.parametrize("damage", ["graph", "weights"])
def test_damaged_files(tmp_path: Path, damage: str) -> None:
    request = product(tmp_path / "product")
    file = request.graph if damage == "graph" else request.graph.with_name("weights.bin")
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    with pytest.raises(InputError, match="cannot parse") as raised:
        build_engine(request, ignore)
    assert str(request.graph) in str(raised.value)
    assert left(request) == []


def test_an_interrupt_ends_the_builder(tmp_path: Path) -> None:
    request = product(tmp_path / "product")

    def interrupt(done: float, total: float | None) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build_engine(request, interrupt)
    assert left(request) == []


def layer_request(folder: Path, plugin: Path | None, float_type: str = "float16") -> EngineRequest:
    """A request for the attention of one layer, by our plugins alone."""
    onnx.save(one_layer(Variant(float_type=float_type)), folder / "model.onnx")
    (folder / "out").mkdir()
    free = {
        value.name: [axis.dim_value or -1 for axis in value.type.tensor_type.shape.dim]
        for value in onnx.load(folder / "model.onnx").graph.input
    }
    shapes = {
        name: ShapeRange(*(tuple(n if n > 0 else tokens for n in axes) for tokens in (1, 40, 40)))
        for name, axes in free.items()
    }
    return EngineRequest(
        flavour="tensorrt-rtx",
        graph=folder / "model.onnx",
        engine=folder / "out" / "model.engine",
        shapes=shapes,
        precision=float_type,
        compute_capability=120,
        plugin_library=plugin,
        custom_nodes={"TcDualRope": 2, "TcBlockCausalAttention": 1},
    )


def test_plugins_are_counted_by_their_ops(host_plugin: Path, tmp_path: Path) -> None:
    request = layer_request(tmp_path, host_plugin, "bfloat16")
    report = build_engine(request, ignore)
    assert report.plugin_layers == {"TcBlockCausalAttention": 1, "TcDualRope": 2}
    assert report.precision == "bfloat16"
    with pytest.raises(
        UnsupportedEnvironment, match=r"TcDualRope': 2.*has custom nodes.*TcDualRope': 3"
    ):
        build_engine(
            replace(request, custom_nodes={"TcDualRope": 3, "TcBlockCausalAttention": 1}), ignore
        )


def test_what_a_plugin_refuses_is_told(host_plugin: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="TcDualRope: x is float32, but must be float16"):
        build_engine(layer_request(tmp_path, host_plugin, "float32"), ignore)


def test_a_library_that_has_no_plugins(tmp_path: Path) -> None:
    need("cc", package="gcc")
    source, library = tmp_path / "other.c", tmp_path / "libother.so"
    source.write_text("int other(void) { return 1; }")
    run("cc", "-shared", "-fPIC", "-o", library, source)
    request = layer_request(tmp_path, library)
    with pytest.raises(
        UnsupportedEnvironment, match=r"cannot load the plugin library .*libother.so"
    ):
        build_engine(request, ignore)
    assert left(request) == []


def test_a_library_whose_end_is_missing_kills_the_worker_alone(
    host_plugin: Path, tmp_path: Path
) -> None:
    library = tmp_path / "libhalf.so"
    library.write_bytes(host_plugin.read_bytes()[:4096])
    request = layer_request(tmp_path, library)
    with pytest.raises(TcExportError, match=r"died \(SIGBUS\) before there was an engine"):
        build_engine(request, ignore)
    assert left(request) == []


def test_nodes_without_their_library(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot parse"):
        build_engine(layer_request(tmp_path, None), ignore)


@pytest.fixture(scope="session")
def demo(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, ModelConfig]:
    """Graphs of the demo model in float16, with random weights, and its configuration."""
    folder = tmp_path_factory.mktemp("demo")
    tokenizer = make_tokenizer()
    model = new_model(tiny_model(len(tokenizer)), seed=1)
    write_checkpoint(model, tokenizer, folder / "checkpoint", card={})
    checkpoint = open_checkpoint(folder / "checkpoint")
    for name in GRAPHS:
        export_graph(name, checkpoint, DType.FLOAT16, folder)
    return folder, checkpoint.config.model


@pytest.mark.slow
def test_both_engines_of_the_demo_model(
    demo: tuple[Path, ModelConfig],
    cuda_plugin: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder, config = demo
    layers = config.text.num_hidden_layers

    def build(engine: str, graph: str) -> EngineReport:
        vision = graph == "vision"
        shapes = vision_shapes(config, MAX_FRAMES) if vision else decoder_shapes(config, MAX_LENGTH)
        request = EngineRequest(
            flavour="tensorrt-rtx",
            graph=folder / graph_path(graph),
            engine=tmp_path / engine,
            shapes=shapes,
            precision="float16",
            compute_capability=89,
            plugin_library=None if vision else cuda_plugin,
            custom_nodes={}
            if vision
            else {"TcDualRope": 2 * layers, "TcBlockCausalAttention": layers},
        )
        return build_engine(request, ignore)

    vision, decoder = build("vision", "vision"), build("decoder", "decoder")
    assert decoder.plugin_layers == {"TcDualRope": 2 * layers, "TcBlockCausalAttention": layers}
    assert vision.plugin_layers == {}
    for report in (vision, decoder):
        assert report.precision == "float16"
        assert report.layers == sum(sum(types.values()) for types in report.layer_types.values())

    # Neither the folder nor the environment has a part in the engine.
    monkeypatch.setenv("ANOTHER_VARIABLE", "long " * 1000)
    (tmp_path / "another folder").mkdir()
    build("another folder/vision", "vision")
    build("another folder/decoder", "decoder")
    need_fixed_addresses()
    for graph in ("vision", "decoder"):
        again = tmp_path / "another folder" / graph
        assert digest(again) == digest(tmp_path / graph), graph


def digest(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()
