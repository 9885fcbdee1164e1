# SPDX-License-Identifier: Apache-2.0
"""Building the plugin library: what is asked of CMake, and when nothing is built again."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tc_export.errors import UnsupportedEnvironment, UsageError
from tc_export.native import build as plugins
from tc_export.native.build import (
    LIBRARY,
    build_plugins,
    can_compile_for,
    check_cuda,
    find_sources,
    library_key,
)
from tc_export.native.fetch import PACKAGES, fetch
from tc_export.targets import Target, choose_release, load_target


class Tools:
    """Stands for nvcc, CMake and the registry: notes what they are asked, and makes a library."""

    def __init__(self) -> None:
        self.asked: list[list[str]] = []
        self.paths: list[str] = []  # PATH of each call of CMake
        self.fails = ""
        self.nvcc = "release 13.0"

    def run(self, command: Sequence[str], **options: Any) -> SimpleNamespace:
        self.asked.append(list(command))
        program = Path(command[0]).name
        if program == "nvcc":
            return SimpleNamespace(stdout=self.nvcc, returncode=0)
        assert program == "cmake"
        self.paths.append(options["env"]["PATH"])
        phase = "compile" if "--build" in command else "configure"
        if phase == self.fails:
            options["stdout"].write("error: a star is missing\n")
            options["stdout"].flush()
            return SimpleNamespace(returncode=2)
        if phase == "compile":
            folder = Path(command[command.index("--build") + 1]) / "tensorrt"
            folder.mkdir(exist_ok=True)
            (folder / LIBRARY).write_text("library")
        return SimpleNamespace(returncode=0)

    def fetch(self, name: str, *, cache: Path) -> Path:
        assert cache.name == ".cache"
        self.asked.append(["fetch", name])
        return Path("/fetched") / name

    def options(self) -> list[str]:
        return next(command for command in self.asked if "-S" in command)


@pytest.fixture
def tools(monkeypatch: pytest.MonkeyPatch) -> Tools:
    stand_in = Tools()
    monkeypatch.setattr(subprocess, "run", stand_in.run)
    monkeypatch.setattr(plugins, "fetch", stand_in.fetch)
    monkeypatch.setattr(plugins.shutil, "which", lambda name: f"/usr/bin/{name}")
    monkeypatch.setattr(plugins.platform, "machine", lambda: "x86_64")
    return stand_in


COMPILED = (
    "CMakeLists.txt",
    "CMakePresets.json",
    "status.cpp",
    "cmake/Headers.cmake",
    "generated/tc_contract.h",
    "include/tc_kernels.h",
    "jetson/toolchain.cmake",
    "kernels/CMakeLists.txt",
    "kernels/prefill.cu",
    "kernels/prefill.cuh",
    "kernels/launchers.h",
    "kernels/ptx/device.cuh",
    "tensorrt/CMakeLists.txt",
    "tensorrt/plugin.cpp",
    "tensorrt/plugin.h",
)
NOT_COMPILED = (
    "README.md",
    ".clang-format",
    "tensorrt/README.md",
    "cpu/attention_decode.h",
    "cpu/CMakeLists.txt",
    "emulator/block.cpp",
    "kernels/print_shapes.cpp",
    "kernels/prefill.cu.orig",
    "onnxruntime/custom_ops.cpp",
    "tests/test.cpp",
    "tests/tensorrt/CMakeLists.txt",
)


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    sources = tmp_path / "plugins"
    for name in (*COMPILED, *NOT_COMPILED):
        (sources / name).parent.mkdir(parents=True, exist_ok=True)
        (sources / name).write_text("before")
    return tmp_path


def test_the_target_alone_decides_the_architecture(tools: Tools, checkout: Path) -> None:
    library = build_plugins(load_target("rtx5090"), root=checkout)
    assert library.path.read_text() == "library"
    assert (library.sm, library.architecture, library.cached) == (120, "x86_64", False)
    assert "-DCMAKE_CUDA_ARCHITECTURES=120-real" in tools.options()
    assert tools.options()[tools.options().index("--preset") + 1] == "cuda"
    assert "-DTENSORRT_ROOT=/fetched/tensorrt-headers" in tools.options()


def test_a_jetson_is_cross_compiled(tools: Tools, checkout: Path) -> None:
    library = build_plugins(load_target("orin"), root=checkout)
    assert (library.sm, library.architecture) == (87, "aarch64")
    assert "-DCMAKE_CUDA_ARCHITECTURES=87-real" in tools.options()
    assert tools.options()[tools.options().index("--preset") + 1] == "jetson-cross"
    assert "-DTC_CUDA_AARCH64=/fetched/cuda-aarch64" in tools.options()


def test_on_the_jetson_itself_nothing_is_crossed(
    tools: Tools, checkout: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plugins.platform, "machine", lambda: "aarch64")
    build_plugins(load_target("orin"), root=checkout, tensorrt_root=Path("/usr/include"))
    assert tools.options()[tools.options().index("--preset") + 1] == "cuda"
    assert "-DTENSORRT_ROOT=/usr/include" in tools.options()


def test_it_is_built_once(tools: Tools, checkout: Path) -> None:
    target = load_target("rtx4090")
    first = build_plugins(target, root=checkout)
    tools.asked.clear()
    (checkout / "plugins" / "tests" / "test.cpp").write_text("// another test")
    again = build_plugins(target, root=checkout)
    assert again.cached
    assert again.path == first.path
    assert [command[0] for command in tools.asked] == ["/usr/bin/nvcc"]


def _another_source(tools: Tools, checkout: Path) -> Target:
    (checkout / "plugins" / "kernels" / "prefill.cu").write_text("// another kernel")
    return load_target("rtx4090")


@pytest.mark.parametrize("name", COMPILED)
@pytest.mark.parametrize("device", ["rtx4090", "orin"])
def test_what_is_compiled_decides_the_key(
    tools: Tools, checkout: Path, device: str, name: str
) -> None:
    before = library_key(load_target(device), root=checkout)
    (checkout / "plugins" / name).write_text("after")
    assert library_key(load_target(device), root=checkout) != before


@pytest.mark.parametrize("name", NOT_COMPILED)
def test_what_is_not_compiled_does_not(tools: Tools, checkout: Path, name: str) -> None:
    before = library_key(load_target("orin"), root=checkout)
    (checkout / "plugins" / name).write_text("after")
    assert library_key(load_target("orin"), root=checkout) == before
    (checkout / "plugins" / name).unlink()
    assert library_key(load_target("orin"), root=checkout) == before


@pytest.mark.parametrize(
    ("device", "used"),
    [("rtx4090", {"tensorrt-headers"}), ("orin", {"tensorrt-headers", "cuda-aarch64"})],
)
@pytest.mark.parametrize("nvcc_on_path", [True, False])
def test_packages_that_are_fetched_for_it_decide_the_key(
    tools: Tools,
    checkout: Path,
    monkeypatch: pytest.MonkeyPatch,
    device: str,
    used: set[str],
    nvcc_on_path: bool,
) -> None:
    if not nvcc_on_path:
        without(monkeypatch, "nvcc")
        used = used | {"nvcc"}
    before = library_key(load_target(device), root=checkout)
    for name, package in PACKAGES.items():
        with monkeypatch.context() as patched:
            patched.setitem(PACKAGES, name, replace(package, wheels=("another==1",)))
            differs = library_key(load_target(device), root=checkout) != before
        assert differs == (name in used), name


def _another_compiler(tools: Tools, checkout: Path) -> Target:
    tools.nvcc = "release 13.1"
    return load_target("rtx4090")


def _another_sm(tools: Tools, checkout: Path) -> Target:
    return load_target("a100")


@pytest.mark.parametrize("change", [_another_source, _another_compiler, _another_sm])
def test_what_it_is_made_from_decides(tools: Tools, checkout: Path, change: Any) -> None:
    first = build_plugins(load_target("rtx4090"), root=checkout)
    other = build_plugins(change(tools, checkout), root=checkout)
    assert not other.cached
    assert other.path != first.path


@pytest.mark.parametrize("phase", ["configure", "compile"])
def test_a_failure_shows_the_end_of_the_log_and_keeps_nothing(
    tools: Tools, checkout: Path, phase: str
) -> None:
    tools.fails = phase
    with pytest.raises(UnsupportedEnvironment, match="a star is missing") as raised:
        build_plugins(load_target("rtx4090"), root=checkout)
    assert "build.log" in str(raised.value.hint)
    assert not list(checkout.rglob(LIBRARY))
    tools.fails = ""
    assert not build_plugins(load_target("rtx4090"), root=checkout).cached


def without(monkeypatch: pytest.MonkeyPatch, missing: str) -> None:
    monkeypatch.setattr(
        plugins.shutil, "which", lambda name: None if name == missing else f"/usr/bin/{name}"
    )


def test_no_compiler(tools: Tools, checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    without(monkeypatch, "g++")
    with pytest.raises(UnsupportedEnvironment, match="needs g\\+\\+"):
        build_plugins(load_target("rtx4090"), root=checkout)


def test_nvcc_of_the_path_comes_first(tools: Tools, checkout: Path) -> None:
    build_plugins(load_target("rtx4090"), root=checkout)
    assert [path.split(":")[0] for path in tools.paths] == ["/usr/bin", "/usr/bin"]
    assert "nvcc" not in [command[-1] for command in tools.asked]


@pytest.mark.parametrize("device", ["rtx4090", "orin"])
def test_without_nvcc_the_registry_has_one(
    tools: Tools, checkout: Path, monkeypatch: pytest.MonkeyPatch, device: str
) -> None:
    without(monkeypatch, "nvcc")
    build_plugins(load_target(device), root=checkout)
    assert ["/fetched/nvcc/nvcc", "--version"] in tools.asked
    assert [path.split(":")[0] for path in tools.paths] == ["/fetched/nvcc", "/fetched/nvcc"]


def test_neither_nvcc_nor_a_registry(
    tools: Tools, checkout: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def pip(*_: object, **__: object) -> None:
        raise subprocess.CalledProcessError(1, "pip", stderr="no connection")

    without(monkeypatch, "nvcc")
    monkeypatch.setattr(subprocess, "run", pip)
    monkeypatch.setattr(plugins, "fetch", fetch)
    with pytest.raises(
        UnsupportedEnvironment, match=r"nvcc could not be fetched.*no connection"
    ) as e:
        build_plugins(load_target("rtx4090"), root=checkout)
    assert "put nvcc on the PATH" in str(e.value.hint)


def test_no_gpu(tools: Tools, checkout: Path) -> None:
    with pytest.raises(UsageError, match="cpu has no GPU"):
        build_plugins(load_target("cpu"), root=checkout)


def test_an_installed_package_has_no_sources(tools: Tools, tmp_path: Path) -> None:
    with pytest.raises(UnsupportedEnvironment, match="does not have them"):
        build_plugins(load_target("rtx4090"), root=tmp_path)
    with pytest.raises(UnsupportedEnvironment, match="does not have them"):
        find_sources(tmp_path)


@pytest.mark.parametrize(
    ("target", "release", "compiler", "fits"),
    [
        ("orin", "JetPack 7.2", "release 13.0", True),
        ("orin", "JetPack 6.2", "release 13.0", False),
        ("orin", "JetPack 6.2", "release 12.6", True),
        ("rtx4090", None, "release 13.2", True),
        ("a100", None, "no compiler of ours", False),
    ],
)
def test_the_compiler_and_the_release_have_one_cuda(
    tools: Tools, target: str, release: str | None, compiler: str, fits: bool
) -> None:
    tools.nvcc = compiler
    chosen = choose_release(load_target(target), release)
    assert chosen is not None
    assert can_compile_for(chosen) == fits
    if fits:
        check_cuda(chosen)
        return
    with pytest.raises(UnsupportedEnvironment, match="would not load there") as caught:
        check_cuda(chosen)
    assert caught.value.hint
    assert "--release" in caught.value.hint


def test_the_version_of_the_registrys_compiler_is_known_without_downloading_it(
    tools: Tools, monkeypatch: pytest.MonkeyPatch
) -> None:
    without(monkeypatch, "nvcc")
    older, newer = (choose_release(load_target("orin"), version) for version in ("10.3", "10.16"))
    assert older is not None
    assert newer is not None
    assert not can_compile_for(older)
    assert can_compile_for(newer)
    assert tools.asked == []
