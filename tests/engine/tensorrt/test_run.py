# SPDX-License-Identifier: Apache-2.0
"""The TensorRT engine on a fake of CUDA and TensorRT: memory, binding, shapes, graphs, errors."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tc_export.dtypes import BFLOAT16
from tc_export.engine.tensorrt.flavours import FLAVOURS, TENSORRT, TENSORRT_RTX
from tc_export.engine.tensorrt.run import TensorRtRuntime, TrtBuffer, TrtEngine
from tc_export.errors import BundleError, TcExportError, UnsupportedEnvironment, UsageError
from tests.engine.tensorrt.fake_cuda import FakeCuda, Misuse
from tests.engine.tensorrt.fake_runtime import Arrays, DataType, FakeTensorRt, Input, Model, Output

CHANNELS = 4
MOST_ROWS = 8


def toy(float_type: DataType = DataType.FLOAT, *, capturable: bool = True) -> Model:
    """y = x + offset, row by row; and `sum_out` = `sum_in` + all of x, the state of the engine."""

    def compute(given: Arrays) -> Arrays:
        return {
            "y": given["x"] + given["offset"][:, None].astype(given["x"].dtype),
            "sum_out": given["sum_in"] + given["x"].sum(),
        }

    return Model(
        inputs={
            "x": Input(float_type, (1, CHANNELS), (MOST_ROWS, CHANNELS)),
            "offset": Input(DataType.INT64, (1,), (MOST_ROWS,)),
            "sum_in": Input(float_type, (1, 3), (1, 3)),
        },
        outputs={
            "y": Output(float_type, lambda shapes: shapes["x"], 2),
            "sum_out": Output(float_type, lambda shapes: (1, 3), 2),
        },
        compute=compute,
        capturable=capturable,
    )


class Lab:
    """A machine with one engine file."""

    def __init__(self, folder: Path, *, rtx: bool = False, memory_bytes: int = 1 << 20) -> None:
        self.cuda = FakeCuda(memory_bytes=memory_bytes)
        self.trt = FakeTensorRt(self.cuda, rtx=rtx)
        self.flavour = FLAVOURS[TENSORRT_RTX if rtx else TENSORRT]
        self.path = folder / "model.engine"
        self.path.write_bytes(b"toy")
        self.trt.models[b"toy"] = toy()

    def engine(self, model: Model | None = None) -> TrtEngine:
        self.trt.models[b"toy"] = model or toy()
        return TrtEngine(self.path, self.runtime())

    def runtime(self) -> TensorRtRuntime:
        return TensorRtRuntime(self.flavour, self.trt, self.cuda, self.cuda.sm)

    @property
    def plain_runs(self) -> int:
        return self.trt.contexts[-1].plain_runs


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Lab]:
    """What was made is given back as soon as nobody holds it; twice would be a `Misuse`."""
    lab = Lab(tmp_path)
    yield lab
    lab.trt.contexts.clear()
    assert lab.cuda.live() == []


def feeds(rows: int, start: float = 0.0) -> dict[str, np.ndarray]:
    x = np.arange(rows * CHANNELS, dtype=np.float32).reshape(rows, CHANNELS) + start
    return {"x": x, "offset": np.arange(rows) * 100}


def expected_y(given: dict[str, np.ndarray]) -> np.ndarray:
    return given["x"] + given["offset"][:, None]


def with_state(lab: Lab, model: Model | None = None) -> TrtEngine:
    """An engine whose state is one buffer, input and output at once."""
    engine = lab.engine(model)
    state = engine.allocate("sum_in", (1, 3))
    engine.bind("sum_in", state)
    engine.bind("sum_out", state)
    return engine


def test_what_the_engine_says_of_itself(lab: Lab) -> None:
    """An axis with one size in the profile has that size; others are dynamic."""
    engine = lab.engine()
    assert engine.backend == "TensorRT 10.3.0, SM 89"
    assert [*engine.inputs] == ["x", "offset", "sum_in"]
    assert [*engine.outputs] == ["y", "sum_out"]
    assert engine.inputs["x"].shape == ("axis 0", CHANNELS)
    assert engine.inputs["sum_in"].shape == (1, 3)
    assert engine.inputs["offset"].dtype == np.int64


def test_all_tensors_can_be_fed_and_fetched(lab: Lab) -> None:
    given = feeds(3)
    results = lab.engine().run(given | {"sum_in": np.ones((1, 3), np.float32)})
    np.testing.assert_array_equal(results["y"], expected_y(given))
    np.testing.assert_array_equal(results["sum_out"], np.full((1, 3), 1 + given["x"].sum()))


def test_a_buffer_bound_twice_is_updated_in_place(lab: Lab) -> None:
    engine = lab.engine()
    state = engine.allocate("sum_in", (1, 3))
    assert (state.numpy() == 0).all()
    state.write(np.full((1, 3), 5, np.float32))
    engine.bind("sum_in", state)
    engine.bind("sum_out", state)
    for _ in range(4):
        assert engine.run(feeds(2)).keys() == {"y"}
    np.testing.assert_array_equal(state.numpy(), np.full((1, 3), 5 + 4 * feeds(2)["x"].sum()))


@given(calls=st.lists(st.integers(1, MOST_ROWS), min_size=1, max_size=12))
def test_any_order_of_shapes(tmp_path_factory: pytest.TempPathFactory, calls: list[int]) -> None:
    """Buffers grow and graphs come and go; results and state are those of the plain sums."""
    lab = Lab(tmp_path_factory.mktemp("lab"))
    engine = lab.engine()
    state = engine.allocate("sum_in", (1, 3))
    engine.bind("sum_in", state)
    engine.bind("sum_out", state)
    total = 0.0
    for number, rows in enumerate(calls):
        given = feeds(rows, start=number)
        np.testing.assert_array_equal(engine.run(given)["y"], expected_y(given))
        total += given["x"].sum()
    np.testing.assert_array_equal(state.numpy(), np.full((1, 3), total))
    changes = 1 + sum(before != after for before, after in pairwise(calls))
    assert lab.plain_runs == changes
    assert lab.cuda.launches == len(calls) - changes


def test_memory_is_kept_until_a_larger_call(lab: Lab) -> None:
    engine = with_state(lab)
    counts = []
    for rows in (2, 2, 1, 2, 5, 5, 1, 8):
        engine.run(feeds(rows))
        counts.append(lab.cuda.allocations)
    assert counts == [4, 4, 4, 4, 7, 7, 7, 10]  # one for the state; x, offset and y each time


def test_decoding_is_replayed(lab: Lab) -> None:
    """The first call of a shape is plain, the second is captured, and launched as all later."""
    engine = with_state(lab)
    engine.run(feeds(5))
    assert engine.graph_capture == "waiting for two calls alike"
    for step in range(6):
        given = feeds(1, start=step)
        np.testing.assert_array_equal(engine.run(given)["y"], expected_y(given))
    assert engine.graph_capture == "captured"
    assert lab.plain_runs == 2
    assert lab.cuda.launches == 5


def test_rebinding_drops_the_graph(lab: Lab) -> None:
    """What was recorded writes to the old buffer, which the new one must not look like."""
    engine = with_state(lab)
    for _ in range(3):
        engine.run(feeds(1))
    fresh = engine.allocate("sum_in", (1, 3))
    engine.bind("sum_in", fresh)
    engine.bind("sum_out", fresh)
    assert engine.run(feeds(1)).keys() == {"y"}
    np.testing.assert_array_equal(fresh.numpy(), np.full((1, 3), feeds(1)["x"].sum()))
    assert (lab.plain_runs, lab.cuda.launches) == (2, 2)


def test_the_old_buffer_is_freed_when_it_is_replaced(lab: Lab) -> None:
    engine = lab.engine()
    for _ in range(3):
        engine.bind("sum_in", engine.allocate("sum_in", (1, 3)))
    assert lab.cuda.live().count("memory") == 1


def test_memory_of_a_tensor_that_is_bound_later_is_freed(lab: Lab) -> None:
    engine = lab.engine()
    engine.run(feeds(1) | {"sum_in": np.zeros((1, 3))})
    before = lab.cuda.live().count("memory")
    engine.bind("sum_in", engine.allocate("sum_in", (1, 3)))
    assert lab.cuda.live().count("memory") == before


def test_shapes_of_which_one_is_refused(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    """The context has taken x and not offset: the next call tells it everything again."""
    engine = with_state(lab)
    engine.run(feeds(2))
    context = lab.trt.contexts[-1]
    taken = context.set_input_shape
    with monkeypatch.context() as patch:
        patch.setattr(context, "set_input_shape", lambda name, to: name == "x" and taken(name, to))
        with pytest.raises(TcExportError, match=r"does not take offset as \[3\]"):
            engine.run(feeds(3))
    given = feeds(2)
    np.testing.assert_array_equal(engine.run(given)["y"], expected_y(given))


def test_addresses_of_which_one_is_refused(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    """The context has taken the new input buffer: going back to the old one tells it again."""
    engine = lab.engine()
    buffers = [engine.allocate("sum_in", (1, 3)) for _ in range(2)]

    def bind(buffer: TrtBuffer) -> None:
        engine.bind("sum_in", buffer)
        engine.bind("sum_out", buffer)

    bind(buffers[0])
    engine.run(feeds(1))
    context = lab.trt.contexts[-1]
    taken = context.set_tensor_address
    with monkeypatch.context() as patch:
        patch.setattr(
            context, "set_tensor_address", lambda name, to: name != "sum_out" and taken(name, to)
        )
        bind(buffers[1])
        with pytest.raises(TcExportError, match="address of sum_out"):
            engine.run(feeds(1))
    bind(buffers[0])
    engine.run(feeds(1))
    np.testing.assert_array_equal(buffers[0].numpy(), np.full((1, 3), 2 * feeds(1)["x"].sum()))


def test_a_capture_that_fails_is_told_once(lab: Lab, caplog: pytest.LogCaptureFixture) -> None:
    """Plain execution goes on, with the reason; the failed call leaves no error behind."""
    engine = with_state(lab, toy(capturable=False))
    for step in range(5):
        given = feeds(1, start=step)
        np.testing.assert_array_equal(engine.run(given)["y"], expected_y(given))
    assert engine.graph_capture.startswith("off: TensorRT 10.3.0 failed to run the engine")
    assert "operation not permitted when stream is capturing" in engine.graph_capture
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "without a CUDA graph" in caplog.text
    assert (lab.plain_runs, lab.cuda.launches) == (5, 0)


def test_rtx_captures_by_itself(tmp_path: Path) -> None:
    lab = Lab(tmp_path, rtx=True)
    engine = with_state(lab)
    for _ in range(4):
        engine.run(feeds(1))
    config = lab.trt.contexts[-1].config
    assert config is not None
    assert config.cuda_graph_strategy.name == "WHOLE_GRAPH_CAPTURE"
    assert engine.graph_capture == "by TensorRT-RTX 10.3.0"
    assert (lab.plain_runs, lab.cuda.launches) == (4, 0)


def test_bfloat16_is_fed_and_handed_out_as_float32(lab: Lab) -> None:
    engine = with_state(lab, toy(DataType.BF16))
    assert engine.inputs["x"].dtype == BFLOAT16
    given = {"x": np.full((2, CHANNELS), 1.00390625, np.float32), "offset": np.array([0, 1])}
    y = engine.run(given)["y"]
    assert y.dtype == np.float32
    # 1 + 2^-8 lies half-way between two bfloat16 numbers, and goes to the even one.
    np.testing.assert_array_equal(y, [[1.0] * CHANNELS, [2.0] * CHANNELS])
    state = engine.allocate("sum_in", (1, 3))
    state.write(np.array([[0.5, 1.0078125, -3]], np.float32))
    np.testing.assert_array_equal(state.numpy(), np.array([[0.5, 1.0078125, -3]], np.float32))
    assert state.memory.nbytes == 6


def test_float16_feeds_are_converted_and_need_not_be_contiguous(lab: Lab) -> None:
    engine = with_state(lab, toy(DataType.HALF))
    x = np.arange(2.0 * CHANNELS).reshape(CHANNELS, 2).T
    y = engine.run({"x": x, "offset": np.array([1, 2], np.int32)})["y"]
    assert y.dtype == np.float16
    np.testing.assert_array_equal(y, x + np.array([[1], [2]]))


@pytest.mark.parametrize(
    ("shape", "said"),
    [
        ((9, CHANNELS), r"x is \[9, 4\]; the engine was built for \[1, 4\] to \[8, 4\]"),
        ((0, CHANNELS), r"x is \[0, 4\]"),
        ((2, 5), r"x is \[2, 5\]"),
        ((CHANNELS,), r"x is \[4\]"),
    ],
)
def test_a_shape_outside_the_profile(lab: Lab, shape: tuple[int, ...], said: str) -> None:
    engine = with_state(lab)
    given = feeds(2)
    with pytest.raises(UsageError, match=said):
        engine.run({"x": np.zeros(shape), "offset": given["offset"]})
    np.testing.assert_array_equal(engine.run(given)["y"], expected_y(given))


def test_feeds_of_wrong_names(lab: Lab) -> None:
    engine = with_state(lab)
    with pytest.raises(ValueError, match="neither given nor bound: offset"):
        engine.run({"x": feeds(1)["x"]})
    with pytest.raises(ValueError, match="bound or no inputs: sum_in, z"):
        engine.run(feeds(1) | {"z": np.zeros(1), "sum_in": np.zeros((1, 3))})


def test_buffers_that_do_not_fit(lab: Lab) -> None:
    engine = lab.engine()
    with pytest.raises(UsageError, match="sum_in is"):
        engine.bind("sum_in", engine.allocate("sum_in", (1, 4)))
    with pytest.raises(ValueError, match="offset is int64"):
        engine.bind("offset", engine.allocate("x", (1, 4)))
    with pytest.raises(ValueError, match="for a buffer"):
        engine.allocate("x", (1, 4)).write(np.zeros((2, 4), np.float32))


def test_memory_that_is_used_up(tmp_path: Path) -> None:
    """Said plainly; and what there is stays usable."""
    lab = Lab(tmp_path, memory_bytes=200)
    engine = with_state(lab)
    with pytest.raises(
        UnsupportedEnvironment, match=r"cudaMalloc\(64\) failed: .*cudaErrorMemoryAllocation"
    ) as caught:
        engine.run(feeds(8))
    assert "--max-length" in str(caught.value.hint)
    given = feeds(1)
    np.testing.assert_array_equal(engine.run(given)["y"], expected_y(given))


def test_an_engine_that_fails_while_it_runs(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = with_state(lab)
    monkeypatch.setattr(lab.cuda, "launch_kernel", lambda *args, **options: False)
    with pytest.raises(TcExportError, match=r"TensorRT 10.3.0 failed to run .*not permitted"):
        engine.run(feeds(1))


@pytest.mark.parametrize("content", [b"", b"not an engine"])
def test_a_file_that_is_no_engine(lab: Lab, content: bytes) -> None:
    lab.path.write_bytes(content)
    with pytest.raises(BundleError, match=r"model\.engine"):
        lab.engine()


def test_each_failure_has_its_own_words(lab: Lab) -> None:
    runtime = lab.runtime()
    lab.path.write_bytes(b"not an engine")
    for _ in range(2):
        with pytest.raises(BundleError) as caught:
            TrtEngine(lab.path, runtime)
        assert str(caught.value).count("magicTag failed") == 1
    assert runtime.complaints() == "it does not say why"
    del caught


def test_a_file_that_is_not_there(lab: Lab) -> None:
    lab.path.unlink()
    with pytest.raises(BundleError, match="cannot be read"):
        lab.engine()


def test_a_type_that_we_do_not_feed(lab: Lab) -> None:
    with pytest.raises(BundleError, match="FP8"):
        lab.engine(toy(DataType.FP8))


def test_the_fake_is_strict(lab: Lab) -> None:
    """What the tests above rely on: the fake notices what real CUDA would let pass."""
    runtime = lab.runtime()
    memory = runtime.stream.allocate(16)
    address = memory.address
    lab.cuda.bytes_at(address + 8, 8)
    with pytest.raises(Misuse, match="of 16"):
        lab.cuda.bytes_at(address + 8, 9)
    del memory
    with pytest.raises(Misuse, match="freed"):
        lab.cuda.bytes_at(address, 1)
    with pytest.raises(Misuse, match="freed twice"):
        lab.cuda.cudaFree(address)
    with pytest.raises(Misuse, match="while a stream is captured"):
        runtime.stream.capture(runtime.stream.synchronize)
    assert lab.cuda.handles[int(runtime.stream)].recording is None
