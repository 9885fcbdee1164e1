# SPDX-License-Identifier: Apache-2.0
"""A decoder in parts, finished on its device: by the script, by `finish`, and by both in turn."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from tc_export.bundle import read_manifest, verify
from tc_export.device_build.finish import finish
from tc_export.device_build.machine import Machine
from tc_export.device_build.spec import read_spec
from tc_export.errors import CheckFailed
from tests.device_build.conftest import ARCHITECTURE, Device
from tests.device_build.fake_tools import FakeTools

HERE = Machine(ARCHITECTURE, "10.3.0.26", 87)
NAMES = ("vision", "decoder_part1", "decoder_part2")
ENGINES = tuple(f"engines/{name}.engine" for name in NAMES)


class Interrupted(Exception):
    """Stands for a device that loses its power."""


@pytest.fixture
def parted(parted_template: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(parted_template, tmp_path / "it's a device" / "bundle"))


def test_every_part_is_built_judged_and_recorded(parted: Path) -> None:
    fake = FakeTools()
    manifest = finish(parted, HERE, fake.tools)
    assert not verify(parted)
    assert [request.engine.name for request in fake.built] == [Path(x).name for x in ENGINES]
    assert tuple(manifest.engine_builds) == NAMES
    for name in NAMES[1:]:  # a layer each
        nodes = {"TcDualRope": 2, "TcBlockCausalAttention": 1}
        assert manifest.engine_builds[name].plugin_layers == nodes
    first, last = (fake.built[index].shapes.keys() for index in (1, 2))
    assert "inputs_embeds" in first - last
    assert "hidden_states.1" in last - first
    assert "logits_indices" in last - first
    assert {name for name in first if "past" in name} == {
        "past_key_values.0.key",
        "past_key_values.0.value",
    }


@pytest.mark.parametrize("name", NAMES)
def test_a_wrong_part_is_named_and_nothing_changes(parted: Path, name: str) -> None:
    fake = FakeTools()
    fake.wrong = name
    with pytest.raises(CheckFailed, match=rf"the {name} engine.*within"):
        finish(parted, HERE, fake.tools)
    assert read_manifest(parted).engine_builds == {}
    assert not verify(parted)


def test_interrupted_between_parts(parted: Path) -> None:
    """What was built before stays: the next run goes on at the part."""

    def stop(count: int) -> None:
        if count == 3:
            raise Interrupted

    fake = FakeTools()
    fake.on_build = stop
    with pytest.raises(Interrupted):
        finish(parted, HERE, fake.tools)
    assert not verify(parted)
    again = FakeTools()
    finish(parted, HERE, again.tools)
    assert [request.engine.name for request in again.built] == ["decoder_part2.engine"]


def test_the_script_builds_the_parts(parted: Path, device: Device) -> None:
    code, said = device.finish(parted)
    assert code == 0, said
    for engine in ENGINES:
        assert (parted / engine).is_file()
        assert f"comparing {engine}" in said or engine in said
    taken = FakeTools()
    manifest = finish(parted, HERE, taken.tools)
    assert not taken.built
    assert tuple(manifest.engine_builds) == NAMES


def test_the_script_goes_on_at_the_part(parted: Path, device: Device) -> None:
    code, said = device.finish(parted)
    assert code == 0, said
    (parted / ENGINES[2]).unlink()
    device.calls()
    code, said = device.finish(parted)
    assert code == 0, said
    built = [call["--onnx"] for call in device.calls() if "--onnx" in call]
    assert [Path(path).name for path in built] == ["decoder_part2.tensorrt.onnx"]


def test_the_script_sees_a_wrong_value_of_hidden_states(parted: Path, device: Device) -> None:
    """Not logits alone are judged: what one part hands to the next as well."""
    golden = read_spec(parted).graphs["decoder_part1"].golden
    (output,) = golden.outputs.values()
    values = output.load(parted)
    values.flat[7] += 100 * output.tolerance
    np.ascontiguousarray(values, "<f4").tofile(parted / output.file)
    sums = parted / "finish" / "SHA256SUMS"
    kept = [line for line in sums.read_text().splitlines() if not line.endswith(output.file)]
    sums.write_text("\n".join(kept) + "\n")
    code, said = device.finish(parted)
    assert code == 1, said
    assert "decoder_part1 engine does not compute what it should" in said
    assert not (parted / ENGINES[1]).exists()


def test_a_part_of_another_build_is_not_taken(parted: Path, device: Device) -> None:
    """An engine file under the name of another one: its hash is not the one that passed."""
    code, said = device.finish(parted)
    assert code == 0, said
    shutil.copyfile(parted / ENGINES[1], parted / ENGINES[2])
    fake = FakeTools()
    finish(parted, HERE, fake.tools)
    assert [request.engine.name for request in fake.built] == ["decoder_part2.engine"]
