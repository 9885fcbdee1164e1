# SPDX-License-Identifier: Apache-2.0
"""What `finish.sh` leaves in a bundle, and its manifest does not list.

    ENGINE              the engine, once it has passed
    ENGINE.sha256       its hash and that of finish/SHA256SUMS then, as `sha256sum` writes them
    ENGINE.layers.json  its layers, as trtexec's --exportLayerInfo writes them
    LIBRARY             the plugin library, where the bundle has its sources
    LIBRARY.sha256      its hash and those of its sources
    finish/timing.cache what TensorRT measured
    finish/.work.PID/   scratch, left behind only where the script was killed

`finish` sets them aside in a folder beside the bundle before it does anything else: so the bundle
is again what its manifest says, whatever happens then.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tc_export.bundle.files import remove
from tc_export.device_build.spec import FOLDER, SUMS, DeviceBuildSpec
from tc_export.digests import Digests
from tc_export.errors import UnsupportedEnvironment

_ENGINE_SUFFIXES = ("", ".sha256", ".layers.json")
_LIBRARY_SUFFIXES = ("", ".sha256")
_CACHE = "timing.cache"


@dataclass(frozen=True)
class ScriptProducts:
    """The folder where they lie now; also there between two runs of a `finish` that was killed."""

    folder: Path

    @property
    def timing_cache(self) -> Path:
        """Where TensorRT's measurements are kept from one engine to the next."""
        return self.folder / _CACHE

    def take(self, engine: str, bundle: Path) -> int | None:
        """Move an engine into `bundle`; return the number of its layers.

        None where the script has built none, or was killed before it had judged it, or has built
        it from a bundle that was another then.
        """
        source = self.folder / engine
        try:
            lines = source.with_name(f"{source.name}.sha256").read_text().splitlines()
            layers = json.loads(source.with_name(f"{source.name}.layers.json").read_bytes())
            count = len(layers["Layers"])
            digests = Digests()
            found = {engine: digests.sha256(source), SUMS: digests.sha256(bundle / SUMS)}
            if lines != [f"{sha256}  {path}" for path, sha256 in found.items()]:
                return None
        except (OSError, ValueError, LookupError, TypeError):
            return None
        _move(source, bundle / engine)
        return count

    def take_library(self, spec: DeviceBuildSpec, bundle: Path) -> bool:
        """Move the plugin library into `bundle`; False where the script has compiled none.

        Neither is taken what was compiled from other sources than the bundle has now.
        """
        source = self.folder / spec.plugin_library
        try:
            lines = source.with_name(f"{source.name}.sha256").read_text().splitlines()
            sums = (bundle / SUMS).read_text().splitlines()
            found = [f"{Digests().sha256(source)}  {spec.plugin_library}"]
        except (OSError, ValueError):
            return False
        found += [line for line in sums if line.partition("  ")[2].startswith(_sources(spec))]
        if lines != found:
            return False
        _move(source, bundle / spec.plugin_library)
        return True


@contextmanager
def set_aside(bundle: Path, spec: DeviceBuildSpec) -> Iterator[ScriptProducts]:
    """Move what the script has left in `bundle` to a folder beside it.

    When the block ends well, the folder goes; else it is kept for the next run.

    Raises:
        UnsupportedEnvironment: the script is at work.
    """
    _check_idle(bundle)
    folder = bundle.with_name(f".{bundle.name}.finishing")
    folder.mkdir(exist_ok=True)
    for product, suffixes in _products(spec).items():
        for suffix in suffixes:
            _move(bundle / (product + suffix), folder / (product + suffix))
        parent = (bundle / product).parent
        if parent != bundle and parent.is_dir() and not any(parent.iterdir()):
            parent.rmdir()
    _move(bundle / FOLDER / _CACHE, folder / _CACHE)
    try:
        yield ScriptProducts(folder)
    except BaseException:
        if not any(folder.iterdir()):
            folder.rmdir()
        raise
    remove(folder)


def _products(spec: DeviceBuildSpec) -> dict[str, tuple[str, ...]]:
    """What the script makes, with the endings of the files that it keeps of each."""
    products: dict[str, tuple[str, ...]]
    products = {each.engine: _ENGINE_SUFFIXES for each in spec.graphs.values()}
    if spec.plugin_sources is not None:
        products[spec.plugin_library] = _LIBRARY_SUFFIXES
    return products


def _sources(spec: DeviceBuildSpec) -> str:
    """What the paths of the plugins' sources begin with."""
    return f"{spec.plugin_sources}/"


def _check_idle(bundle: Path) -> None:
    """Refuse while the script runs; remove the scratch of one that was killed."""
    for scratch in (bundle / FOLDER).glob(".work.*"):
        if _is_alive(scratch.suffix.removeprefix(".")):
            raise UnsupportedEnvironment(
                f"finish.sh is at work in {bundle} (process {scratch.suffix.removeprefix('.')})",
                hint="wait until it ends, or stop it",
            )
        remove(scratch)


def _move(source: Path, destination: Path) -> None:
    if source.exists():
        destination.parent.mkdir(parents=True, exist_ok=True)
        source.replace(destination)


def _is_alive(process: str) -> bool:
    try:
        os.kill(int(process), 0)
    except (ValueError, ProcessLookupError):
        return False
    except PermissionError:
        return True
    return True
