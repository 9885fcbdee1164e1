# SPDX-License-Identifier: Apache-2.0
"""`finish/finish.json`: all that the device needs to know to build and judge the engines.

The script that runs without Python of ours reads the same values from `finish/*.settings`, which
are written from this spec and from nothing else.

In the folder `finish/` of a bundle:

    finish.json        this spec
    finish.sh          builds and judges with trtexec alone
    compile_plugins.sh compiles the plugin library, where the bundle has its sources
    exports.map        the symbols that it exports
    compare.awk        its comparison
    machine.settings, vision.settings, decoder.settings
    SHA256SUMS         every file that the script relies on

What the engines are judged by is in the bundle's `golden/`.
"""

from __future__ import annotations

import json
from pathlib import Path

from pydantic import Field, ValidationError

from tc_export.bundle import BundlePath, locate
from tc_export.config import Config
from tc_export.contracts.shapes import ShapeRange
from tc_export.errors import BundleError
from tc_export.golden.files import GoldenCall

FOLDER = "finish"
SPEC_FILE = f"{FOLDER}/finish.json"
SUMS = f"{FOLDER}/SHA256SUMS"


class Range(Config):
    """`ShapeRange`, as it is written down."""

    smallest: tuple[int, ...]
    usual: tuple[int, ...]
    largest: tuple[int, ...]


class EngineSpec(Config):
    """One engine: what it is built from, and what it is judged by."""

    graph: BundlePath
    engine: BundlePath
    precision: str
    custom_nodes: dict[str, int]
    shapes: dict[str, Range]
    golden: GoldenCall

    @property
    def shape_ranges(self) -> dict[str, ShapeRange]:
        """The shapes, as builders take them."""
        return {
            name: ShapeRange(shape.smallest, shape.usual, shape.largest)
            for name, shape in self.shapes.items()
        }

    def call_shape(self, name: str) -> tuple[int, ...]:
        """The shape of an input in the golden call."""
        golden = self.golden.inputs.get(name)
        return golden.shape if golden is not None else self.shapes[name].usual


class DeviceBuildSpec(Config):
    """What is to be done on the device, and which device that is."""

    target: str
    release: str  # the device's software, by name
    cuda: str
    tensorrt: str = Field(pattern=r"^\d+\.\d+$")  # that the graphs were made for
    architecture: str
    sm: int
    plugin_library: BundlePath
    plugin_sources: (
        BundlePath | None
    )  # folder that the device compiles the library from, if it does
    graphs: dict[str, EngineSpec] = Field(min_length=1)  # by graph

    def write(self, folder: Path) -> None:
        """Write the spec into the bundle `folder`."""
        values = self.model_dump(mode="json")
        (folder / SPEC_FILE).write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")


def read_spec(bundle: Path) -> DeviceBuildSpec:
    """Read what is to be done on a bundle's device.

    Raises:
        BundleError: it has none, or a damaged one.
    """
    path = locate(bundle, SPEC_FILE)
    try:
        return DeviceBuildSpec.model_validate_json(path.read_bytes())
    except OSError as error:
        raise BundleError(
            f"{bundle} has no {SPEC_FILE} ({error.strerror}): it is not to be finished on a device",
            hint="tc-export inspect BUNDLE shows the state of its engine",
        ) from error
    except ValidationError as error:
        raise BundleError(
            f"{path} is damaged: {error.error_count()} fields are wrong or missing",
            hint="get the bundle again from where it was built",
        ) from error
