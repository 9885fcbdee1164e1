# SPDX-License-Identifier: Apache-2.0
"""A bundle's graphs in ONNX Runtime, in their own formats: what can be compared without the device.

An engine that was built for another device cannot run here. Its graphs can: they have the engine's
operators, weights and number formats, but not its kernels.
"""

from __future__ import annotations

from pathlib import Path

import onnx

from tc_export.bundle.layout import MODEL_FILE
from tc_export.contracts.graph_io import DECODER, VISION
from tc_export.engine.loading import Engines
from tc_export.engine.onnxruntime import OrtEngine
from tc_export.graph.passes.float32_arithmetic import compute_in_float32
from tc_export.targets import Precision, Precisions


def load_graphs(folder: Path, precisions: Precisions, *, threads: int | None = None) -> Engines:
    """Load both graphs under `folder`, without our native library.

    Raises:
        BundleError: a graph cannot be loaded.
    """

    def load(graph: str, precision: Precision) -> OrtEngine:
        path = folder / graph / MODEL_FILE
        rewritten = None
        if precision is Precision.BFLOAT16:
            model = onnx.load(path, load_external_data=False)
            compute_in_float32(model)
            rewritten = model.SerializeToString()
        return OrtEngine(path, rewritten=rewritten, threads=threads)

    return Engines(
        vision=load(VISION, precisions.vision), decoder=load(DECODER, precisions.decoder)
    )
