# SPDX-License-Identifier: Apache-2.0
"""A small pending bundle, and the device's tools as stand-ins."""

from __future__ import annotations

import json
import os
import platform
import shutil
import stat
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch

from tc_export.bundle import (
    BundleSpec,
    EngineRecord,
    EngineState,
    Manifest,
    Profile,
    StageRecord,
    StageResults,
    open_staging,
)
from tc_export.bundle.layout import PLUGIN_SOURCES, graph_path, tensorrt_graph_path
from tc_export.bundle.manifest import digest_of
from tc_export.checkpoint.reader import open_checkpoint
from tc_export.contracts.graph_io import GRAPHS
from tc_export.contracts.parts import engine_graphs
from tc_export.contracts.shapes import decoder_shapes, vision_shapes
from tc_export.device_build.write import PendingBuild, PendingEngine, write_finish
from tc_export.dtypes import DType
from tc_export.golden.files import write_golden
from tc_export.golden.make import make_golden
from tc_export.graph.parts import write_parts
from tc_export.graph.tensorrt_form import to_tensorrt_form
from tc_export.native.build import find_sources
from tc_export.native.sources import library_sources
from tc_export.parity.tensors.check_bundle import references
from tc_export.targets import Precisions
from tests.checkpoint.families import edit_config, save_small
from tests.exported import export_graph

TENSORRT = "10.3"
MAX_FRAMES, MAX_LENGTH = 3, 64
ARCHITECTURE = platform.machine()
PLUGIN = f"plugins/{ARCHITECTURE}-sm87/libtc_tensorrt.so"
ELF_MACHINES = {"x86_64": 0x3E, "aarch64": 0xB7}


def elf_header(architecture: str) -> bytes:
    """As much of a shared library as anyone here reads."""
    return b"\x7fELF" + bytes(14) + ELF_MACHINES[architecture].to_bytes(2, "little") + bytes(44)


def write_pending_bundle(
    output: Path, scratch: Path, *, sends_sources: bool = False, parts: int = 1
) -> Path:
    """What a host without the device makes of a small LLaVA in float16.

    `sends_sources`: the bundle has the sources of the plugins in the place of their library.
    `parts`: engines that the decoder becomes.
    """
    source = save_small(scratch / "checkpoint", dtype=torch.float16)
    settings = {"gamma": 0.5}
    edit_config(source, lambda document: document.update(temporal=settings))
    checkpoint = open_checkpoint(source)
    config = checkpoint.config.model
    with open_staging(output) as staging:
        folder = staging.bundle
        engine_list = engine_graphs(config.text.num_hidden_layers, parts)
        for graph in GRAPHS:
            export_graph(graph, checkpoint, DType.FLOAT16, folder)
        places = {x.part: folder / graph_path(x.name) for x in engine_list if x.part is not None}
        if places:
            write_parts(folder / graph_path("decoder"), config, places)
        nodes = {}
        for each in engine_list:
            source, path = folder / graph_path(each.name), folder / tensorrt_graph_path(each.name)
            nodes[each.name] = to_tensorrt_form(source, path, TENSORRT).custom_nodes
        if sends_sources:
            for source in library_sources(find_sources()):
                (folder / PLUGIN_SOURCES / source).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(find_sources() / source, folder / PLUGIN_SOURCES / source)
        else:
            (folder / PLUGIN).parent.mkdir(parents=True)
            (folder / PLUGIN).write_bytes(elf_header(ARCHITECTURE))
        precisions = Precisions.both("float16")
        golden = make_golden(
            references(checkpoint, precisions),
            precisions,
            max_frames=MAX_FRAMES,
            max_length=MAX_LENGTH,
            parts=[each for each in engine_list if each.part is not None],
        )
        calls = write_golden(folder, golden)
        shapes = {
            each.name: decoder_shapes(
                config, MAX_LENGTH, None if each.part is None else each.part.layers
            )
            for each in engine_list
        }
        shapes["vision"] = vision_shapes(config, MAX_FRAMES)
        engines = {
            name: PendingEngine(
                graph=tensorrt_graph_path(name),
                engine=f"engines/{name}.engine",
                precision="float16",
                custom_nodes=nodes[name],
                shapes=shapes[name],
                golden=calls[name],
            )
            for name in nodes
        }
        build = PendingBuild(
            target="orin",
            release="JetPack 6.2",
            cuda="12.6",
            tensorrt=TENSORRT,
            architecture=ARCHITECTURE,
            sm=87,
            plugin_library=PLUGIN,
            plugin_sources=PLUGIN_SOURCES if sends_sources else None,
            engines=engines,
        )
        write_finish(folder, build)
        pending = EngineRecord(
            backend="tensorrt", state=EngineState.PENDING, next_step="tc-export finish BUNDLE"
        )
        results = {
            "graphs": StageResults(custom_nodes=nodes),
            "finish": StageResults(engine=pending),
        }
        records = {
            name: StageRecord(
                key=digest_of(name),
                seconds=0,
                files=staging.hash_outputs((name,)),
                results=results.get(name, StageResults()),
            )
            for name in ("graphs", "golden", "plugins", "finish")
        }
        spec = BundleSpec(
            target="orin",
            checkpoint_digest=checkpoint.digest(),
            profile=Profile(max_frames=MAX_FRAMES, max_length=MAX_LENGTH),
            precision_asked=precisions.model_dump(mode="json"),
            decoder_parts=parts,
            tools={},
        )
        staging.publish(Manifest.assemble(spec, records))
    return output


@pytest.fixture(scope="session")
def parted_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with a decoder in two parts. Not to be changed: copy it first."""
    folder = tmp_path_factory.mktemp("parted")
    return write_pending_bundle(folder / "bundle", folder, parts=2)


@pytest.fixture(scope="session")
def pending_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Not to be changed: copy it first."""
    folder = tmp_path_factory.mktemp("pending")
    return write_pending_bundle(folder / "bundle", folder)


@pytest.fixture
def pending(pending_template: Path, tmp_path: Path) -> Path:
    """A pending bundle whose path has what a shell might stumble over."""
    folder = tmp_path / "a device, its: 'bundles'"
    return Path(shutil.copytree(pending_template, folder / "bundle"))


@dataclass
class Device:
    """A machine with a stand-in trtexec first on its PATH."""

    bin: Path
    programs: str = field(default_factory=lambda: os.environ["PATH"])  # that it has beside it

    def set(self, *, version: int = 100300, fault: str = "") -> None:
        """What the next trtexec is and does."""
        values = {"version": version, "fault": fault, "calls": str(self.bin / "calls")}
        (self.bin / "settings.json").write_text(json.dumps(values))

    def calls(self) -> list[dict[str, Any]]:
        """The options of every trtexec since the last question."""
        notes = self.bin / "calls"
        found = [json.loads(line) for line in notes.read_text().splitlines()]
        notes.write_text("")
        return found

    def add(self, name: str, text: str) -> None:
        """Put a program on the PATH."""
        path = self.bin / name
        path.write_text(text)
        path.chmod(path.stat().st_mode | stat.S_IXUSR)

    def remove(self, *names: str) -> None:
        """Take programs off the PATH, wherever they are."""
        others = self.bin.with_name("programs")
        others.mkdir()
        for folder in reversed(self.programs.split(os.pathsep)):
            for program in Path(folder).glob("*"):
                (others / program.name).unlink(missing_ok=True)
                if program.name not in names:
                    (others / program.name).symlink_to(program)
        for name in names:
            (self.bin / name).unlink(missing_ok=True)
        self.programs = str(others)

    def environment(self) -> dict[str, str]:
        path = f"{self.bin}{os.pathsep}{self.programs}"
        return {**os.environ, "PATH": path, "CUDA_HOME": "/nowhere"}

    def start(self, bundle: Path) -> subprocess.Popen[str]:
        """Start the script from another folder, by its path."""
        return subprocess.Popen(
            # A job in the background ignores interrupts, and so would the script.
            ["env", "--default-signal=INT", "sh", str(bundle / "finish" / "finish.sh")],
            cwd=bundle.parent,
            env=self.environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def finish(self, bundle: Path) -> tuple[int, str]:
        """Run the script; return its exit code and what it said."""
        process = self.start(bundle)
        said, _ = process.communicate(timeout=120)
        return process.returncode, said


@pytest.fixture
def device(tmp_path: Path) -> Device:
    """The device that the bundle is for."""
    folder = tmp_path / "bin"
    folder.mkdir()
    made = Device(folder)
    text = Path(__file__).with_name("trtexec.py").read_text()
    made.add("trtexec", f"#!{sys.executable}\n{text}")
    (folder / "calls").touch()
    made.set()
    return made
