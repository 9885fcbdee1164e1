# SPDX-License-Identifier: Apache-2.0
"""Polygraphy runners: any engine of ours, the PyTorch model among them."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Mapping

import numpy as np
from polygraphy.backend.base import BaseRunner
from polygraphy.common import TensorMetadata

from tc_export.engine.interface import Engine, TensorInfo


class EngineRunner(BaseRunner):  # type: ignore[misc]
    """Runs an engine on feeds of the types in `inputs`, the same for all sides of a comparison.

    The cache is not fed: `prepare` binds it before the first call.
    """

    def __init__(
        self,
        name: str,
        engine: Engine,
        inputs: Mapping[str, TensorInfo],
        prepare: Callable[[], object] = lambda: None,
    ) -> None:
        super().__init__(name=name)
        self._engine = engine
        self._inputs = inputs
        self._prepare = prepare

    def activate_impl(self) -> None:
        """Start from an empty cache."""
        self._prepare()

    def get_input_metadata_impl(self) -> TensorMetadata:
        """The inputs that a feed has, with dynamic axes as -1."""
        metadata = TensorMetadata()
        for info in self._inputs.values():
            if not info.name.startswith("past_key_values."):
                shape = tuple(axis if isinstance(axis, int) else -1 for axis in info.shape)
                metadata.add(info.name, dtype=info.dtype, shape=shape)
        return metadata

    def infer_impl(self, feed_dict: dict[str, np.ndarray]) -> OrderedDict[str, np.ndarray]:
        """Run once."""
        start = time.perf_counter()
        outputs = self._engine.run(feed_dict)
        self.inference_time = time.perf_counter() - start
        return OrderedDict(outputs)
