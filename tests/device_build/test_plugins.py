# SPDX-License-Identifier: Apache-2.0
"""A plugin library that its device compiles: by `finish.sh`, by `finish`, and by a real nvcc."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from hashlib import sha256
from pathlib import Path

import pytest

from tc_export.bundle import verify
from tc_export.bundle.layout import PLUGIN_SOURCES
from tc_export.contracts.ops import CONTRACTS
from tc_export.device_build.finish import finish
from tc_export.device_build.machine import Machine
from tc_export.device_build.plugins import compile_plugins
from tc_export.errors import BundleError, UnsupportedEnvironment
from tests.device_build.conftest import (
    ARCHITECTURE,
    PLUGIN,
    Device,
    elf_header,
    write_pending_bundle,
)
from tests.device_build.fake_tools import FakeTools
from tests.device_build.test_finish import beside, is_pending_and_whole
from tests.device_build.test_script import PRODUCTS, added, rewrite, wait_for
from tests.plugins.native import fetched, need, run
from tests.plugins.tensorrt.elf import functions
from tests.plugins.tensorrt.graphs import ATTRIBUTES
from tests.plugins.tensorrt.test_on_host import ENTRY_POINTS

HERE = Machine(ARCHITECTURE, "10.3.0.26", 87)
COMPILED = {PLUGIN, f"{PLUGIN}.sha256"}
KERNEL = f"{PLUGIN_SOURCES}/kernels/prefill.cu"


@pytest.fixture(scope="session")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sources")
    return write_pending_bundle(folder / "bundle", folder, sends_sources=True)


@pytest.fixture
def pending(template: Path, tmp_path: Path) -> Path:
    """A pending bundle with the plugins' sources, at a path that a shell might stumble over."""
    folder = tmp_path / "a device, its: 'bundles'"
    return Path(shutil.copytree(template, folder / "bundle"))


@pytest.fixture
def device(device: Device, monkeypatch: pytest.MonkeyPatch) -> Device:
    """The device, with a stand-in nvcc, for Python as for the script."""
    device.add("nvcc", f"#!{sys.executable}\n{Path(__file__).with_name('nvcc.py').read_text()}")
    for name in ("PATH", "CUDA_HOME"):
        monkeypatch.setenv(name, device.environment()[name])
    return device


def links(device: Device) -> list[list[str]]:
    """The arguments of every nvcc since the last question that was to make a library."""
    notes = device.bin / "nvcc calls"
    lines = notes.read_text().splitlines() if notes.exists() else []
    notes.unlink(missing_ok=True)
    calls: list[list[str]] = [json.loads(line) for line in lines]
    return [call for call in calls if "-shared" in call]


def test_the_script_compiles_the_library_once(pending: Path, device: Device) -> None:
    code, said = device.finish(pending)
    assert code == 0, said
    assert added(pending) == PRODUCTS | COMPILED
    (call,) = links(device)
    sources = {word for word in call if word.startswith(PLUGIN_SOURCES)}
    assert KERNEL in sources
    assert f"{PLUGIN_SOURCES}/tensorrt/creators.cpp" in sources
    used = [call["--dynamicPlugins"] for call in device.calls() if "--dynamicPlugins" in call]
    assert used == [PLUGIN, PLUGIN]
    before = (pending / PLUGIN).stat().st_mtime_ns
    code, said = device.finish(pending)
    assert code == 0, said
    assert f"{PLUGIN} is there" in said
    assert (pending / PLUGIN).stat().st_mtime_ns == before
    assert not links(device)


def test_other_sources_are_compiled_again(pending: Path, device: Device) -> None:
    """A newer bundle was copied over one that was finished."""
    assert device.finish(pending)[0] == 0
    before = (pending / PLUGIN).read_bytes()
    rewrite(pending, KERNEL, "launch_prefill", "launch_pretend")
    code, said = device.finish(pending)
    assert code == 0, said
    assert (pending / PLUGIN).read_bytes() != before
    assert len(links(device)) == 2


def test_one_source_more_is_compiled_in(pending: Path, device: Device) -> None:
    assert device.finish(pending)[0] == 0
    more, sums = f"{PLUGIN_SOURCES}/tensorrt/more.cpp", pending / "finish" / "SHA256SUMS"
    (pending / more).write_text("// more\n")
    with sums.open("a") as file:
        file.write(f"{sha256((pending / more).read_bytes()).hexdigest()}  {more}\n")
    code, said = device.finish(pending)
    assert code == 0, said
    assert [more in call for call in links(device)] == [False, True]


def test_a_library_that_is_not_the_compiled_one_is_compiled_again(
    pending: Path, device: Device
) -> None:
    assert device.finish(pending)[0] == 0
    right = (pending / PLUGIN).read_bytes()
    (pending / PLUGIN).write_text("something else")
    assert device.finish(pending)[0] == 0
    assert (pending / PLUGIN).read_bytes() == right


def test_changed_sources_are_refused(pending: Path, device: Device) -> None:
    with (pending / KERNEL).open("a") as file:
        file.write("!")
    code, said = device.finish(pending)
    assert code == 1
    assert f"{KERNEL}: FAILED" in said
    assert not links(device)


@pytest.mark.parametrize(
    ("lacks", "fault", "words"),
    [
        ("nvcc", "", "nvcc is not on the PATH, nor in /nowhere/bin"),
        ("g++", "", "g++ is not on the PATH"),
        ("", "no headers", "does not find TensorRT's NvInferRuntime.h"),
    ],
)
def test_what_is_missing_is_named_with_what_to_install(
    pending: Path,
    device: Device,
    monkeypatch: pytest.MonkeyPatch,
    lacks: str,
    fault: str,
    words: str,
) -> None:
    device.set(fault=fault)
    if lacks:
        device.remove(lacks)
        monkeypatch.setenv("PATH", device.environment()["PATH"])
    code, said = device.finish(pending)
    assert code == 4, said
    assert words in said
    assert re.search(r"sudo apt-get install g\+\+ .*cuda-toolkit-12-6 .*libnvinfer-dev", said)
    assert not added(pending)
    with pytest.raises(UnsupportedEnvironment, match=re.escape(words)) as raised:
        finish(pending, HERE, FakeTools().tools)
    assert raised.value.exit_code == 4
    assert "cuda-toolkit-12-6" in str(raised.value)
    assert is_pending_and_whole(pending)
    assert beside(pending) == {".bundle.building"}  # what the next run need not check again


def test_what_the_compiler_says_is_quoted(pending: Path, device: Device) -> None:
    device.set(fault="nvcc fails")
    code, said = device.finish(pending)
    assert code == 4, said
    assert "a star is missing" in said
    assert not added(pending)
    with pytest.raises(UnsupportedEnvironment, match="a star is missing"):
        finish(pending, HERE, FakeTools().tools)
    assert is_pending_and_whole(pending)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_leaves_nothing(pending: Path, device: Device, number: int) -> None:
    device.set(fault="nvcc hangs")
    process = device.start(pending)
    wait_for(device.bin / "hanging")
    process.send_signal(number)
    said, _ = process.communicate(timeout=20)
    assert process.returncode == 128 + number, said
    assert not added(pending)


def test_finish_compiles_the_library_and_records_it(pending: Path, device: Device) -> None:
    fake = FakeTools()
    manifest = finish(pending, HERE, fake.tools)
    assert set(manifest.stages["plugin_library"].files) == {PLUGIN}
    assert set(manifest.stages["plugins"].files) > {KERNEL}
    assert len(links(device)) == 1
    assert len(fake.built) == 2
    assert not verify(pending)
    assert not beside(pending)
    assert finish(pending, HERE, fake.tools) == manifest
    assert not links(device)
    (pending / PLUGIN).write_bytes(elf_header(ARCHITECTURE))
    (problem,) = verify(pending)
    assert problem.path == PLUGIN


def test_finish_takes_the_library_of_the_script(pending: Path, device: Device) -> None:
    assert device.finish(pending)[0] == 0
    taken = (pending / PLUGIN).read_bytes()
    links(device)
    fake = FakeTools()
    finish(pending, HERE, fake.tools)
    assert not links(device)
    assert not fake.built
    assert (pending / PLUGIN).read_bytes() == taken
    assert not verify(pending)
    assert not beside(pending)


def test_finish_compiles_what_the_script_has_not_accepted(pending: Path, device: Device) -> None:
    assert device.finish(pending)[0] == 0
    right = (pending / PLUGIN).read_bytes()
    (pending / PLUGIN).write_bytes(elf_header(ARCHITECTURE))
    links(device)
    finish(pending, HERE, FakeTools().tools)
    assert len(links(device)) == 1
    assert (pending / PLUGIN).read_bytes() == right


def test_finish_compiles_what_the_script_made_of_other_sources(
    pending: Path, device: Device, tmp_path: Path
) -> None:
    newer = Path(shutil.copytree(pending, tmp_path / "newer"))
    rewrite(pending, KERNEL, "launch_prefill", "launch_pretend")
    assert device.finish(pending)[0] == 0
    older = (pending / PLUGIN).read_bytes()
    shutil.copytree(newer, pending, dirs_exist_ok=True)
    finish(pending, HERE, FakeTools().tools)
    assert (pending / PLUGIN).read_bytes() != older
    assert not verify(pending)
    assert not beside(pending)


def test_a_library_that_was_compiled_before_a_kill_is_not_compiled_again(
    pending: Path, device: Device
) -> None:
    def interrupt(count: int) -> None:
        raise KeyboardInterrupt

    fake = FakeTools()
    fake.on_build = interrupt
    with pytest.raises(KeyboardInterrupt):
        finish(pending, HERE, fake.tools)
    assert is_pending_and_whole(pending)
    assert len(links(device)) == 1
    finish(pending, HERE, FakeTools().tools)
    assert not links(device)
    assert not verify(pending)


def test_a_compiler_for_another_processor_is_found_out(pending: Path, device: Device) -> None:
    other = "aarch64" if ARCHITECTURE == "x86_64" else "x86_64"
    device.add("uname", f"#!/bin/sh\necho {ARCHITECTURE}\n")
    script = device.bin / "nvcc"
    script.write_text(script.read_text().replace("platform.machine()", repr(other)))
    with pytest.raises(BundleError, match=f"is for {other}, expected {ARCHITECTURE}"):
        finish(pending, HERE, FakeTools().tools)
    assert is_pending_and_whole(pending)


@pytest.fixture(scope="module")
def compiled(template: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The library as the device compiles it, by the nvcc of this machine."""
    need("nvcc", "g++", package="nvidia-cuda-toolkit g++, or NVIDIA's own package")
    folder = tmp_path_factory.mktemp("compiled") / "it's, a bundle"
    shutil.copytree(template, folder)
    (folder / PLUGIN).parent.mkdir(parents=True)
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("TENSORRT_ROOT", str(fetched("tensorrt-headers")))
        compile_plugins(folder, PLUGIN)
    return folder / PLUGIN


@pytest.mark.slow
def test_a_real_compiler_makes_the_library_for_the_device(compiled: Path) -> None:
    assert functions(compiled) == ENTRY_POINTS
    listing = run(fetched("cuobjdump") / "cuobjdump", "--list-elf", compiled)
    assert set(re.findall(r"\.(sm_\d+)\.cubin", listing)) == {"sm_87"}
    assert not list(compiled.parent.glob(f"{compiled.name}.*"))


@pytest.mark.slow
def test_tensorrts_registry_takes_the_compiled_library(compiled: Path) -> None:
    worker = Path(__file__).parents[1] / "plugins" / "tensorrt" / "lean_worker.py"
    done = subprocess.run(
        [sys.executable, str(worker), str(compiled)],
        input=json.dumps(ATTRIBUTES),
        env=os.environ | {"PYTHONPATH": str(fetched("tensorrt-lean"))},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert set(json.loads(done.stdout)["plugins"]) == {op.name for op in CONTRACTS}
