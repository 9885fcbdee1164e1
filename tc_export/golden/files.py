# SPDX-License-Identifier: Apache-2.0
"""`golden/` in a bundle: tensors in files of their own, and what they are.

golden.json              the calls: each tensor's file, number format and shape; tolerances
GRAPH/TENSOR.bin         an input or an output: its numbers in C order, little-endian
GRAPH/inputs.json, GRAPH/outputs.json
                         the same for Polygraphy: `tc_export.golden.polygraphy`
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
from pydantic import Field, RootModel, ValidationError

from tc_export.bundle import BundlePath, locate
from tc_export.bundle.layout import GOLDEN_FOLDER, golden_folder
from tc_export.config import Config
from tc_export.dtypes import DType, widen
from tc_export.errors import BundleError

if TYPE_CHECKING:
    from tc_export.golden.make import Golden

INDEX_FILE = f"{GOLDEN_FOLDER}/golden.json"

_VERIFY = "tc-export verify BUNDLE names every file that is changed or missing"

GoldenType = Literal["float32", "float16", "bfloat16", "int32", "int64"]


class GoldenTensor(Config):
    """A tensor in a file of its own: its numbers in order, little-endian, and nothing else."""

    file: BundlePath
    dtype: GoldenType
    shape: tuple[int, ...]

    def load(self, bundle: Path) -> np.ndarray:
        """The tensor; bfloat16 as float32, which holds every one of its numbers.

        Raises:
            BundleError: the file is missing or of another size.
        """
        path = locate(bundle, self.file)
        try:
            return widen(np.fromfile(path, DType(self.dtype).numpy).reshape(self.shape))
        except (OSError, ValueError) as error:
            raise BundleError(
                f"{path} does not hold {self.dtype} {list(self.shape)}: {error}", hint=_VERIFY
            ) from error


class GoldenOutput(GoldenTensor):
    """What the engine shall give, in float32; and how far it may be from it, in absolute terms."""

    tolerance: float = Field(gt=0)


class GoldenCall(Config):
    """A call of one graph.

    Inputs that are not there are the cache: no query sees a row that the call itself does not
    write, so any finite numbers will do.
    """

    inputs: dict[str, GoldenTensor]
    outputs: dict[str, GoldenOutput] = Field(min_length=1)


_Index = RootModel[dict[str, GoldenCall]]


def write_golden(bundle: Path, golden: Mapping[str, Golden]) -> dict[str, GoldenCall]:
    """Write the tensors of each graph's call, and the index."""
    calls = {graph: _write_call(bundle, graph, call) for graph, call in golden.items()}
    text = _Index(calls).model_dump_json(indent=2)
    (bundle / INDEX_FILE).write_text(f"{text}\n", encoding="utf-8")
    return calls


def _write_call(bundle: Path, graph: str, call: Golden) -> GoldenCall:
    folder = golden_folder(graph)
    (bundle / folder).mkdir(parents=True)
    inputs = {}
    for name, values in call.inputs.items():
        file, dtype = f"{folder}/{name}.bin", str(DType.from_numpy(values.dtype))
        (bundle / file).write_bytes(values.tobytes())
        inputs[name] = GoldenTensor.model_validate(
            {"file": file, "dtype": dtype, "shape": tuple(values.shape)}
        )
    outputs = {}
    for name, (expected, tolerance) in call.outputs.items():
        file = f"{folder}/{name}.bin"
        (bundle / file).write_bytes(np.ascontiguousarray(expected, "<f4").tobytes())
        outputs[name] = GoldenOutput(
            file=file, dtype="float32", shape=expected.shape, tolerance=tolerance
        )
    return GoldenCall(inputs=inputs, outputs=outputs)


def read_golden(bundle: Path) -> dict[str, GoldenCall]:
    """The golden call of each graph.

    Raises:
        BundleError: the index is missing or damaged.
    """
    path = locate(bundle, INDEX_FILE)
    try:
        return _Index.model_validate_json(path.read_bytes()).root
    except OSError as error:
        raise BundleError(f"{path} cannot be read: {error.strerror}", hint=_VERIFY) from error
    except ValidationError as error:
        raise BundleError(
            f"{path} is damaged: {error.error_count()} fields are wrong or missing", hint=_VERIFY
        ) from error
