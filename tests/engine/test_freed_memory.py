# SPDX-License-Identifier: Apache-2.0
"""What an engine keeps in memory: weights of few bits once, and of a cache what was written to."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from tests.repository import REPOSITORY

K, MATRICES = 2048, 16

pytestmark = pytest.mark.skipif(
    sys.platform != "linux", reason="memory is read from /proc/self/status"
)


@pytest.fixture(scope="module")
def four_bits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Products in a row; each matrix is 2 MiB in four bits, less than glibc maps by itself."""
    folder = tmp_path_factory.mktemp("four_bits")
    random = np.random.default_rng(0)
    weights, nodes = [], []
    with (folder / "weights.bin").open("wb") as file:

        def outside(name: str, kind: int, shape: list[int], content: bytes) -> None:
            tensor = TensorProto(name=name, data_type=kind, dims=shape)
            tensor.data_location = TensorProto.EXTERNAL
            places = {"location": "weights.bin", "offset": file.tell(), "length": len(content)}
            for key, value in places.items():
                tensor.external_data.add(key=key, value=str(value))
            file.write(content)
            weights.append(tensor)

        for index in range(MATRICES):
            outside(f"n{index}", TensorProto.INT4, [K, K], random.bytes(K * K // 2))
            scales = random.random((K // 64, K), dtype=np.float32).tobytes()
            outside(f"s{index}", TensorProto.FLOAT, [K // 64, K], scales)
            names = [f"n{index}", f"s{index}"]
            nodes += [
                helper.make_node("DequantizeLinear", names, [f"w{index}"], axis=0, block_size=64),
                helper.make_node("MatMul", [f"x{index}", f"w{index}"], [f"x{index + 1}"]),
            ]
    ends = [
        helper.make_tensor_value_info(f"x{index}", TensorProto.FLOAT, ["rows", K])
        for index in (0, MATRICES)
    ]
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:], weights)
    opsets = [helper.make_opsetid("", 21)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=10), folder / "m.onnx")
    return folder / "m.onnx"


def taken(program: str, *arguments: object) -> float:
    """MiB that a process of its own takes more after the second part of a program."""
    words = [sys.executable, "-c", PROGRAM.format(*program.split("---")), *map(str, arguments)]
    printed = subprocess.run(words, check=True, stdout=subprocess.PIPE, text=True, cwd=REPOSITORY)
    return float(printed.stdout)


PROGRAM = """
import sys
from pathlib import Path
import numpy as np
from tc_export.engine.onnxruntime import OrtEngine

def resident():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("RssAnon"))
{0}
before = resident()
{1}
print(resident() - before)
"""


def test_weights_of_few_bits_are_in_memory_once(four_bits: Path) -> None:
    stored = (four_bits.parent / "weights.bin").stat().st_size / 2**20
    found = taken("---engine = OrtEngine(Path(sys.argv[1]), threads=1)", four_bits)
    assert stored <= found < 1.3 * stored


def test_a_cache_takes_memory_as_it_is_filled(four_bits: Path) -> None:
    """64 MiB are asked for, and 4 of them written to."""
    found = taken(
        """
engine = OrtEngine(Path(sys.argv[1]), threads=1)
---
buffer = engine.allocate("x0", (8192, 2048))
assert buffer.nbytes == 64 << 20
buffer.value.numpy()[:512] = 1
""",
        four_bits,
    )
    assert 3.5 < found < 8
