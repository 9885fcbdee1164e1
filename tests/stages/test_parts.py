# SPDX-License-Identifier: Apache-2.0
"""Builds whose decoder is several engines."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from tc_export.bundle import read_manifest, verify
from tc_export.bundle.layout import engine_path, graph_path, tensorrt_graph_path
from tc_export.cli.main import main
from tc_export.contracts.graph_io import decoder_inputs, names
from tc_export.device_build.finish import finish
from tc_export.device_build.spec import read_spec
from tc_export.engine.tensorrt.build import EngineReport, EngineRequest
from tc_export.errors import TcExportError
from tc_export.pipeline import BuildRequest
from tc_export.stages import tensorrt_engines
from tests.stages.conftest import Tools, built
from tests.stages.test_device_build import ORIN, OnDevice

PARTS = ("decoder_part1", "decoder_part2")
NODES = {"TcDualRope": 2, "TcBlockCausalAttention": 1}  # of one layer


@pytest.fixture
def asked(request_: BuildRequest) -> BuildRequest:
    return replace(request_, parts=2)


def test_each_part_is_an_engine_of_its_own(asked: BuildRequest, tools: Tools) -> None:
    manifest, ran = built(asked)
    assert manifest.decoder_parts == 2
    assert [stage for stage in ran if stage.endswith("_engine")] == [
        "vision_engine",
        *(f"{part}_engine" for part in PARTS),
    ]
    assert not verify(asked.output)
    for part in PARTS:
        assert manifest.custom_nodes[part] == NODES
        assert manifest.engine_builds[part].plugin_layers == NODES
        assert (asked.output / engine_path(part)).is_file()
    assert not (asked.output / engine_path("decoder")).exists()
    _, first, last = tools.engines
    assert first.graph.name == "decoder_part1.onnx"
    assert "hidden_states.1" in last.shapes
    assert manifest.engine is not None
    assert manifest.engine.state == "built"


def test_the_contract_and_the_golden_data_tell_the_parts(asked: BuildRequest, tools: Tools) -> None:
    built(asked)
    document = json.loads((asked.output / "graph_io.json").read_text())
    assert list(document["decoder_parts"]) == list(PARTS)
    first, last = document["decoder_parts"].values()
    assert (first["layers"], last["layers"]) == ([0, 1], [1, 2])
    assert first["outputs"][0]["name"] == last["inputs"][0]["name"] == "hidden_states.1"
    golden = asked.output / "golden"
    assert {path.name for path in golden.iterdir() if path.is_dir()} == {
        "vision",
        "decoder",
        *PARTS,
    }
    feed = json.loads((golden / PARTS[1] / "inputs.json").read_text())
    assert "hidden_states.1" in json.dumps(feed)


def test_a_whole_decoder_says_nothing_of_parts(request_: BuildRequest, tools: Tools) -> None:
    manifest, ran = built(replace(request_, parts=1))
    assert manifest.decoder_parts == 1
    assert "decoder_parts" not in ran
    assert "decoder_parts" not in json.loads((request_.output / "graph_io.json").read_text())


def test_a_build_that_stopped_at_a_part_goes_on_there(
    asked: BuildRequest, tools: Tools, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(request: EngineRequest, on_progress: object) -> EngineReport:
        if request.engine.name.endswith(engine_path(PARTS[1]).rpartition("/")[2]):
            raise TcExportError("the power went")
        return tools.build_engine(request, lambda done, total: None)

    monkeypatch.setattr(tensorrt_engines, "build_engine", fail)
    with pytest.raises(TcExportError, match="the power went"):
        built(asked)
    assert not asked.output.exists()
    monkeypatch.setattr(tensorrt_engines, "build_engine", tools.build_engine)
    before = len(tools.engines)
    _, ran = built(asked)
    assert "decoder_part1_engine" not in ran
    assert [request.engine.name for request in tools.engines[before:]] == ["decoder_part2.engine"]


def test_another_number_of_parts(asked: BuildRequest, tools: Tools) -> None:
    """The engines of the first cut go; no graph is exported again."""
    built(asked)
    manifest, ran = built(replace(asked, parts=1))
    assert set(ran) == {"assets", "answering", "decoder_engine", "readme"}
    assert not verify(asked.output)
    assert set(manifest.engine_builds) == {"vision", "decoder"}
    assert not list(asked.output.rglob("*part*"))


def test_as_few_parts_as_memory_allows(request_: BuildRequest, tools: Tools) -> None:
    manifest, _ = built(request_)
    assert manifest.decoder_parts == 1


def test_the_device_is_told_of_the_parts(asked: BuildRequest, tools: Tools) -> None:
    manifest, ran = built(replace(asked, target="orin"))
    assert {f"{part}_tensorrt" for part in PARTS} <= set(ran)
    assert "decoder_tensorrt" not in ran
    assert manifest.engine is not None
    assert manifest.engine.state == "pending"
    spec = read_spec(asked.output)
    assert list(spec.graphs) == ["vision", *PARTS]
    for part in PARTS:
        assert spec.graphs[part].graph == tensorrt_graph_path(part)
        assert (asked.output / graph_path(part)).is_file()


def test_a_bundle_in_parts_that_its_device_finished_stays_so(
    asked: BuildRequest, tools: Tools
) -> None:
    on_orin = replace(asked, target="orin")
    built(on_orin)
    device = OnDevice(tools)
    finished = finish(asked.output, ORIN, device.tools)
    assert device.opened == ["vision.engine", *(f"{part}.engine" for part in PARTS)]
    assert built(on_orin) == (finished, [])


def test_settings_take_a_number_or_auto(
    asked: BuildRequest, tools: Tools, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["build", "--checkpoint", str(asked.checkpoint), "--output", str(asked.output)]
    arguments += ["--target", "rtx4090", "--no-parity", "--max-frames", "2", "--max-length", "60"]
    with pytest.raises(SystemExit) as ended:
        main([*arguments, "--parts", "2"])
    assert ended.value.code == 0, capsys.readouterr().err
    assert read_manifest(asked.output).decoder_parts == 2
    settings = tmp_path / "tc-export.toml"
    settings.write_text('[build]\nparts = "auto"\n')
    with pytest.raises(SystemExit) as ended:
        main([*arguments, "--config", str(settings)])
    assert ended.value.code == 0
    assert read_manifest(asked.output).decoder_parts == 1


@pytest.mark.parametrize("parts", ["0", "-1", "1.5", "many", "", "3", "99999999999999999999"])
def test_parts_that_cannot_be(
    parts: str, asked: BuildRequest, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["build", "--checkpoint", str(asked.checkpoint), "--output", str(asked.output)]
    with pytest.raises(SystemExit) as ended:
        main([*arguments, "--target", "rtx4090", f"--parts={parts}"])
    said = capsys.readouterr().err
    assert ended.value.code == 2, said
    assert "parts" in said
    assert not asked.output.exists()


def test_the_processor_runs_graphs_whole(
    asked: BuildRequest, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["build", "--checkpoint", str(asked.checkpoint), "--output", str(asked.output)]
    with pytest.raises(SystemExit) as ended:
        main([*arguments, "--target", "cpu", "--parts", "2"])
    assert ended.value.code == 2
    assert "leave --parts out" in capsys.readouterr().err


def test_a_part_names_its_layers_inputs() -> None:
    """What the first of two parts takes is what the whole takes, without the last layers' cache."""
    from tests.plan.configs import llava_7b

    config = llava_7b()
    whole, part = (names(decoder_inputs(config, layers)) for layers in (None, range(16)))
    assert set(whole) - set(part) == {
        "logits_indices",
        *(f"past_key_values.{x}.{y}" for x in range(16, 32) for y in ("key", "value")),
    }
