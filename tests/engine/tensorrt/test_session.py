# SPDX-License-Identifier: Apache-2.0
"""A decoder on the TensorRT engine, whose kernel is the PyTorch model: what reaches it, and when.

The engine's shapes are those that the builder gives real engines.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
import torch

from tc_export.config import ModelConfig
from tc_export.contracts.graph_io import decoder_inputs, names
from tc_export.contracts.parts import Part
from tc_export.contracts.shapes import ShapeRange, decoder_shapes, vision_shapes
from tc_export.engine.interface import Engine
from tc_export.engine.onnxruntime import OrtEngine
from tc_export.engine.parted import PartedEngine
from tc_export.engine.session import DecoderSession
from tc_export.engine.tensorrt.buffers import DeviceArray
from tc_export.engine.tensorrt.flavours import FLAVOURS, TENSORRT
from tc_export.engine.tensorrt.parted import TrtPartedEngine
from tc_export.engine.tensorrt.run import TensorRtRuntime, TrtEngine
from tc_export.errors import UsageError
from tc_export.graph.parts import cut_decoder
from tc_export.model.positions import Clip, Segment, Text
from tc_export.parity.torch_engine import TorchDecoderEngine, TorchVisionEngine
from tests.engine import sessions
from tests.engine.tensorrt.fake_cuda import FakeCuda
from tests.engine.tensorrt.fake_runtime import DataType, FakeTensorRt, Input, Model, Output
from tests.exported import Exported

ROWS = 60
INTEGERS = ("position_ids", "temporal_ids", "kv_end", "logits_indices")


class Machine:
    """A machine with an engine for a small model's decoder, computed in float64."""

    def __init__(self, folder: Path, exported: Exported) -> None:
        self.cuda = FakeCuda()
        self.trt = FakeTensorRt(self.cuda)
        self.torch = exported.checkpoint.load_model(torch.float64)
        self.trt.models[b"decoder"] = decoder(exported.config, TorchDecoderEngine(self.torch))
        self.trt.models[b"vision"] = vision(exported.config, TorchVisionEngine(self.torch))
        self.folder = folder

    def runtime(self) -> TensorRtRuntime:
        return TensorRtRuntime(FLAVOURS[TENSORRT], self.trt, self.cuda, self.cuda.sm)

    def engine(self, name: str, runtime: TensorRtRuntime | None = None) -> TrtEngine:
        path = self.folder / f"{name}.engine"
        path.write_bytes(name.encode())
        return TrtEngine(path, runtime or self.runtime())


def decoder(config: ModelConfig, kernel: Engine) -> Model:
    inputs = {
        name: Input(
            DataType.INT64 if name in INTEGERS else DataType.FLOAT, range_.smallest, range_.largest
        )
        for name, range_ in decoder_shapes(config, ROWS).items()
    }
    outputs = {
        "logits": Output(
            DataType.FLOAT,
            lambda shapes: (*shapes["logits_indices"], config.text.vocab_size),
            3,
        )
    }
    for name in inputs:
        if name.startswith("past_key_values"):
            present = name.replace("past_key_values", "present")
            outputs[present] = Output(DataType.FLOAT, lambda shapes, name=name: shapes[name], 4)
    return Model(inputs=inputs, outputs=outputs, compute=kernel.run)


def vision(config: ModelConfig, kernel: Engine) -> Model:
    (range_,) = vision_shapes(config, 8).values()
    tail = (config.tokens_per_frame, config.text.hidden_size)
    return Model(
        inputs={"pixel_values": Input(DataType.FLOAT, range_.smallest, range_.largest)},
        outputs={
            "visual_features": Output(
                DataType.FLOAT, lambda shapes: (shapes["pixel_values"][0], *tail), 3
            )
        },
        compute=kernel.run,
    )


@pytest.fixture
def machine(tmp_path: Path, exported: Exported) -> Machine:
    return Machine(tmp_path, exported)


def prompt(config: ModelConfig) -> tuple[list[Segment], np.ndarray]:
    segments: list[Segment] = [Text(3), Clip(5, config.tokens_per_frame), Text(4)]
    length = sum(segment.length for segment in segments)
    embeds = np.random.default_rng(3).standard_normal((length, config.text.hidden_size))
    return segments, embeds


def close(actual: np.ndarray, expected: np.ndarray) -> None:
    """Both sides compute in float64; inputs, cache and logits pass through float32 here."""
    np.testing.assert_allclose(actual, expected, rtol=0, atol=2e-5 * np.abs(expected).max())


@pytest.mark.parametrize("chunk_tokens", [4, 7, 1000])
def test_chunks_and_steps_equal_pytorch_at_once(
    exported: Exported, machine: Machine, chunk_tokens: int
) -> None:
    """Prefill in chunks, then decode, which is replayed as a graph."""
    config = exported.config
    segments, embeds = prompt(config)
    engine = machine.engine("decoder")
    actual = DecoderSession(engine, config, ROWS, chunk_tokens)
    expected = DecoderSession(TorchDecoderEngine(machine.torch), config, ROWS, 1000)
    close(actual.prefill(embeds, segments), expected.prefill(embeds, segments))
    replayed_before = machine.cuda.launches
    for token in range(6):
        embed = embeds[token] + token
        close(actual.step(embed), expected.step(embed))
    # The first step runs plainly, unless the prompt's last chunk was a single token too.
    assert machine.cuda.launches - replayed_before in (5, 6)
    assert engine.graph_capture == "captured"


def test_the_cache_stays_where_it_is(exported: Exported, machine: Machine) -> None:
    """One allocation for each part, filled in place; no output is handed out for it."""
    engine = machine.engine("decoder")
    session = DecoderSession(engine, exported.config, ROWS)
    parts = 2 * exported.config.text.num_hidden_layers
    assert machine.cuda.allocations == parts
    segments, embeds = prompt(exported.config)
    session.prefill(embeds, segments)
    for cache in session.cache.buffers.values():
        rows = np.abs(cache.numpy()).sum(axis=(0, 1, 3))
        assert (rows[: len(embeds)] > 0).all()
        assert (rows[len(embeds) :] == 0).all()


def test_two_sessions_do_not_share_a_cache(exported: Exported, machine: Machine) -> None:
    engine = machine.engine("decoder")
    segments, embeds = prompt(exported.config)
    answers = []
    for _ in range(2):
        session = DecoderSession(engine, exported.config, ROWS)
        session.prefill(embeds, segments)
        answers.append([session.step(embeds[token]) for token in range(4)])
    np.testing.assert_array_equal(answers[0], answers[1])


def test_a_session_of_fewer_rows_than_the_engine(exported: Exported, machine: Machine) -> None:
    """The engine takes its own number of rows and no other; the session keeps to what it asked."""
    segments, embeds = prompt(exported.config)
    engine = machine.engine("decoder")
    session = DecoderSession(engine, exported.config, len(embeds))
    assert {buffer.shape[2] for buffer in session.cache.buffers.values()} == {ROWS}
    session.prefill(embeds, segments)
    with pytest.raises(UsageError, match=f"the cache holds {len(embeds)}"):
        session.step(embeds[0])


def test_more_rows_than_the_engine_holds(exported: Exported, machine: Machine) -> None:
    with pytest.raises(UsageError, match=f"cache of {ROWS + 1} tokens .* engine holds {ROWS}"):
        DecoderSession(machine.engine("decoder"), exported.config, ROWS + 1)


def test_vision_in_calls_of_several_sizes(exported: Exported, machine: Machine) -> None:
    engine = machine.engine("vision")
    size = exported.config.vision.image_size
    random = np.random.default_rng(5)
    for frames in (8, 8, 3, 1):
        feeds = {"pixel_values": random.standard_normal((frames, 3, size, size), "f")}
        expected = TorchVisionEngine(machine.torch).run(feeds)["visual_features"]
        close(engine.run(feeds)["visual_features"], expected)
    with pytest.raises(UsageError, match=r"built for \[1, 3, .* to \[8, 3"):
        engine.run({"pixel_values": np.zeros((9, 3, size, size))})


@pytest.mark.parametrize("check", sessions.CHECKS)
def test_sessions_of_one_engine(
    check: Callable[[Engine, ModelConfig], None], exported: Exported, machine: Machine
) -> None:
    check(machine.engine("decoder"), exported.config)


def test_a_cache_is_not_stolen(exported: Exported, machine: Machine) -> None:
    sessions.check_not_stolen(machine.engine("decoder"), exported.config, machine.engine("decoder"))


def test_activating_a_cache_copies_nothing(exported: Exported, machine: Machine) -> None:
    """Two sessions turn about: addresses change, and no cache moves between device buffers."""
    engine = machine.engine("decoder")
    segments, embeds = prompt(exported.config)
    pair = [DecoderSession(engine, exported.config, ROWS) for _ in range(2)]
    for session in pair:
        session.prefill(embeds, segments)
    before = machine.cuda.device_copies
    for token in range(3):
        for session in pair:
            session.step(embeds[token])
    assert machine.cuda.device_copies == before
    pair[0].fork()
    assert machine.cuda.device_copies == before + len(pair[0].cache.buffers)


CUT = (Part(0, 1), Part(1, 2))


@pytest.fixture(params=["one stream", "two streams"])
def parted(request: pytest.FixtureRequest, exported: Exported, machine: Machine) -> PartedEngine:
    """The decoder as two engines, each computing what its part of the graph does."""
    if request.param == "two streams":
        return PartedEngine(engines_of_parts(exported, machine, None))
    return one_graph(exported, machine)


def one_graph(exported: Exported, machine: Machine) -> TrtPartedEngine:
    runtime = machine.runtime()
    return TrtPartedEngine(engines_of_parts(exported, machine, runtime), runtime)


def engines_of_parts(
    exported: Exported, machine: Machine, runtime: TensorRtRuntime | None
) -> list[TrtEngine]:
    graph = exported.graph("decoder")
    shapes = decoder_shapes(exported.config, ROWS)
    parts = []
    for index, (part, model) in enumerate(
        zip(CUT, cut_decoder(graph, exported.config, CUT), strict=True)
    ):
        kernel = OrtEngine(graph, rewritten=ir.to_proto(model).SerializeToString(), threads=1)
        inputs = {
            name: Input(
                DataType.INT64 if name in INTEGERS else DataType.FLOAT,
                *ends(shapes, name, exported.config),
            )
            for name in names(decoder_inputs(exported.config, part.layers))
        }
        outputs = {name: output_of(name, exported.config) for name in kernel.outputs}
        machine.trt.models[f"decoder-{index}".encode()] = Model(
            inputs=inputs, outputs=outputs, compute=kernel.run
        )
        parts.append(machine.engine(f"decoder-{index}", runtime))
    return parts


def test_a_step_is_one_graph_over_all_parts(exported: Exported, machine: Machine) -> None:
    """The first step runs plainly, the second is captured; both parts' work is in one launch."""
    parted = one_graph(exported, machine)
    segments, embeds = prompt(exported.config)
    session = DecoderSession(parted, exported.config, ROWS)
    session.prefill(embeds, segments)
    assert parted.graph_capture == "waiting for two calls alike"
    for token in range(2):
        session.step(embeds[token])
    assert parted.graph_capture == "captured"
    before = machine.cuda.launches
    session.step(embeds[2])
    assert machine.cuda.launches == before + 1
    other = DecoderSession(parted, exported.config, ROWS)  # another cache: recorded addresses go
    other.prefill(embeds, segments)
    assert parted.graph_capture == "waiting for two calls alike"


def test_positions_are_copied_to_the_gpu_once(exported: Exported, machine: Machine) -> None:
    """The second part reads them where the first has them."""
    parted = one_graph(exported, machine)
    session = DecoderSession(parted, exported.config, ROWS)
    segments, embeds = prompt(exported.config)
    session.prefill(embeds, segments)
    whole = DecoderSession(machine.engine("decoder"), exported.config, ROWS)
    whole.prefill(embeds, segments)
    before = machine.cuda.copies_in
    whole.step(embeds[0])
    of_whole, before = machine.cuda.copies_in - before, machine.cuda.copies_in
    session.step(embeds[0])
    assert machine.cuda.copies_in - before == of_whole


@pytest.mark.parametrize("rtx", [False, True])
def test_tensorrt_rtx_records_each_part_itself(
    rtx: bool, exported: Exported, machine: Machine
) -> None:
    machine.trt = FakeTensorRt(machine.cuda, rtx=rtx) if rtx else machine.trt
    parted = one_graph(exported, machine)
    assert parted.graph_capture.startswith("by TensorRT" if rtx else "waiting")


def ends(
    shapes: dict[str, ShapeRange], name: str, config: ModelConfig
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Smallest and largest shape; hidden states are as embeddings."""
    known = shapes["inputs_embeds" if name.startswith("hidden_states") else name]
    return known.smallest, known.largest


def output_of(name: str, config: ModelConfig) -> Output:
    if name == "logits":
        size = config.text.vocab_size
        return Output(DataType.FLOAT, lambda shapes: (*shapes["logits_indices"], size), 3)
    if name.startswith("hidden_states"):
        size = config.text.hidden_size
        return Output(DataType.FLOAT, lambda shapes: (*shapes["position_ids"], size), 3)
    past = name.replace("present", "past_key_values")
    return Output(DataType.FLOAT, lambda shapes: shapes[past], 4)


def test_parts_hand_over_on_the_device(
    exported: Exported, machine: Machine, parted: PartedEngine
) -> None:
    """As the whole engine computes; hidden states of a step never come to the host."""
    config = exported.config
    segments, embeds = prompt(config)
    whole = DecoderSession(machine.engine("decoder"), config, ROWS)
    session = DecoderSession(parted, config, ROWS)
    close(session.prefill(embeds, segments), whole.prefill(embeds, segments))
    for token in range(4):
        before = machine.cuda.host_bytes
        found = session.step(embeds[token])
        logits = config.text.vocab_size * 4
        assert machine.cuda.host_bytes - before == logits  # and nothing else came back
        close(found, whole.step(embeds[token]))


@pytest.mark.parametrize("check", sessions.CHECKS)
def test_sessions_of_a_parted_engine(
    check: Callable[[Engine, ModelConfig], None], exported: Exported, parted: PartedEngine
) -> None:
    check(parted, exported.config)


def test_a_device_array_of_another_type_is_refused(
    exported: Exported, machine: Machine, parted: PartedEngine
) -> None:
    engine = machine.engine("decoder-1")
    runtime = machine.runtime()
    memory = runtime.stream.allocate(400)
    shape = (1, 1, exported.config.text.hidden_size)
    wrong = DeviceArray(memory, shape, np.dtype(np.float16), runtime.stream)
    feeds = {
        name: np.zeros((1, 1)) for name in engine.inputs if not name.startswith(("hidden", "past"))
    }
    for name, buffer in engine.new_cache(ROWS).buffers.items():
        engine.bind(f"past_key_values.{name}", buffer)
    with pytest.raises(ValueError, match="float32, and given is float16"):
        engine.run(feeds | {"hidden_states.1": wrong})  # type: ignore[dict-item]
