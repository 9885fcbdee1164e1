# SPDX-License-Identifier: Apache-2.0
"""The golden data as Polygraphy's `--load-inputs` and `--load-outputs` take it.

Polygraphy wants every input of a graph, the cache too. That is gigabytes of zeros for a large
model, so zeros are packed: Polygraphy reads NumPy's compressed archives as well as plain arrays.

NumPy has no bfloat16, and so Polygraphy has none: such numbers stand here as float32, which holds
each of them. The files beside (`tc_export.golden.files`) have them in their own format.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from polygraphy.comparator import IterationResult, RunResults
from polygraphy.constants import TYPE_MARKER
from polygraphy.json import to_json

from tc_export.bundle.layout import golden_folder
from tc_export.contracts.graph_io import WEIGHTS_TYPE, GraphTensor, is_past
from tc_export.dtypes import DType, widen
from tc_export.golden.make import Golden

REFERENCE = "pytorch-float64"
"""What Polygraphy calls the side that the outputs are of."""


def write_for_polygraphy(
    bundle: Path,
    graph: str,
    golden: Golden,
    inputs: tuple[GraphTensor, ...],
    *,
    precision: DType,
    cache_rows: int,
) -> None:
    """Write `inputs.json` and `outputs.json` of one graph.

    Args:
        bundle: where its golden folder is.
        graph: the graph's name.
        golden: a call of it.
        inputs: all that the graph takes.
        precision: the format of its weights, and of its cache where that has none of its own.
        cache_rows: rows of the cache, as engines are built for.
    """
    feed: dict[str, Any] = {name: widen(values) for name, values in golden.inputs.items()}
    cache_type = widen(np.empty(0, precision.numpy)).dtype
    for tensor in inputs:
        if is_past(tensor.name):
            shape = tensor.shape({"batch": 1, "cache_rows": cache_rows})
            stored = cache_type if tensor.dtype == WEIGHTS_TYPE else DType(tensor.dtype).numpy
            feed[tensor.name] = _packed_zeros(shape, str(stored))
    results = RunResults()
    outputs = {name: values for name, (values, _) in golden.outputs.items()}
    result = IterationResult(outputs=outputs, runtime=0.0, runner_name=REFERENCE)
    results.append((REFERENCE, [result]))
    _write(bundle, graph, "inputs", [feed])
    _write(bundle, graph, "outputs", results)


def _write(
    bundle: Path, graph: str, name: str, values: list[Mapping[str, Any]] | RunResults
) -> None:
    path = bundle / golden_folder(graph) / f"{name}.json"
    path.write_text(f"{to_json(values)}\n", encoding="utf-8")


@cache
def _packed_zeros(shape: tuple[int, ...], dtype: str) -> dict[str, str]:
    """What Polygraphy's reader takes for an array of zeros."""
    archive = io.BytesIO()
    np.savez_compressed(archive, zeros=np.zeros(shape, dtype))
    return {"array": base64.b64encode(archive.getvalue()).decode(), TYPE_MARKER: "ndarray"}
