# SPDX-License-Identifier: Apache-2.0
"""Polygraphy runners: any engine of ours, the PyTorch model among them."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Mapping

import numpy as np
from polygraphy.backend.base import BaseRunner
from polygraphy.common import TensorMetadata

from tc_export.contracts.graph_io import is_past
from tc_export.engine.interface import Engine, TensorInfo
from tc_export.engine.kv_cache import KvCache


class EngineRunner(BaseRunner):  # type: ignore[misc]
    """Runs an engine on feeds of the types in `inputs`, the same for all sides of a comparison.

    The cache is not fed: `new_cache` makes it before the first call.
    """

    def __init__(
        self,
        name: str,
        engine: Engine,
        inputs: Mapping[str, TensorInfo],
        new_cache: Callable[[], KvCache | None] = lambda: None,
    ) -> None:
        super().__init__(name=name)
        self._engine = engine
        self._inputs = inputs
        self._new_cache = new_cache
        self._cache: KvCache | None = None

    def activate_impl(self) -> None:
        """Start from an empty cache."""
        self._cache = self._new_cache()

    def get_input_metadata_impl(self) -> TensorMetadata:
        """The inputs that a feed has, with dynamic axes as -1."""
        metadata = TensorMetadata()
        for info in self._inputs.values():
            if not is_past(info.name):
                shape = tuple(axis if isinstance(axis, int) else -1 for axis in info.shape)
                metadata.add(info.name, dtype=info.dtype, shape=shape)
        return metadata

    def infer_impl(self, feed_dict: dict[str, np.ndarray]) -> OrderedDict[str, np.ndarray]:
        """Run once."""
        start = time.perf_counter()
        outputs = self._engine.run(feed_dict, self._cache)
        self.inference_time = time.perf_counter() - start
        return OrderedDict(outputs)
