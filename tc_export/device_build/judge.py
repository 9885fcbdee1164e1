# SPDX-License-Identifier: Apache-2.0
"""Compare what an engine computes with the golden data."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from tc_export.contracts.graph_io import is_past
from tc_export.device_build.spec import EngineSpec
from tc_export.engine.interface import Engine
from tc_export.errors import CheckFailed


def judge(bundle: Path, graph: str, spec: EngineSpec, engine: Engine) -> dict[str, float]:
    """Run the golden call; return the largest error of each output as a share of its tolerance.

    Raises:
        CheckFailed: an output is not what it should be; says where and by how much.
        BundleError: a golden file is missing or damaged.
    """
    feeds = {tensor: golden.load(bundle) for tensor, golden in spec.golden.inputs.items()}
    rows = [spec.call_shape(tensor)[2] for tensor in spec.shapes if is_past(tensor)]
    results = engine.run(feeds, engine.new_cache(max(rows)) if rows else None)
    shares = {}
    for tensor, golden in spec.golden.outputs.items():
        expected = golden.load(bundle).astype(np.float64)
        if results[tensor].shape != expected.shape:
            raise CheckFailed(
                f"the {graph} engine gives {tensor} of shape {list(results[tensor].shape)}, "
                f"expected {list(expected.shape)}"
            )
        errors = np.abs(results[tensor].astype(np.float64) - expected)
        errors = np.where(np.isfinite(errors), errors, np.inf)
        worst = np.unravel_index(int(errors.argmax()), errors.shape)
        if errors[worst] > golden.tolerance:
            raise CheckFailed(
                f"the {graph} engine does not compute what the model computes: {tensor}"
                f"{[int(i) for i in worst]} is {float(results[tensor][worst]):.6g}, and should be "
                f"{expected[worst]:.6g} within {golden.tolerance:.3g}",
                hint="the engine is not kept; the bundle is as it was",
            )
        shares[tensor] = float(errors[worst]) / golden.tolerance
    return shares
