# SPDX-License-Identifier: Apache-2.0
"""ONNX Runtime: the CPU everywhere, the CUDA provider where it is there."""

from __future__ import annotations

import ctypes
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import onnxruntime as ort

from tc_export.contracts.ops import DOMAIN
from tc_export.dtypes import BFLOAT16, DType, widen
from tc_export.engine.freed_memory import given_back
from tc_export.engine.interface import Buffer, Engine, TensorInfo
from tc_export.errors import BundleError

# In order of preference.
_DEVICES = {"CUDAExecutionProvider": "cuda", "CPUExecutionProvider": "cpu"}
_FLOAT32 = "1"  # of MatMulNBits' accuracy levels
_ERRORS_ONLY = 3
_BFLOAT16 = DType.BFLOAT16.onnx_type


class OrtBuffer(Buffer):
    """An `OrtValue`."""

    def __init__(self, value: ort.OrtValue, device: str) -> None:
        self.value = value
        self._device = device
        self.shape = tuple(value.shape())
        self.nbytes = value.tensor_size_in_bytes()

    def numpy(self) -> np.ndarray:
        """See `Buffer.numpy`."""
        if self.value.data_type() != _BFLOAT16:
            return np.array(self.value.numpy())
        on_host = _new_value(self.shape, DType.BFLOAT16, "cpu")
        on_host.update_inplace(self.value)
        return _read(on_host)

    def write(self, values: np.ndarray) -> None:
        """See `Buffer.write`."""
        if self.value.data_type() == _BFLOAT16:
            # ONNX Runtime copies bytes, and knows no NumPy type for these two.
            values = np.ascontiguousarray(values, BFLOAT16).view(np.uint16)
        self.value.update_inplace(np.ascontiguousarray(values))

    def copy(self) -> OrtBuffer:
        """See `Buffer.copy`."""
        value = _new_value(self.shape, DType.from_onnx_type(self.value.data_type()), self._device)
        value.update_inplace(self.value)
        return OrtBuffer(value, self._device)


class OrtEngine(Engine):
    """An ONNX graph in ONNX Runtime.

    Without `native_library`, the custom ops run through the functions inside the graph. With it,
    every custom node must be served by the library: a silent fall-back is an error.
    """

    def __init__(
        self,
        model_path: Path,
        *,
        rewritten: bytes | None = None,
        native_library: Path | None = None,
        threads: int | None = None,
        fuses_rounding: bool = True,
    ) -> None:
        """Load the graph.

        Args:
            model_path: of the graph; weights lie beside it.
            rewritten: another form of the graph, which shares its weights.
            native_library: serves the custom ops.
            threads: of the CPU; None is one for each core.
            fuses_rounding: make one operator of a product and the rounding of its inputs. Of
                products in fp8 ONNX Runtime (1.31) makes one that it refuses then.

        Raises:
            BundleError: ONNX Runtime cannot load it.
        """
        super().__init__()
        options = _options(native_library, threads, fuses_rounding=fuses_rounding)
        self._session = _open_session(model_path, rewritten, options)
        self._provider = self._session.get_providers()[0]
        self.backend = f"ONNX Runtime {ort.__version__}, {self._provider.split('Execution')[0]}"
        self.inputs = {x.name: _tensor_info(x) for x in self._session.get_inputs()}
        self.outputs = {x.name: _tensor_info(x) for x in self._session.get_outputs()}
        self.native_nodes = _nodes_of_our_domain(self._session) if native_library else {}
        self._binding = self._session.io_binding()
        self._bound: dict[str, OrtBuffer] = {}  # the binding itself keeps none of them alive
        # ONNX Runtime hands outputs out in the order in which they were first bound.
        self._output_order: list[str] = []

    def allocate(self, name: str, shape: Sequence[int]) -> OrtBuffer:
        """See `Engine.allocate`."""
        info = self.inputs.get(name) or self.outputs[name]
        device = _DEVICES[self._provider]
        return OrtBuffer(_zeros(shape, DType.from_numpy(info.dtype), device), device)

    def _bind(self, name: str, buffer: Buffer) -> None:
        assert isinstance(buffer, OrtBuffer)
        if name in self.inputs:
            self._binding.bind_ortvalue_input(name, buffer.value)
        else:
            self._binding.bind_ortvalue_output(name, buffer.value)
            self._note_output(name)
        self._bound[name] = buffer

    def _run(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        missing = self.inputs.keys() - self._bound.keys() - feeds.keys()
        if missing:
            raise ValueError(f"inputs neither given nor bound: {', '.join(sorted(missing))}")
        arrays = {
            name: np.ascontiguousarray(array, dtype=self.inputs[name].dtype)
            for name, array in feeds.items()
        }
        for name, array in arrays.items():
            self._bind_array(name, array)
        fetched = [name for name in self.outputs if name not in self._bound]
        for name in fetched:
            self._binding.bind_output(name, "cpu")
            self._note_output(name)
        self._session.run_with_iobinding(self._binding)
        values = dict(zip(self._output_order, self._binding.get_outputs(), strict=True))
        return {name: _read(values[name]) for name in fetched}

    def _bind_array(self, name: str, array: np.ndarray) -> None:
        if array.dtype == BFLOAT16:
            address = array.ctypes.data  # the caller keeps the array for the call
            self._binding.bind_input(name, "cpu", 0, DType.BFLOAT16.onnx, array.shape, address)
        else:
            self._binding.bind_cpu_input(name, array)

    def _note_output(self, name: str) -> None:
        if name not in self._output_order:
            self._output_order.append(name)


def _options(
    native_library: Path | None, threads: int | None, *, fuses_rounding: bool
) -> ort.SessionOptions:
    options = ort.SessionOptions()
    options.log_severity_level = _ERRORS_ONLY
    # A pattern is kept for each shape: a prompt's would hold a second copy of its activations.
    options.enable_mem_pattern = False
    options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    # Of weights in few bits: by default what they are multiplied with is rounded to eight bits too.
    options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", _FLOAT32)
    if not fuses_rounding:
        options.add_session_config_entry("session.disable_quant_qdq", "1")
    if threads is not None:
        options.intra_op_num_threads = threads
    if native_library is not None:
        options.register_custom_ops_library(str(native_library))
    return options


def _open_session(
    model_path: Path, rewritten: bytes | None, options: ort.SessionOptions
) -> ort.InferenceSession:
    """Open a session on the best device; `get_providers()[0]` then says which it is.

    A GPU build on a machine without a GPU lists the CUDA provider, and quietly takes the CPU.
    """
    if rewritten is not None:
        folder = str(model_path.parent)
        options.add_session_config_entry(
            "session.model_external_initializers_file_folder_path", folder
        )
    providers = [name for name in _DEVICES if name in ort.get_available_providers()]
    try:
        with given_back():
            return ort.InferenceSession(rewritten or str(model_path), options, providers=providers)
    except Exception as error:  # ONNX Runtime raises its own classes, without a common base.
        raise BundleError(
            f"ONNX Runtime {ort.__version__} cannot load {model_path}: {error}",
            hint="tc-export verify BUNDLE names files that are changed or missing",
        ) from error


def _new_value(shape: Sequence[int], dtype: DType, device: str) -> ort.OrtValue:
    # NumPy has no bfloat16 of its own, so ONNX Runtime takes that type by ONNX's number only.
    kind = dtype.onnx if dtype is DType.BFLOAT16 else dtype.numpy
    return ort.OrtValue.ortvalue_from_shape_and_type(list(shape), kind, device)


def _zeros(shape: Sequence[int], dtype: DType, device: str) -> ort.OrtValue:
    """On the CPU pages that were never written to take no memory: a cache grows as it is filled."""
    if device != "cpu":
        value = _new_value(shape, dtype, device)
        value.update_inplace(np.zeros(shape, np.uint16 if dtype is DType.BFLOAT16 else dtype.numpy))
        return value
    if dtype is DType.BFLOAT16:
        zeros = np.zeros(shape, np.uint16)
        return ort.OrtValue.ortvalue_from_numpy_with_onnx_type(zeros, dtype.onnx)
    return ort.OrtValue.ortvalue_from_numpy(np.zeros(shape, dtype.numpy))


def _read(value: ort.OrtValue) -> np.ndarray:
    """The contents of a value on the host, for which NumPy may have no type."""
    if value.data_type() != _BFLOAT16:
        array: np.ndarray = value.numpy()
        return array
    content = ctypes.string_at(value.data_ptr(), value.tensor_size_in_bytes())
    return widen(np.frombuffer(content, BFLOAT16).reshape(value.shape()))


def _tensor_info(node: ort.NodeArg) -> TensorInfo:
    return TensorInfo(node.name, DType.from_onnx_type(node.type).numpy, tuple(node.shape))


def _nodes_of_our_domain(session: ort.InferenceSession) -> dict[str, int]:
    """Custom nodes that were left after loading: those that a kernel of ours serves.

    A node without a kernel has been replaced by its function's body at this point.
    """
    return dict(
        Counter(
            node.op_type
            for subgraph in session.get_provider_graph_assignment_info()
            for node in subgraph.get_nodes()
            if node.domain == DOMAIN
        )
    )
