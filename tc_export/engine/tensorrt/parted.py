# SPDX-License-Identifier: Apache-2.0
"""A decoder in parts on one GPU and one stream: a step is one CUDA graph over all parts.

Positions and the like are copied to the GPU once, for the first part that takes them, and read
there by the others. TensorRT-RTX makes graphs of its own, one for each part.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tc_export.contracts.graph_io import is_hidden
from tc_export.engine.parted import PartedEngine
from tc_export.engine.tensorrt.buffers import DeviceArray
from tc_export.engine.tensorrt.cuda import Repeater
from tc_export.engine.tensorrt.run import TensorRtRuntime, TrtEngine, capture_state, repeat


class TrtPartedEngine(PartedEngine):
    """Engines of one runtime in the order of their layers, behind the interface of one."""

    def __init__(self, parts: Sequence[TrtEngine], tensorrt: TensorRtRuntime) -> None:
        """Take the parts, which `tensorrt` has loaded.

        Raises:
            ValueError: they do not fit together.
        """
        super().__init__(parts)
        self._engines = tuple(parts)
        self._tensorrt = tensorrt
        self._repeater = Repeater(tensorrt.stream)

    @property
    def graph_capture(self) -> str:
        """See `TrtEngine.graph_capture`."""
        return capture_state(self._tensorrt, self._repeater)

    def _run(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        same = True
        on_gpu: dict[str, DeviceArray] = {}
        for part in self._engines:
            hidden = {name for name in part.inputs if is_hidden(name)}
            fed: Mapping[str, Any] = {**feeds, **on_gpu}
            wanted = hidden | (feeds.keys() & part.inputs.keys())
            given = {name: fed[name] for name in part.inputs if name in wanted}
            same = part.make_ready(given) and same
            handed_on = [*given, *(name for name in part.outputs if is_hidden(name))]
            on_gpu |= {name: part.place_of(name) for name in handed_on}
        repeat(self._tensorrt, self._repeater, self._enqueue, same=same)
        return self._engines[-1].fetch()

    def _enqueue(self) -> None:
        for part in self._engines:
            part.enqueue()
