# SPDX-License-Identifier: Apache-2.0
"""`finish` from Python: engines built by a fake, judged by ONNX Runtime on the same graphs."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from tc_export.bundle import EngineState, FileRecord, read_manifest, verify
from tc_export.bundle.layout import graph_path
from tc_export.device_build.finish import _Finish, finish
from tc_export.device_build.judge import judge
from tc_export.device_build.machine import Machine, check_machine, library_architecture
from tc_export.device_build.script_products import ScriptProducts
from tc_export.device_build.spec import read_spec
from tc_export.engine.onnxruntime import OrtEngine
from tc_export.errors import BundleError, CheckFailed, UnsupportedEnvironment
from tests.device_build.conftest import ARCHITECTURE, PLUGIN, TENSORRT, Device, elf_header
from tests.device_build.fake_tools import FakeTools

HERE = Machine(ARCHITECTURE, "10.3.0.26", 87)
ENGINES = ("engines/vision.engine", "engines/decoder.engine")


@pytest.fixture
def fake() -> FakeTools:
    return FakeTools()


def is_pending_and_whole(bundle: Path) -> bool:
    engine = read_manifest(bundle).engine
    assert engine is not None
    return engine.state is EngineState.PENDING and not verify(bundle)


def beside(bundle: Path) -> set[str]:
    return {path.name for path in bundle.parent.iterdir()} - {bundle.name}


def test_builds_judges_and_records(pending: Path, fake: FakeTools) -> None:
    manifest = finish(pending, HERE, fake.tools)
    assert manifest == read_manifest(pending)
    assert not verify(pending)
    assert not beside(pending)
    assert manifest.engine is not None
    assert manifest.engine.state is EngineState.BUILT
    assert manifest.engine.next_step is None
    assert set(manifest.stages["decoder_engine"].files) == {ENGINES[1]}
    decoder = manifest.engine_builds["decoder"]
    assert decoder.builder == "TensorRT 10.3.0.26"
    assert decoder.sm == 87
    assert decoder.plugin_layers == {"TcDualRope": 4, "TcBlockCausalAttention": 2}
    assert manifest.precision_realised == {"vision": "float16", "decoder": "float16"}
    vision, decoder_request = fake.built
    assert vision.graph.name == "vision.tensorrt.onnx"
    assert vision.flavour == "tensorrt"
    assert vision.compute_capability is None
    assert decoder_request.shapes["past_key_values.1.key"].largest == (1, 2, 64, 16)
    assert decoder_request.timing_cache == vision.timing_cache is not None


def test_a_finished_bundle_is_judged_and_stays(pending: Path, fake: FakeTools) -> None:
    first = finish(pending, HERE, fake.tools)
    fake.built, fake.opened = [], []
    assert finish(pending, HERE, fake.tools) == first
    assert not fake.built
    assert [path.name for path in fake.opened] == ["vision.engine", "decoder.engine"]
    fake.wrong = "decoder"
    with pytest.raises(CheckFailed, match="decoder engine"):
        finish(pending, HERE, fake.tools)
    assert read_manifest(pending) == first
    assert not verify(pending)


@pytest.mark.parametrize("graph", ["vision", "decoder"])
def test_a_wrong_engine_changes_nothing(pending: Path, fake: FakeTools, graph: str) -> None:
    fake.wrong = graph
    with pytest.raises(CheckFailed, match=rf"{graph} engine.*within") as raised:
        finish(pending, HERE, fake.tools)
    assert raised.value.exit_code == 1
    assert is_pending_and_whole(pending)
    fake.wrong = None
    fake.built = []
    finish(pending, HERE, fake.tools)
    # The vision engine had passed: only what failed is built again.
    assert len(fake.built) == (2 if graph == "vision" else 1)


def test_takes_the_engines_of_the_script(pending: Path, device: Device, fake: FakeTools) -> None:
    code, said = device.finish(pending)
    assert code == 0, said
    taken = {engine: (pending / engine).read_bytes() for engine in ENGINES}
    manifest = finish(pending, HERE, fake.tools)
    assert not fake.built
    assert len(fake.opened) == 2  # judged once more
    assert not verify(pending)
    assert not beside(pending)
    assert {engine: (pending / engine).read_bytes() for engine in ENGINES} == taken
    assert manifest.engine_builds["decoder"].layers > 20
    assert manifest.engine_builds["vision"].builder == "TensorRT 10.3.0.26"


def test_an_engine_that_the_script_did_not_accept_is_built(
    pending: Path, device: Device, fake: FakeTools
) -> None:
    code, said = device.finish(pending)
    assert code == 0, said
    (pending / ENGINES[0]).write_text("not the one that passed")
    finish(pending, HERE, fake.tools)
    assert [request.engine.name for request in fake.built] == ["vision.engine"]
    assert not verify(pending)


def test_an_engine_that_the_script_built_from_another_bundle_is_built(
    pending: Path, device: Device, fake: FakeTools, tmp_path: Path
) -> None:
    """A newer bundle was copied over one that the script had finished."""
    newer = Path(shutil.copytree(pending, tmp_path / "newer"))
    sums = pending / "finish" / "SHA256SUMS"
    sums.write_text(sums.read_text() + sums.read_text())
    assert device.finish(pending)[0] == 0
    shutil.copytree(newer, pending, dirs_exist_ok=True)
    finish(pending, HERE, fake.tools)
    assert [request.engine.name for request in fake.built] == ["vision.engine", "decoder.engine"]
    assert not verify(pending)
    assert not beside(pending)


@pytest.mark.parametrize("at", [1, 2])
def test_a_kill_leaves_a_whole_bundle_and_the_next_run_resumes(
    pending: Path, fake: FakeTools, tmp_path: Path, at: int
) -> None:
    """What is on the disk while an engine is built is what a kill would leave."""

    def remember(count: int) -> None:
        if count == at:
            shutil.copytree(pending.parent, tmp_path / "killed")

    fake.on_build = remember
    finish(pending, HERE, fake.tools)
    bundle = tmp_path / "killed" / "bundle"
    assert is_pending_and_whole(bundle)
    resumed = FakeTools()
    finish(bundle, HERE, resumed.tools)
    assert len(resumed.built) == 3 - at
    assert not verify(bundle)
    assert not beside(bundle)


def test_what_another_tensorrt_built_before_a_kill_is_built_again(
    pending: Path, fake: FakeTools
) -> None:
    """The software of the device was brought up to date in between."""

    def interrupt(count: int) -> None:
        if count == 2:
            raise KeyboardInterrupt

    fake.on_build = interrupt
    with pytest.raises(KeyboardInterrupt):
        finish(pending, HERE, fake.tools)
    resumed = FakeTools()
    finish(pending, Machine(ARCHITECTURE, "10.16.1", 87), resumed.tools)
    assert [request.engine.name for request in resumed.built] == ["vision.engine", "decoder.engine"]
    assert not verify(pending)


def test_an_engine_depends_on_its_graph_the_plugins_and_the_spec(
    pending: Path, fake: FakeTools, tmp_path: Path
) -> None:
    spec, files = read_spec(pending), read_manifest(pending).files
    graph = spec.graphs["decoder"]

    def key(changed: str = "") -> str:
        other = {changed: FileRecord(sha256="0" * 64, size_bytes=1)} if changed else {}
        staging = SimpleNamespace(published=SimpleNamespace(files={**files, **other}))
        run = _Finish(staging, spec, HERE, fake.tools, ScriptProducts(tmp_path))  # type: ignore[arg-type]
        return run._key("decoder_engine", graph)

    before = key()
    assert key() == before
    weights = next(
        path for path in files if path.endswith(".safetensors") and path.startswith("graphs/")
    )
    for path in (graph.graph, weights, PLUGIN, "finish/finish.json"):
        assert path in files
        assert key(path) != before, path
    assert key(spec.graphs["vision"].graph) == before


def test_an_interrupt_leaves_a_whole_bundle(pending: Path, fake: FakeTools) -> None:
    def interrupt(count: int) -> None:
        raise KeyboardInterrupt

    fake.on_build = interrupt
    with pytest.raises(KeyboardInterrupt):
        finish(pending, HERE, fake.tools)
    assert is_pending_and_whole(pending)


@pytest.mark.parametrize(
    ("machine", "words"),
    [
        (Machine("sparc64", TENSORRT, 87), "this machine is sparc64; the bundle is for orin"),
        (Machine(ARCHITECTURE, "10.2.0", 87), r"has TensorRT 10\.2\.0; .* made for TensorRT 10\.3"),
        (Machine(ARCHITECTURE, "11.3.1", 87), r"has TensorRT 11\.3\.1"),
        (Machine(ARCHITECTURE, TENSORRT, 89), "GPU is of SM 89; .* SM 87"),
    ],
)
def test_another_machine_is_refused(
    pending: Path, fake: FakeTools, machine: Machine, words: str
) -> None:
    with pytest.raises(UnsupportedEnvironment, match=words) as raised:
        finish(pending, machine, fake.tools)
    assert raised.value.hint
    assert not fake.built
    assert is_pending_and_whole(pending)
    assert not beside(pending)


def test_a_later_version_of_the_same_major_will_do(pending: Path, fake: FakeTools) -> None:
    finish(pending, Machine(ARCHITECTURE, "10.16.1", 87), fake.tools)
    assert read_manifest(pending).engine_builds["decoder"].builder.startswith("TensorRT ")


def test_a_library_for_another_processor_is_refused(pending: Path) -> None:
    other = "aarch64" if ARCHITECTURE == "x86_64" else "x86_64"
    spec, library = read_spec(pending), pending / PLUGIN
    library.write_bytes(elf_header(other))
    with pytest.raises(BundleError, match=f"is for {other}, expected {ARCHITECTURE}"):
        check_machine(spec, HERE, pending)
    library.write_bytes(b"no library")
    with pytest.raises(BundleError, match="no shared library"):
        check_machine(spec, HERE, pending)
    library.unlink()
    with pytest.raises(BundleError, match="cannot be read"):
        check_machine(spec, HERE, pending)


@pytest.mark.parametrize("change", ["another library", "none", "a pipe"])
def test_a_library_that_was_changed_is_refused(pending: Path, fake: FakeTools, change: str) -> None:
    (pending / PLUGIN).unlink()
    if change == "another library":
        (pending / PLUGIN).write_bytes(elf_header(ARCHITECTURE) + b"!")
    elif change == "a pipe":
        os.mkfifo(pending / PLUGIN)
    with pytest.raises(BundleError, match=f"damaged:\n  {PLUGIN}"):
        finish(pending, HERE, fake.tools)
    assert not fake.built


@pytest.mark.parametrize("architecture", ["x86_64", "aarch64"])
def test_the_processor_of_a_library(tmp_path: Path, architecture: str) -> None:
    library = tmp_path / "libx.so"
    library.write_bytes(elf_header(architecture))
    assert library_architecture(library) == architecture


@pytest.mark.parametrize("path", ["graphs/decoder.tensorrt.onnx", "golden/decoder/logits.bin"])
def test_a_changed_file_is_refused(pending: Path, fake: FakeTools, path: str) -> None:
    with (pending / path).open("ab") as file:
        file.write(b"!")
    with pytest.raises(BundleError, match="damaged") as raised:
        finish(pending, HERE, fake.tools)
    assert path in str(raised.value)
    assert not fake.built


def test_a_bundle_without_a_spec_is_refused(pending: Path, fake: FakeTools) -> None:
    shutil.rmtree(pending / "finish")
    with pytest.raises(BundleError, match=r"no finish/finish\.json"):
        read_spec(pending)
    with pytest.raises(BundleError, match=r"finish/finish\.json: missing"):
        finish(pending, HERE, fake.tools)


def test_a_damaged_spec_is_refused(pending: Path) -> None:
    spec = pending / "finish" / "finish.json"
    spec.write_text(spec.read_text().replace('"architecture"', '"arch"'))
    with pytest.raises(BundleError, match="damaged: 2 fields"):
        read_spec(pending)
    spec.write_text(spec.read_text().replace("engines/vision", "../vision"))
    with pytest.raises(BundleError, match="damaged"):
        read_spec(pending)


def test_a_spec_that_leaves_the_bundle_through_a_link_is_refused(
    pending: Path, fake: FakeTools, tmp_path: Path
) -> None:
    outside = tmp_path / "outside"
    shutil.move(pending / "plugins", outside)
    (pending / "plugins").symlink_to(outside)
    with pytest.raises(BundleError, match="leads out"):
        finish(pending, HERE, fake.tools)


def test_a_running_script_is_not_disturbed(pending: Path, fake: FakeTools) -> None:
    scratch = pending / "finish" / f".work.{os.getpid()}"
    scratch.mkdir()
    with pytest.raises(UnsupportedEnvironment, match=f"at work .*process {os.getpid()}"):
        finish(pending, HERE, fake.tools)
    scratch.rename(scratch.with_name(".work.999999999"))
    finish(pending, HERE, fake.tools)
    assert not verify(pending)


def test_an_output_beyond_its_tolerance_of_another_shape_or_not_finite_fails(pending: Path) -> None:
    graph = read_spec(pending).graphs["vision"]
    real = OrtEngine(pending / graph_path("vision"), threads=1)
    expected = graph.golden.outputs["visual_features"].load(pending)

    class Says(OrtEngine):
        def __init__(self, says: np.ndarray) -> None:
            super(OrtEngine, self).__init__()
            self.says = says

        def _run(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
            return {"visual_features": self.says}

    assert judge(pending, "vision", graph, real)["visual_features"] < 1
    assert judge(pending, "vision", graph, Says(expected)) == {"visual_features": 0}
    tolerance = graph.golden.outputs["visual_features"].tolerance
    off = np.zeros(expected.shape)
    for sign in (1, -1):
        off[1, 2, 3] = sign * tolerance
        assert judge(pending, "vision", graph, Says(expected + 0.99 * off))
        with pytest.raises(CheckFailed, match=r"visual_features\[1, 2, 3\]"):
            judge(pending, "vision", graph, Says(expected + 1.01 * off))
    with pytest.raises(CheckFailed, match="shape"):
        judge(pending, "vision", graph, Says(expected[:2]))
    not_finite = expected.copy()
    not_finite[1, 2, 3] = np.nan
    with pytest.raises(CheckFailed, match=r"visual_features\[1, 2, 3\] is nan"):
        judge(pending, "vision", graph, Says(not_finite))
