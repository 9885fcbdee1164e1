# SPDX-License-Identifier: Apache-2.0
"""A decoder whose parts are engines of their own, run one after the other as if they were one.

Each part holds its layers' share of the cache; hidden states go from each to the next. Where a
backend can, they stay on the device (`Engine.pass_on`); else they pass through the host.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tc_export.contracts.graph_io import is_hidden
from tc_export.engine.interface import Buffer, Engine, TensorInfo


class PartedEngine(Engine):
    """Engines in the order of their layers, behind the interface of one."""

    def __init__(self, parts: Sequence[Engine]) -> None:
        """Take the parts as they are.

        Raises:
            ValueError: they do not fit together.
        """
        super().__init__()
        self._parts = tuple(parts)
        self._own: dict[str, list[Engine]] = {}
        inputs: dict[str, TensorInfo] = {}
        outputs: dict[str, TensorInfo] = {}
        for part in self._parts:
            for name in (*part.inputs, *part.outputs):
                self._own.setdefault(name, []).append(part)
            inputs |= {name: x for name, x in part.inputs.items() if not is_hidden(name)}
            outputs |= {name: x for name, x in part.outputs.items() if not is_hidden(name)}
        for before, after in zip(self._parts, self._parts[1:], strict=False):
            given = {name for name in before.outputs if is_hidden(name)}
            taken = {name for name in after.inputs if is_hidden(name)}
            if given != taken or len(given) != 1:
                raise ValueError(f"parts that do not fit: {given} is given, {taken} is taken")
        self.inputs, self.outputs = inputs, outputs
        self.backend = f"{self._parts[0].backend}, in {len(self._parts)} parts"
        served: Counter[str] = Counter()
        for part in self._parts:
            served.update(part.native_nodes)
        self.native_nodes = dict(served)

    def allocate(self, name: str, shape: Sequence[int]) -> Buffer:
        """See `Engine.allocate`."""
        return self._own[name][0].allocate(name, shape)

    def _bind(self, name: str, buffer: Buffer) -> None:
        for part in self._own[name]:
            part.bind(name, buffer)

    def _run(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        hidden: dict[str, Any] = {}
        for part in self._parts[:-1]:
            (output,) = (name for name in part.outputs if is_hidden(name))
            hidden = {output: part.pass_on(_given(part, feeds) | hidden, output)}
        last = self._parts[-1]
        return last.run(_given(last, feeds) | hidden)


def _given(part: Engine, feeds: Mapping[str, np.ndarray]) -> dict[str, Any]:
    return {name: values for name, values in feeds.items() if name in part.inputs}
