# SPDX-License-Identifier: Apache-2.0
"""`finish.sh` from beginning to end, with a stand-in for trtexec that computes for real."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import time
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest

from tc_export.bundle import verify
from tc_export.device_build.spec import read_spec
from tests.device_build.conftest import PLUGIN, Device
from tests.repository import REPOSITORY

ENGINES = ("engines/vision.engine", "engines/decoder.engine")
PRODUCTS = {
    *(f"{engine}{suffix}" for engine in ENGINES for suffix in ("", ".sha256", ".layers.json")),
    "finish/timing.cache",
}


def added(bundle: Path) -> set[str]:
    """What the bundle holds beside what its manifest lists; nothing else may differ."""
    problems = verify(bundle)
    assert all(problem.damage == "added" for problem in problems), problems
    return {problem.path for problem in problems}


def test_builds_judges_and_keeps_both_engines(pending: Path, device: Device) -> None:
    code, said = device.finish(pending)
    assert code == 0, said
    assert added(pending) == PRODUCTS
    assert "visual_features: " in said
    assert "logits: " in said
    assert "finished" in said
    options = [set(call) for call in device.calls()]
    assert len(options) == 5  # help; build and judge each
    assert "--dynamicPlugins" not in options[1]
    assert all("--dynamicPlugins" in call for call in options[3:])
    layers = json.loads((pending / "engines" / "decoder.engine.layers.json").read_text())
    assert len(layers["Layers"]) > 20


def test_a_second_run_builds_nothing_and_judges_again(pending: Path, device: Device) -> None:
    assert device.finish(pending)[0] == 0
    before = {engine: (pending / engine).stat().st_mtime_ns for engine in ENGINES}
    device.calls()
    code, said = device.finish(pending)
    assert code == 0, said
    assert before == {engine: (pending / engine).stat().st_mtime_ns for engine in ENGINES}
    calls = device.calls()
    assert not any("--onnx" in call for call in calls)
    assert sum("--loadEngine" in call for call in calls) == 2
    assert added(pending) == PRODUCTS


def test_an_engine_that_computes_something_else_is_not_kept(pending: Path, device: Device) -> None:
    device.set(fault="one wrong value")
    code, said = device.finish(pending)
    assert code == 1, said
    assert "does not compute what it should" in said
    assert not any(".engine" in path for path in added(pending))
    device.set()
    assert device.finish(pending)[0] == 0


def test_an_accepted_engine_that_goes_wrong_is_removed(pending: Path, device: Device) -> None:
    assert device.finish(pending)[0] == 0
    device.set(fault="one wrong value")
    code, said = device.finish(pending)
    assert code == 1, said
    assert "no longer computes" in said
    assert not any("vision.engine" in path for path in added(pending))


def test_an_engine_that_is_not_the_accepted_one_is_built_again(
    pending: Path, device: Device
) -> None:
    assert device.finish(pending)[0] == 0
    (pending / ENGINES[1]).write_text("something else")
    device.calls()
    assert device.finish(pending)[0] == 0
    built = [call["--onnx"] for call in device.calls() if "--onnx" in call]
    assert built == ["graphs/decoder.tensorrt.onnx"]


def rewrite(bundle: Path, path: str, old: str, new: str) -> None:
    """What another build of the bundle would have written, its hash in SHA256SUMS."""
    file, sums = bundle / path, bundle / "finish" / "SHA256SUMS"
    before = file.read_bytes()
    assert old.encode() in before
    after = before.replace(old.encode(), new.encode())
    file.write_bytes(after)
    hashes = [sha256(content).hexdigest() for content in (before, after)]
    assert hashes[0] in sums.read_text()
    sums.write_text(sums.read_text().replace(*hashes))


def test_an_engine_of_another_bundle_is_built_again(pending: Path, device: Device) -> None:
    """A newer bundle was copied over one that was finished. The old engines still pass."""
    assert device.finish(pending)[0] == 0
    device.calls()
    rewrite(
        pending, "finish/vision.settings", "max_shapes=pixel_values:3", "max_shapes=pixel_values:4"
    )
    code, said = device.finish(pending)
    assert code == 0, said
    built = [call for call in device.calls() if "--onnx" in call]
    assert [call["--onnx"] for call in built] == [
        "graphs/vision.tensorrt.onnx",
        "graphs/decoder.tensorrt.onnx",
    ]
    assert built[0]["--maxShapes"].startswith("pixel_values:4")
    device.finish(pending)
    assert not any("--onnx" in call for call in device.calls())


@pytest.mark.parametrize(
    ("fault", "words"),
    [("build fails", "could not build"), ("run fails", "could not run")],
)
def test_what_trtexec_could_not_do_is_quoted(
    pending: Path, device: Device, fault: str, words: str
) -> None:
    device.set(fault=fault)
    code, said = device.finish(pending)
    assert code == 4, said
    assert words in said
    assert "[E] " in said
    assert added(pending) <= {"finish/timing.cache"}


def test_another_processor_is_refused(pending: Path, device: Device) -> None:
    device.add("uname", "#!/bin/sh\necho sparc64\n")
    code, said = device.finish(pending)
    assert code == 4
    assert "this machine is sparc64" in said
    assert not added(pending)


@pytest.mark.parametrize(("version", "words"), [(100200, "TensorRT 10.2"), (110401, "11.4")])
def test_another_tensorrt_is_refused(
    pending: Path, device: Device, version: int, words: str
) -> None:
    device.set(version=version)
    code, said = device.finish(pending)
    assert code == 4
    assert words in said
    assert "made for 10.3" in said
    assert not any("--onnx" in call for call in device.calls())
    assert not added(pending)


def test_a_later_version_of_the_same_major_will_do(pending: Path, device: Device) -> None:
    device.set(version=101600)
    code, said = device.finish(pending)
    assert code == 0, said
    assert "TensorRT 10.16" in said


def test_no_trtexec(pending: Path, device: Device) -> None:
    if Path("/usr/src/tensorrt/bin/trtexec").exists():
        pytest.skip("this machine has a trtexec of its own")
    (device.bin / "trtexec").unlink()
    code, said = device.finish(pending)
    assert code == 4
    assert "trtexec is not on the PATH" in said
    assert not added(pending)


def test_a_missing_plugin_library_is_refused(pending: Path, device: Device) -> None:
    (pending / PLUGIN).unlink()
    code, said = device.finish(pending)
    assert code == 1
    assert f"{PLUGIN} is missing" in said
    assert not any("--onnx" in call for call in device.calls())


@pytest.mark.parametrize(
    "path",
    [
        "graphs/decoder.tensorrt.onnx",
        PLUGIN,
        "golden/decoder/logits.bin",
        "finish/decoder.settings",
    ],
)
def test_a_changed_file_is_refused_and_named(pending: Path, device: Device, path: str) -> None:
    data = bytearray((pending / path).read_bytes())
    data[-2] ^= 1
    (pending / path).write_bytes(data)
    code, said = device.finish(pending)
    assert code == 1
    assert f"{path}: FAILED" in said
    assert not any("--onnx" in call for call in device.calls())
    assert not (pending / "engines").exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_leaves_nothing(pending: Path, device: Device, number: int) -> None:
    device.set(fault="hangs")
    process = device.start(pending)
    wait_for(device.bin / "hanging")
    process.send_signal(number)
    said, _ = process.communicate(timeout=20)
    assert process.returncode == 128 + number, said
    assert not added(pending)


def test_what_a_kill_leaves_is_cleared_by_the_next_run(pending: Path, device: Device) -> None:
    device.set(fault="hangs")
    process = device.start(pending)
    wait_for(device.bin / "hanging")
    code, said = device.finish(pending)
    assert code == 4
    assert f"another finish.sh is at work (process {process.pid})" in said
    process.kill()
    process.communicate(timeout=20)
    _kill_group(process)
    assert all(path.startswith("finish/.work.") for path in added(pending))
    device.set()
    code, said = device.finish(pending)
    assert code == 0, said
    assert added(pending) == PRODUCTS


def wait_for(path: Path) -> None:
    deadline = time.monotonic() + 60
    while not path.exists():
        assert time.monotonic() < deadline, f"{path.name} never came"
        time.sleep(0.02)


def _kill_group(process: subprocess.Popen[str]) -> None:
    """End the stand-in that the killed script has left behind."""
    os.killpg(process.pid, signal.SIGKILL)


def test_a_tensorrt_without_an_option_does_without(pending: Path, device: Device) -> None:
    """From 11 on there is no --stronglyTyped: the stand-in refuses it then."""
    rewrite(pending, "finish/machine.settings", "10.3", "11.4")
    device.set(version=110400)
    code, said = device.finish(pending)
    assert code == 0, said
    builds = [call for call in device.calls() if "--onnx" in call]
    assert not any("--stronglyTyped" in call for call in builds)


@pytest.mark.parametrize("name", ["finish.sh", "compile_plugins.sh"])
def test_the_scripts_are_plain_posix_shell(pending: Path, name: str) -> None:
    script = pending / "finish" / name
    shell = shutil.which("dash") or "sh"
    subprocess.run([shell, "-n", str(script)], check=True)
    checker = shutil.which("shellcheck")
    if checker is None:
        pytest.skip("shellcheck is not installed (apt install shellcheck)")
    subprocess.run([checker, str(script)], check=True)


JSON_OUTPUT = """[
  {{ "name" : "present.0.key"
  , "dimensions" : "1x2"
  , "values" : [ 7, 8 ]
  }}
, {{ "name" : "logits"
  , "dimensions" : "1x3"
  , "values" : [ {values} ]
  }}
]
"""


@pytest.mark.parametrize(
    ("values", "code", "words"),
    [
        ("1, -2.5, 3e-05", 0, "3 values, largest error 0"),
        ("1.01, -2.5, 3e-05", 0, "largest error 0.01"),
        ("1, -2.5, 0.03", 1, "value 2 is 0.03, and should be 3"),
        ("0.97, -2.5, 0", 1, "value 0 is 0.97, and should be 1"),  # too small
        ("-1, -2.5, 0", 1, "value 0 is -1, and should be 1"),
        ("1, 2.5, 0", 1, "value 1 is 2.5, and should be -2.5"),
        ("10, -12.5, 0", 1, "value 1 is -12.5"),  # as texts, an error of 9 is more than one of 10
        ("1, -2.5, inf", 1, "largest error 1e+300"),
        ("1, -2.53, nan", 1, "value 2 is nan"),
        ("1, -2.5, inf", 1, "value 2 is inf"),
        ("1, -nan, 0", 1, "value 1 is -nan"),
        ("1, -2.5", 1, "another number"),
        ("1, -2.5, 0, 0", 1, "another number"),
    ],
)
def test_comparison(tmp_path: Path, values: str, code: int, words: str) -> None:
    """The awk program alone, on trtexec's output with the cache before the logits."""
    expected = "  1.0000000e+00 -2.5000000e+00\n   3.0000000e-05\n"
    found, said = compare(tmp_path, expected, values, "0.02")
    assert found == code, said
    assert words in said


@pytest.mark.parametrize(("printed", "code"), [("1.23457", 0), ("1.23458", 1)])
def test_what_printing_rounds_away_is_no_error(tmp_path: Path, printed: str, code: int) -> None:
    """trtexec prints 1.2345678 with six digits; the tolerance is less than it loses."""
    assert compare(tmp_path, "1.2345678", printed, "1e-6")[0] == code


def compare(tmp_path: Path, expected: str, values: str, tolerance: str) -> tuple[int, str]:
    """Run the program as the script does; return its exit code and what it said."""
    script = REPOSITORY / "tc_export" / "device_build" / "compare.awk"
    (tmp_path / "expected").write_text(expected)
    (tmp_path / "output.json").write_text(JSON_OUTPUT.format(values=values))
    command = (
        f"tr -s ' ,' '\\n\\n' < output.json | "
        f"awk -f '{script}' -v name=logits -v expected=expected -v tolerance={tolerance}"
    )
    ended = subprocess.run(
        ["sh", "-c", command], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert not ended.stderr
    return ended.returncode, ended.stdout


def test_golden_data_is_within_the_profile_and_sees_no_foreign_row(pending_template: Path) -> None:
    spec = read_spec(pending_template)
    decoder = spec.graphs["decoder"]
    tensors = {x: tensor.load(pending_template) for x, tensor in decoder.golden.inputs.items()}
    rows = decoder.shapes["past_key_values.0.key"].usual[2]
    positions, ends = tensors["position_ids"][0], tensors["kv_end"][0]
    assert list(positions) == list(range(len(positions)))
    assert ends.max() == len(positions) < rows
    assert len(np.unique(ends)) > 3  # text, frames and text again: the mask shows
    assert tensors["logits_indices"].max() == len(positions) - 1
    assert not any(name.startswith("past_key_values") for name in tensors)
    for graph in spec.graphs.values():
        for output in graph.golden.outputs.values():
            values = output.load(pending_template)
            assert 0 < output.tolerance < 0.05 * np.abs(values).max()
