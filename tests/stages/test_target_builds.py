# SPDX-License-Identifier: Apache-2.0
"""Whole builds for several targets: what is built, what is asked of builders, what is shared.

The compiler and TensorRT are stood in for here; a real build is in `test_rtx_build.py`.
"""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tc_export.bundle import read_manifest, verify
from tc_export.pipeline import BuildRequest, build_each
from tests.bundled import MAX_FRAMES, MAX_LENGTH
from tests.repository import TARGETS
from tests.stages.conftest import HEAD_SIZE, Tools, built
from tests.test_pipeline import Watching

ASSETS = {"assets", "answering"}


def test_the_manifest_says_what_was_built(request_: BuildRequest, tools: Tools) -> None:
    manifest, ran = built(replace(request_, precision="vision=fp16,decoder=bf16"))
    assert ran[-4:] == ["plugins", "vision_engine", "decoder_engine", "readme"]
    assert manifest.engine is not None
    assert (manifest.engine.state, manifest.engine.backend) == ("built", "tensorrt-rtx")
    assert manifest.precision_asked == {"vision": "float16", "decoder": "bfloat16"}
    assert manifest.precision_realised == manifest.precision_asked
    (embedding,) = load_file(request_.output / "embedding.safetensors").values()
    assert embedding.dtype == torch.bfloat16  # the decoder's
    decoder = manifest.engine_builds["decoder"]
    assert (decoder.builder, decoder.sm) == ("TensorRT-RTX 9.8.7", 89)
    assert decoder.plugin_layers == {"TcDualRope": 4, "TcBlockCausalAttention": 2}
    assert verify(request_.output) == []


def test_the_builder_is_asked_for_the_bundles_profile(request_: BuildRequest, tools: Tools) -> None:
    built(request_)
    vision, decoder = tools.engines
    assert vision.shapes["pixel_values"].largest == (MAX_FRAMES, 3, 32, 32)
    cache = decoder.shapes["past_key_values.1.value"]
    assert cache.smallest == cache.largest == (1, 2, MAX_LENGTH, HEAD_SIZE)
    assert decoder.custom_nodes == {"TcDualRope": 4, "TcBlockCausalAttention": 2}
    assert decoder.compute_capability == 89


def test_building_again_does_nothing_again(request_: BuildRequest, tools: Tools) -> None:
    built(request_)
    assert built(request_)[1] == []


@pytest.mark.parametrize(
    ("change", "again"),
    [
        (
            {"max_length": MAX_LENGTH - 1},
            {*ASSETS, "golden", "vision_engine", "decoder_engine", "readme"},
        ),
        (
            {"precision": "vision=fp16,decoder=bf16"},
            {*ASSETS, "embedding", "decoder", "golden", "decoder_engine", "readme"},
        ),
        (
            {"target": "rtx5090"},
            {*ASSETS, "plugins", "vision_engine", "decoder_engine", "readme"},
        ),
    ],
)
def test_a_change_runs_what_depends_on_it(
    request_: BuildRequest, tools: Tools, change: dict[str, object], again: set[str]
) -> None:
    built(request_)
    assert set(built(replace(request_, **change))[1]) == again  # type: ignore[arg-type]


def test_two_targets_share_what_they_have_in_common(request_: BuildRequest, tools: Tools) -> None:
    shutil.rmtree(request_.output.with_name("processor"))
    runs = {}
    for output, build_one in build_each(replace(request_, jobs=2), ["rtx4090", "rtx5090"]):
        watching = Watching()
        build_one(watching, lambda checkpoint, profile: None)
        runs[output.name] = set(watching.ran)
    assert {"weights", "vision", "decoder", "plugins"} <= runs["rtx4090"]
    assert runs["rtx5090"] == {*ASSETS, "plugins", "vision_engine", "decoder_engine", "readme"}
    bundles = [read_manifest(request_.output / name) for name in ("rtx4090", "rtx5090")]
    graphs = [bundle.stages["decoder"].files for bundle in bundles]
    assert graphs[0] == graphs[1]
    assert tools.compiled == ["rtx4090", "rtx5090"]


def test_a_target_of_ones_own(request_: BuildRequest, tools: Tools, tmp_path: Path) -> None:
    shipped = TARGETS / "rtx4090.toml"
    own = tmp_path / "bench.toml"
    text = shipped.read_text().replace('"rtx4090"', '"bench"')
    own.write_text(text.replace("sm = 89", "sm = 86"))
    manifest, _ = built(replace(request_, target=str(own)))
    assert manifest.target == "bench"
    assert tools.engines[0].compute_capability == 86


def test_a_float16_bundle_for_the_processor(on_processor: Path) -> None:
    manifest = read_manifest(on_processor)
    assert manifest.precision_realised == {"vision": "float16", "decoder": "float16"}
    report = (on_processor / "parity" / "report.json").read_text()
    assert '"precision": "float16"' in report
    assert torch.get_default_dtype() == torch.float32
