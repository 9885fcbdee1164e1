# SPDX-License-Identifier: Apache-2.0
"""`manifest.json`: what a bundle is made of, how it was made, and the hash of every file.

On disk it is the fields of `Manifest` below a header of three: the format, its version, and a
seal, which is the hash of the rest. So a manifest that was cut off or edited by hand is refused
before anything in it is believed.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Mapping
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import AfterValidator, Field, ValidationError, model_validator
from pydantic_core import from_json

from tc_export.bundle.files import is_regular_file, write_atomically
from tc_export.bundle.placement import Placement
from tc_export.config import Config
from tc_export.errors import BundleError
from tc_export.targets import Release

FORMAT = "tc-export bundle"
FORMAT_VERSION = 5
MANIFEST = "manifest.json"

_HEADER = ("format", "format_version", "seal")
_REBUILD = "move it away and build it again with `tc-export build`"


def _check_path(path: str) -> str:
    # One spelling for each file, below the bundle, that every file system can hold and print.
    if any(part in ("", ".", "..") for part in path.split("/")):
        raise ValueError("not a plain path inside the bundle")
    if not path.isprintable() or "\\" in path:
        raise ValueError("has characters that a file name of a bundle never has")
    if path == MANIFEST:
        raise ValueError("the manifest does not list itself")
    return path


BundlePath = Annotated[str, AfterValidator(_check_path)]
"""A file or folder of the bundle, relative to it, with `/` between the parts."""

Sha256 = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


class FileRecord(Config):
    """One file, as it was when its stage ended."""

    sha256: Sha256
    size_bytes: int = Field(ge=0)


class Profile(Config):
    """The largest input that the engines take."""

    max_frames: int = Field(gt=0)
    max_length: int = Field(gt=0)  # tokens of a whole conversation: rows of the key/value cache


class EngineState(StrEnum):
    """Whether the engine is in the bundle, or waits for the device that can build it."""

    BUILT = "built"
    PENDING = "pending"


class EngineRecord(Config):
    """The engine: who runs it, whether it is there, and what to do when it is not."""

    backend: str
    state: EngineState
    next_step: str | None = None

    @model_validator(mode="after")
    def _check(self) -> Self:
        if (self.state is EngineState.PENDING) != (self.next_step is not None):
            raise ValueError("next_step belongs to a pending engine, and only to it")
        return self


class EngineBuild(Config):
    """One engine, as its builder's log describes it."""

    builder: str  # its name and version
    sm: int | None  # compute capability that it was built for
    precision: str
    layers: int = Field(ge=0)
    plugin_layers: dict[str, int]  # by op: those that our plugins serve
    few_bits: dict[str, int] = Field(default_factory=dict)  # by format: weights that are held in it


class BundleSpec(Config):
    """What is known of a bundle before it is built."""

    target: str
    release: Release | None = None  # the device's software that it is for; None for the processor
    checkpoint_digest: Sha256
    profile: Profile
    precision_asked: dict[str, str]  # by engine
    decoder_parts: int = Field(default=1, ge=1)  # engines that the decoder is built as
    weights_asked: Placement = Placement.AUTO  # how the checkpoint's files came into the bundle
    tools: dict[str, str]  # version of every tool that builds, by name


class StageResults(Config):
    """What a stage finds out while it runs, beside the files that it writes."""

    # By graph; the nodes then by op.
    precision_realised: dict[str, str] = Field(default_factory=dict)
    custom_nodes: dict[str, dict[str, int]] = Field(default_factory=dict)
    engine_builds: dict[str, EngineBuild] = Field(default_factory=dict)
    engine: EngineRecord | None = None

    @staticmethod
    def merge(parts: Iterable[StageResults]) -> StageResults:
        """All results in one; of two about the same graph or engine, the later one."""
        precision_realised: dict[str, str] = {}
        custom_nodes: dict[str, dict[str, int]] = {}
        engine_builds: dict[str, EngineBuild] = {}
        engine = None
        for part in parts:
            precision_realised |= part.precision_realised
            custom_nodes |= part.custom_nodes
            engine_builds |= part.engine_builds
            engine = part.engine or engine
        return StageResults(
            precision_realised=precision_realised,
            custom_nodes=custom_nodes,
            engine_builds=engine_builds,
            engine=engine,
        )


class StageRecord(Config):
    """A stage that ended well."""

    key: Sha256  # hash of everything that the result depends on
    seconds: float = Field(ge=0)
    files: dict[BundlePath, FileRecord]
    results: StageResults = StageResults()

    @property
    def fingerprint(self) -> str:
        """Hash of what the stage was made from and of what it made, but not of the time it took."""
        return digest_of(self.model_dump(mode="json", exclude={"seconds"}))


class Manifest(StageResults, BundleSpec):
    """A whole bundle: its spec, the results of all stages, and the stages themselves."""

    stages: dict[str, StageRecord]

    @classmethod
    def assemble(cls, spec: BundleSpec, stages: Mapping[str, StageRecord]) -> Self:
        """Put the manifest together when every stage has ended."""
        results = StageResults.merge(record.results for record in stages.values())
        return cls(**dict(spec), **dict(results), stages=dict(stages))

    @model_validator(mode="after")
    def _check(self) -> Self:
        paths = [path for record in self.stages.values() for path in record.files]
        twice = sorted(path for path, count in Counter(paths).items() if count > 1)
        if twice:
            raise ValueError(f"files of two stages at once: {', '.join(twice)}")
        results = StageResults.merge(record.results for record in self.stages.values())
        if any(getattr(self, name) != value for name, value in results):
            raise ValueError(f"{', '.join(StageResults.model_fields)} are not those of the stages")
        return self

    @property
    def files(self) -> dict[str, FileRecord]:
        """Every file of the bundle but the manifest itself."""
        return {
            path: file for record in self.stages.values() for path, file in record.files.items()
        }


def digest_of(value: object) -> str:
    """SHA-256 of a JSON value in its one canonical spelling."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def write_manifest(bundle: Path, manifest: Manifest) -> None:
    """Write the manifest and its header, atomically."""
    body = manifest.model_dump(mode="json")
    header = dict(zip(_HEADER, (FORMAT, FORMAT_VERSION, digest_of(body)), strict=True))
    write_atomically(bundle / MANIFEST, json.dumps(header | body, indent=2) + "\n")


def is_bundle(folder: Path) -> bool:
    """True where a folder has a manifest, whole or not."""
    return (folder / MANIFEST).is_file()


def read_manifest(bundle: Path) -> Manifest:
    """Read and check the manifest of a bundle (the files that it lists are `verify`'s).

    Raises:
        BundleError: not a bundle, a bundle of another version, or a damaged manifest.
    """
    values = _read_json(bundle)
    _check_header(bundle, values)
    body = {name: value for name, value in values.items() if name not in _HEADER}
    try:
        seal = digest_of(body)
        manifest = Manifest.model_validate_json(json.dumps(body), strict=True)
    except ValidationError as error:
        problems = "\n".join(
            f"  {'.'.join(map(str, problem['loc'])) or '(whole)'}: {problem['msg']}"
            for problem in error.errors()
        )
        raise BundleError(f"{bundle / MANIFEST} is damaged:\n{problems}", hint=_REBUILD) from error
    except ValueError as error:  # a number that JSON cannot spell
        raise BundleError(f"{bundle / MANIFEST} is damaged: {error}", hint=_REBUILD) from error
    if values.get("seal") != seal:
        raise BundleError(
            f"{bundle / MANIFEST} was changed after it was written: its seal is "
            f"{_short(values.get('seal'))}, its content hashes to {seal[:12]}…",
            hint=f"restore it from a copy, or {_REBUILD}",
        )
    return manifest


def _check_header(bundle: Path, values: Mapping[str, Any]) -> None:
    found = values.get("format")
    if found != FORMAT:
        raise BundleError(
            f"{bundle} is not a bundle: the format in its {MANIFEST} is {_short(found)}, "
            f"not {FORMAT!r}",
            hint="name a folder that `tc-export build` made",
        )
    version = values.get("format_version")
    if type(version) is not int or version != FORMAT_VERSION:
        raise BundleError(
            f"{bundle} is a bundle of format version {_short(version)}; this tc-export reads and "
            f"writes version {FORMAT_VERSION}",
            hint=f"{_REBUILD}, or use the tc-export that made it",
        )


def _read_json(bundle: Path) -> dict[str, Any]:
    path = bundle / MANIFEST
    if not bundle.is_dir():
        found = "is not a folder" if bundle.exists() else "does not exist"
        raise BundleError(
            f"{bundle} {found}; a bundle is a folder",
            hint="name a folder that `tc-export build` made",
        )
    # A link may lead out of the bundle, and a pipe may never end.
    if not is_regular_file(path):
        raise BundleError(
            f"{bundle} is not a bundle: it has no file {MANIFEST}",
            hint="name a folder that `tc-export build` made",
        )
    try:
        values = from_json(path.read_bytes())
    except OSError as error:
        raise BundleError(f"{path} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise BundleError(f"{path} is no JSON: {error}", hint=_REBUILD) from error
    if not isinstance(values, dict):
        raise BundleError(f"{path} holds a {type(values).__name__}, not an object", hint=_REBUILD)
    return values


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:40]}…"
