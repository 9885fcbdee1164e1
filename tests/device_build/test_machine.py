# SPDX-License-Identifier: Apache-2.0
"""`finish` with the device's real runtime over a fake TensorRT that computes with ONNX Runtime."""

from __future__ import annotations

import platform
import sys
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest

from tc_export.bundle import EngineState, verify
from tc_export.device_build.finish import Tools, finish
from tc_export.device_build.machine import this_machine
from tc_export.device_build.spec import EngineSpec, read_spec
from tc_export.engine.tensorrt import cuda
from tc_export.engine.tensorrt.cuda import BINDINGS
from tc_export.errors import CheckFailed, UnsupportedEnvironment
from tests.device_build.conftest import PLUGIN
from tests.device_build.fake_tools import FakeTools, exported_graph
from tests.engine.tensorrt.fake_cuda import FakeCuda, FakeDriver
from tests.engine.tensorrt.fake_runtime import Arrays, DataType, FakeTensorRt, Input, Model, Output

TYPES = {
    "tensor(float16)": DataType.HALF,
    "tensor(int32)": DataType.INT32,
    "tensor(int64)": DataType.INT64,
}
CHANNELS, VOCABULARY, TOKENS_PER_FRAME = 40, 96, 4


class Jetson:
    """A machine with TensorRT 10.3 and a GPU of SM 87."""

    def __init__(self, bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.cuda = FakeCuda(sm=87)
        self.trt = FakeTensorRt(self.cuda, "10.3.0")
        for name, module in (
            ("tensorrt_bindings", None),
            ("tensorrt", self.trt),
            (BINDINGS, self.cuda),
        ):
            monkeypatch.setitem(sys.modules, name, module)  # type: ignore[arg-type]
        monkeypatch.setattr(cuda, "open_driver", lambda: FakeDriver(self.cuda))
        spec = read_spec(bundle)
        for name, graph in spec.graphs.items():
            self.trt.models[f"built from {name}".encode()] = model_of(bundle, graph)
        # The engines are judged before the bundle is published, so beside it.
        staged = bundle.with_name(f".{bundle.name}.building") / "bundle" / PLUGIN
        self.trt.loadable_plugins |= {str(staged), str(bundle / PLUGIN)}


def model_of(bundle: Path, graph: EngineSpec) -> Model:
    session = ort.InferenceSession(exported_graph(bundle / graph.graph))
    given, made = session.get_inputs(), session.get_outputs()

    def compute(feeds: Arrays) -> Arrays:
        names = [x.name for x in made]
        return dict(zip(names, session.run(names, feeds), strict=True))

    def shape_of(name: str) -> Output:
        if name == "visual_features":
            return Output(
                DataType.HALF,
                lambda shapes: (shapes["pixel_values"][0], TOKENS_PER_FRAME, CHANNELS),
                3,
            )
        if name == "logits":
            return Output(DataType.HALF, lambda shapes: (*shapes["logits_indices"], VOCABULARY), 3)
        cache = graph.shapes["past_key_values.0.key"].usual
        return Output(DataType.HALF, lambda shapes: cache, 4)

    return Model(
        inputs={
            x.name: Input(
                TYPES[x.type], graph.shapes[x.name].smallest, graph.shapes[x.name].largest
            )
            for x in given
        },
        outputs={x.name: shape_of(x.name) for x in made},
        compute=compute,
        needs_plugins=bool(graph.custom_nodes),
    )


@pytest.fixture
def jetson(pending: Path, monkeypatch: pytest.MonkeyPatch) -> Jetson:
    return Jetson(pending, monkeypatch)


def test_finishes_with_the_device_s_own_runtime(pending: Path, jetson: Jetson) -> None:
    machine = this_machine(read_spec(pending))
    assert (machine.architecture, machine.tensorrt, machine.sm) == (
        platform.machine(),
        "10.3.0",
        87,
    )
    tools = Tools(build_engine=FakeTools().build)
    manifest = finish(pending, machine, tools)
    assert manifest.engine is not None
    assert manifest.engine.state is EngineState.BUILT
    assert not verify(pending)
    assert finish(pending, machine, tools) == manifest
    assert not jetson.cuda.live()


def test_a_wrong_engine_is_found_there_too(pending: Path, jetson: Jetson) -> None:
    right = jetson.trt.models[b"built from decoder"]

    def compute(feeds: Arrays) -> Arrays:
        results = right.compute(feeds)
        return results | {"logits": np.roll(results["logits"], 1, axis=1)}

    wrong = Model(inputs=right.inputs, outputs=right.outputs, compute=compute, needs_plugins=True)
    jetson.trt.models[b"built from decoder"] = wrong
    with pytest.raises(CheckFailed, match="decoder engine does not compute"):
        finish(pending, this_machine(read_spec(pending)), Tools(build_engine=FakeTools().build))


def test_plugins_that_do_not_load(pending: Path, jetson: Jetson) -> None:
    jetson.trt.loadable_plugins.clear()
    with pytest.raises(UnsupportedEnvironment, match="cannot load the plugins"):
        finish(pending, this_machine(read_spec(pending)), Tools(build_engine=FakeTools().build))
    assert not verify(pending)
