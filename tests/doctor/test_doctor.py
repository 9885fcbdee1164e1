# SPDX-License-Identifier: Apache-2.0
"""Doctor: bounded checks that never raise, and what is missing for targets on made-up machines."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest

from tc_export.cli.main import main
from tc_export.doctor import checks, examine
from tc_export.doctor.checks import OP_NAMES, Finding, NotHere, ask, run_check
from tc_export.doctor.missing import Missing, Purpose, find_missing
from tc_export.targets import load_target


def program(folder: Path, name: str, script: str) -> None:
    """A program of that name on the PATH that is `folder`."""
    path = folder / name
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A PATH with nothing on it."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))
    return folder


class TestChecks:
    def test_a_program_that_hangs_is_a_finding(self, path: Path) -> None:
        program(path, "slow", "exec /bin/sleep 60")
        start = time.monotonic()
        finding = run_check(lambda: {"said": ask("slow", seconds=0.3)})
        assert time.monotonic() - start < 20
        assert "TimeoutExpired" in str(finding.failure)

    def test_a_program_that_fails_is_a_finding(self, path: Path) -> None:
        program(path, "nvidia-smi", "echo 'driver mismatch' >&2; exit 9")
        assert str(run_check(checks.gpus).failure).endswith("ended with 9: driver mismatch")

    def test_nothing_on_the_path_is_no_failure(
        self, path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(checks, "_CUDA_FOLDER", path)
        for check in (checks.gpus, checks.cuda, checks.compilers):
            finding = run_check(check)
            assert finding.missing
            assert not finding

    def test_gpus_and_driver(self, path: Path) -> None:
        program(path, "nvidia-smi", "echo 'NVIDIA L4, 8.9, 580.1, 23034 MiB'")
        assert checks.gpus() == {
            "gpus": [
                {
                    "name": "NVIDIA L4",
                    "compute_cap": "8.9",
                    "driver_version": "580.1",
                    "memory.total": "23034 MiB",
                }
            ]
        }

    @pytest.mark.parametrize("said", ["", "what?"])
    def test_a_driver_that_talks_otherwise(self, path: Path, said: str) -> None:
        program(path, "nvidia-smi", f"echo '{said}'")
        assert not run_check(checks.gpus)

    def test_cuda_version(self, path: Path) -> None:
        program(path, "nvcc", "echo 'Cuda compilation tools, release 12.6, V12.6.85'")
        assert checks.cuda()["version"] == "12.6"

    def test_bindings_that_crash_their_process(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (tmp_path / "tensorrt.py").write_text("import os; os.abort()")
        (tmp_path / "tensorrt_rtx.py").write_text("__version__ = '1.7'")
        monkeypatch.syspath_prepend(str(tmp_path))
        monkeypatch.setenv("PYTHONPATH", str(tmp_path))
        found = checks.tensorrt()
        assert found["tensorrt_rtx"] == "1.7"
        assert found["tensorrt"].startswith("does not import")

    def test_plugin_libraries_are_read_not_opened(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        library = tmp_path / "build" / "jetson" / "tensorrt" / "libtc_tensorrt.so"
        library.parent.mkdir(parents=True)
        library.write_bytes(b"\x7fELF" + bytes(14) + b"\xb7\x00" + b"..TcDualRope..")
        monkeypatch.setattr(checks, "_REPOSITORY", tmp_path)
        (found,) = checks.plugins().values()
        assert found == {"architecture": "aarch64", "ops": ["TcDualRope"]}
        library.write_bytes(b"")
        assert next(iter(checks.plugins().values()))["ops"] == []

    def test_packages_of_another_version(self, monkeypatch: pytest.MonkeyPatch) -> None:
        needs = ["numpy>=99", "no-such-package>=1", "rich>=1", "pytest>=1; extra == 'dev'"]
        monkeypatch.setattr(checks.metadata, "requires", lambda name: needs)
        found = checks.packages()
        assert {name: fact["fits"] for name, fact in found.items()} == {
            "numpy": False,
            "no-such-package": False,
            "rich": True,
        }


def machine(**changes: Finding) -> dict[str, Finding]:
    """An x86-64 machine with everything to build TensorRT-RTX engines, and no GPU."""
    ops = list(OP_NAMES)
    findings = {
        "system": Finding(facts={"architecture": "x86_64"}),
        "gpus": Finding(missing="no nvidia-smi"),
        "cuda": Finding(facts={"nvcc": "/nvcc"}),
        "compilers": Finding(facts={"cmake": "/cmake", "c++": "/c++"}),
        "tensorrt": Finding(facts={"tensorrt_rtx": "1.7.1"}),
        "onnxruntime": Finding(facts={"version": "1.31"}),
        "native_library": Finding(facts={"onnxruntime_ops": ops}),
        "plugins": Finding(facts={"/x.so": {"architecture": "x86_64", "ops": ops}}),
        "packages": Finding(facts={"numpy": {"version": "2", "wanted": ">=2", "fits": True}}),
    }
    return {**findings, **changes}


def missing(target: str, **changes: Finding) -> dict[str, Missing]:
    device = load_target(target)
    found = find_missing(device, machine(**changes))
    return {x.what: x for x in (each.for_target(device) for each in found)}


class TestMissing:
    def test_nothing_where_all_is_there(self) -> None:
        assert not missing("cpu")
        assert not missing("rtx4090")

    def test_native_kernels(self) -> None:
        found = missing("cpu", native_library=Finding(missing="not built"))
        (thing,) = found.values()
        assert thing.needed_for is Purpose.SPEED
        assert "cmake --preset native" in thing.fix
        bare = missing("cpu", native_library=Finding(missing="x"), compilers=Finding(missing="y"))
        assert "CMake and a C++ compiler" in bare

    def test_one_op_that_no_kernel_serves(self) -> None:
        served = Finding(facts={"onnxruntime_ops": ["TcDualRope", "TcBlockCausalAttentionInt8"]})
        assert "native kernels of TcBlockCausalAttention" in missing("cpu", native_library=served)

    @pytest.mark.parametrize("facts", [{}, {"tensorrt_rtx": "does not import: crashed"}])
    def test_tensorrt_rtx(self, facts: dict[str, Any]) -> None:
        (thing,) = missing("rtx4090", tensorrt=Finding(facts=facts)).values()
        assert thing.fix == "pip install 'tc-export[rtx]'"
        bindings = Finding(facts={**facts, "tensorrt_rtx_bindings": "1.7.1"})
        assert not missing("rtx4090", tensorrt=bindings)

    def test_plugins_of_another_architecture_do_not_count(self) -> None:
        found = missing("orin")
        assert {"a GPU of SM 87", "the program aarch64-linux-gnu-g++"} <= found.keys()
        assert "--target orin" in found["TensorRT plugins for aarch64"].fix

    def test_plugins_are_built_for_the_target(self) -> None:
        bare = {"plugins": Finding(missing="none"), "cuda": Finding(missing="none")}
        found = missing("rtx5090", **bare)
        assert "--target rtx5090" in found["TensorRT plugins for x86_64"].fix
        assert len(found) == 1  # the CUDA compiler comes from the registry
        found = missing("rtx5090", **bare, compilers=Finding(missing="none"))
        assert {"the program cmake", "the program c++"} <= found.keys()

    def test_the_gpu_must_be_the_targets(self) -> None:
        l4 = Finding(facts={"gpus": [{"compute_cap": "8.9"}]})
        assert "a GPU of SM 90" in missing("h100", gpus=l4)
        assert missing("l4", gpus=l4).keys() == {"TensorRT"}
        assert not missing("l4", gpus=l4, tensorrt=Finding(facts={"tensorrt": "10.13"}))

    def test_on_a_jetson(self) -> None:
        jetson = {
            "system": Finding(facts={"architecture": "aarch64"}),
            "gpus": Finding(facts={"jetson": "R36"}),
            "plugins": Finding(facts={"/x": {"architecture": "aarch64", "ops": list(OP_NAMES)}}),
        }
        assert not missing("orin", **jetson, tensorrt=Finding(facts={"trtexec": "/trtexec"}))
        found = missing("orin", **jetson, tensorrt=Finding(missing="none"))
        assert found["TensorRT"].fix == "sudo apt-get install nvidia-jetpack"

    def test_packages_and_onnx_runtime(self) -> None:
        wrong = Finding(facts={"numpy": {"version": None, "wanted": ">=2", "fits": False}})
        found = missing("cpu", packages=wrong, onnxruntime=Finding(failure="ImportError: no"))
        assert found["the package numpy is not installed"].fix == "pip install 'numpy>=2'"
        assert "ONNX Runtime does not work: ImportError: no" in found

    def test_a_machine_on_which_every_check_fails(self) -> None:
        broken = {name: Finding(failure="OSError: odd") for name in checks.CHECKS}
        for target in ("cpu", "orin", "rtx4090", "h100"):
            assert list(find_missing(load_target(target), broken))


def test_examine_survives_whatever_the_checks_do(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails() -> dict[str, Any]:
        raise RecursionError("odd")

    def absent() -> dict[str, Any]:
        raise NotHere("not here")

    odd = {name: fails if i % 2 else absent for i, name in enumerate(checks.CHECKS)}
    monkeypatch.setattr("tc_export.doctor.CHECKS", odd)
    report = examine([load_target("orin")])
    assert report.findings["memory"].failure == "RecursionError: odd"
    (orin,) = report.targets
    assert orin.missing


def test_doctor_as_a_user_calls_it(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["doctor", "--target", "rtx4090", "--json"])
    assert not ended.value.code
    report = json.loads(capsys.readouterr().out)
    assert report["machine"].keys() == checks.CHECKS.keys()
    assert report["machine"]["onnxruntime"]["facts"]["version"]
    assert report["machine"]["packages"]["facts"]["numpy"]["fits"]
    assert report["targets"].keys() == {"rtx4090"}
    assert all(thing["fix"] for thing in report["targets"]["rtx4090"]["missing"])


def test_an_op_without_a_kernel_does_not_open() -> None:
    """What `native_library` relies on: such a model opens only with a library that serves it."""
    import onnxruntime as ort

    from tc_export.contracts.ops import CONTRACTS
    from tc_export.doctor.native_check import one_node_model, serves
    from tc_export.native.find import find_native_library

    options = ort.SessionOptions()
    options.log_severity_level = 4
    for contract in CONTRACTS:
        with pytest.raises(Exception, match=contract.name):
            ort.InferenceSession(one_node_model(contract), options)
    library = find_native_library()
    if library is None or not library.has_onnxruntime_ops:
        pytest.skip("the native library was not built: no C++ compiler or no ONNX Runtime headers")
    assert all(serves(library.path, contract) for contract in CONTRACTS)
