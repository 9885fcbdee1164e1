# SPDX-License-Identifier: Apache-2.0
"""TensorRT's Python module: imported, of a version that we drive, and listened to.

Building and running both come here. Members of TensorRT's enums are compared by name, since their
values moved between versions.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import logging
from collections import deque
from pathlib import Path
from typing import Any

from tc_export.engine.tensorrt.flavours import Flavour
from tc_export.errors import UnsupportedEnvironment

_log = logging.getLogger(__name__)

_ERRORS = ("INTERNAL_ERROR", "ERROR")
LAST_ERRORS = 4  # of TensorRT's own words, in a message
_LAYER_MARK = "LayerType: "  # in each line in which the builder lists a layer


def import_tensorrt(flavour: Flavour) -> Any:
    """Import the flavour's module, and see that it is of a version that we drive.

    Raises:
        UnsupportedEnvironment: it is not installed, cannot be loaded, or is of another version.
    """
    reasons = []
    for name in flavour.modules:
        try:
            module = importlib.import_module(name)
        except (ImportError, OSError) as error:  # OSError: its libraries are not there
            if not (isinstance(error, ModuleNotFoundError) and error.name == name):
                reasons.append(str(error))
        else:
            _check_version(flavour, module.__version__)
            return module
    if reasons:
        found = f"is installed and cannot be loaded: {'; '.join(reasons)}"
    else:
        found = f"is not installed: no module {' or '.join(flavour.modules)}"
    raise UnsupportedEnvironment(f"{flavour.title} {found}", hint=flavour.install)


def _check_version(flavour: Flavour, version: str) -> None:
    major, minor = (int(part) for part in version.split(".")[:2])
    if major not in flavour.majors or (major, minor) < flavour.oldest:
        known = " or ".join(f"{known}.x" for known in flavour.majors)
        oldest = ".".join(map(str, flavour.oldest))
        raise UnsupportedEnvironment(
            f"{flavour.title} {version} is here; expected {known}, {oldest} or later",
            hint=flavour.install,
        )


def new_logger(trt: Any) -> Any:
    """A logger of the module `trt`: what TensorRT says goes to where it is asked for.

    `errors` has the last errors, for a message of ours. `layers` has the lines in which a builder
    lists the engine's layers (see `layer_listing`). Warnings go to this module's log.
    """

    class Logger(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.errors: deque[str] = deque(maxlen=LAST_ERRORS)
            self.layers: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            if severity.name in _ERRORS:
                self.errors.append(message)
            elif _LAYER_MARK in message:
                self.layers += (line for line in message.splitlines() if _LAYER_MARK in line)
            elif severity.name == "WARNING":
                _log.warning("%s", message)

    return Logger()


def link_parser_library() -> None:
    """Give TensorRT-RTX's library the second name that its ONNX parser opens.

    The wheel ships `libtensorrt_rtx.so.1`; its parser opens `libtensorrt_rtx.so`, and aborts the
    process at the first plugin node where that is missing. It is put there once, in the wheel's
    folder: the parser looks nowhere that we could name.

    Raises:
        UnsupportedEnvironment: the wheel's folder cannot be written to.
    """
    spec = importlib.util.find_spec("tensorrt_rtx_libs")
    for folder in (spec and spec.submodule_search_locations) or ():
        link, library = Path(folder, "libtensorrt_rtx.so"), Path(folder, "libtensorrt_rtx.so.1")
        if link.exists() or not library.exists():
            continue
        try:
            with contextlib.suppress(FileExistsError):  # another build was quicker
                link.symlink_to(library.name)
        except OSError as error:
            raise UnsupportedEnvironment(
                f"TensorRT-RTX's parser needs {link}, which is not in its wheel and cannot be "
                f"made here: {error.strerror}",
                hint=f"with the right to write there: ln -s {library.name} {link}",
            ) from error
