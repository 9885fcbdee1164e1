# SPDX-License-Identifier: Apache-2.0
"""What a build and its worker process say to each other, as JSON.

The task goes to the worker's standard input. On its standard output it answers with lines, each an
object of one key: `progress` (a fraction), then `result` or `error`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Self

from tc_export.errors import InputError, TcExportError, UnsupportedEnvironment, UsageError


@dataclass(frozen=True, kw_only=True)
class Message:
    """Plain values that go through a pipe."""

    def to_json(self) -> str:
        """One line of text."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Self:
        """The inverse of `to_json`."""
        return cls(**json.loads(text))


@dataclass(frozen=True, kw_only=True)
class Task(Message):
    """What to build. Files that stand in `process.descriptor` are named by their descriptors."""

    flavour: str
    graph: str
    engine: int
    plugin_library: str | None
    shapes: Mapping[str, Sequence[Sequence[int]]]
    compute_capability: int | None
    custom_nodes: Mapping[str, int]
    timing_cache: str | None


@dataclass(frozen=True, kw_only=True)
class Result(Message):
    """What was built, and the builder's own lines that list its layers."""

    version: str
    plugin_layers: Mapping[str, int]
    layer_lines: Sequence[str]
    engine_bytes: int
    peak_bytes: int


_RAISED = {
    error.__name__: error
    for error in (TcExportError, UsageError, InputError, UnsupportedEnvironment)
}


def describe_error(error: TcExportError | OSError) -> dict[str, Any]:
    """An error as plain values."""
    if isinstance(error, OSError):
        return {"errno": error.errno, "text": error.strerror, "file": error.filename}
    return {"type": type(error).__name__, "message": str(error), "hint": error.hint}


def error_from(values: Mapping[str, Any]) -> TcExportError | OSError:
    """The error that `describe_error` described."""
    if "errno" in values:
        return OSError(values["errno"], values["text"], values["file"])
    return _RAISED[values["type"]](values["message"], hint=values["hint"])
