# SPDX-License-Identifier: Apache-2.0
"""The demonstration model as real TensorRT-RTX engines, on a machine without their GPU."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from tc_export.bundle import read_manifest, verify
from tc_export.bundle.manifest import Manifest
from tc_export.checkpoint.hf_config import read_config
from tc_export.cli.main import main
from tc_export.model.weight_shapes import weight_shapes
from tc_export.parity.tensors.check_bundle import check_bundle
from tc_export.pipeline import BuildRequest, build
from tc_export.runner import SilentReporter
from tests.plugins.tensorrt.conftest import cuda_plugin
from tests.repository import DEMO_CHECKPOINT
from tests.test_pipeline import Watching

__all__ = ["cuda_plugin"]

pytestmark = pytest.mark.slow

DEMO = DEMO_CHECKPOINT


@pytest.fixture(scope="module")
def request_(cuda_plugin: Path, tmp_path_factory: pytest.TempPathFactory) -> BuildRequest:
    """A build that has ended; `cuda_plugin` has compiled the library, or skipped."""
    output = tmp_path_factory.mktemp("rtx") / "bundle"
    request = BuildRequest(
        checkpoint=DEMO, output=output, target="rtx4090", max_frames=8, check_parity=False
    )
    build(request, SilentReporter())
    return request


def test_both_engines_are_built_with_our_plugins(request_: BuildRequest) -> None:
    assert verify(request_.output) == []
    manifest = read_manifest(request_.output)
    assert manifest.engine is not None
    assert (manifest.engine.state, manifest.engine.backend) == ("built", "tensorrt-rtx")
    layers = json.loads((DEMO / "config.json").read_text())["text_config"]["num_hidden_layers"]
    vision, decoder = (manifest.engine_builds[graph] for graph in ("vision", "decoder"))
    assert decoder.plugin_layers == {"TcDualRope": 2 * layers, "TcBlockCausalAttention": layers}
    assert vision.plugin_layers == {}
    assert {vision.precision, decoder.precision} == {"float16"}
    assert {vision.sm, decoder.sm} == {89}
    for graph in ("vision", "decoder"):
        assert (request_.output / "engines" / f"{graph}.engine").stat().st_size > 100_000


def build_quantised(output: Path, recipe: str) -> Manifest:
    request = BuildRequest(
        checkpoint=DEMO,
        output=output,
        target="rtx4090",
        quantize=recipe,
        max_frames=4,
        check_parity=False,
    )
    return build(request, SilentReporter())


def numbers_in_matrices() -> int:
    """Of the demonstration model's decoder layers."""
    return sum(
        shape[0] * shape[1]
        for name, shape in weight_shapes(read_config(DEMO).model).items()
        if name.startswith("decoder.layers.") and name.endswith("_proj.weight")
    )


@pytest.mark.parametrize("recipe", ["int4-weights", "int4-awq"])
def test_weights_in_four_bits_stay_so(cuda_plugin: Path, tmp_path: Path, recipe: str) -> None:
    manifest = build_quantised(tmp_path / "bundle", recipe)
    assert manifest.engine_builds["decoder"].few_bits == {"int4": numbers_in_matrices()}
    assert manifest.engine_builds["decoder"].precision == "float16"
    assert manifest.engine_builds["vision"].few_bits == {}


@pytest.mark.parametrize(("recipe", "eight"), [("int8-smooth", "int8"), ("fp8", "fp8")])
def test_products_of_eight_bits_are_multiplied_so(
    cuda_plugin: Path, tmp_path: Path, recipe: str, eight: str
) -> None:
    built = build_quantised(tmp_path / "bundle", recipe).engine_builds["decoder"]
    assert {*built.precision.split("+")} == {eight, "float16"}  # the head stays
    assert built.few_bits == {eight: numbers_in_matrices()}


def test_an_engine_that_is_built_again_has_the_same_bytes(request_: BuildRequest) -> None:
    before = read_manifest(request_.output).files
    for graph in ("vision", "decoder"):
        (request_.output / "engines" / f"{graph}.engine").unlink()
    watching = Watching()
    build(replace(request_, jobs=2), watching)
    assert set(watching.ran) == {"vision_engine", "decoder_engine"}
    assert read_manifest(request_.output).files == before


def test_what_cannot_run_here_says_so(
    request_: BuildRequest, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as exit_:
        main(["parity", str(request_.output)])
    assert exit_.value.code == 4
    assert "GPU" in capsys.readouterr().err


def test_its_graphs_can_be_judged_here(request_: BuildRequest) -> None:
    result = check_bundle(request_.output, graphs=True)
    assert result.passed
    assert result.precision == "float16"
