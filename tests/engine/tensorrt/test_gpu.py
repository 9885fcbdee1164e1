# SPDX-License-Identifier: Apache-2.0
"""Real engines on a real GPU: those that were built into engines/out for the GPU that is here."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tc_export.bundle import read_manifest
from tc_export.bundle.manifest import MANIFEST
from tc_export.checkpoint.hf_config import read_config
from tc_export.engine.loading import load_engines
from tc_export.engine.session import DecoderSession
from tc_export.engine.tensorrt.cuda import compute_capability, open_cuda
from tc_export.engine.tensorrt.run import TrtEngine
from tc_export.errors import UnsupportedEnvironment
from tc_export.model.positions import Clip, Text
from tests.repository import REPOSITORY

BUNDLES = REPOSITORY / "engines" / "out"


@pytest.fixture
def sm() -> int:
    try:
        open_cuda()
        return compute_capability()
    except UnsupportedEnvironment as error:
        pytest.skip(f"no GPU can be used: {error}")


@pytest.fixture
def gpu_bundle(sm: int) -> Path:
    for file in sorted(BUNDLES.glob(f"*/{MANIFEST}")):
        builds = read_manifest(file.parent).engine_builds.values()
        if builds and all(build.sm == sm for build in builds):
            return file.parent
    pytest.skip(f"no bundle in {BUNDLES} has engines for SM {sm}: tc-export build --target …")


@pytest.mark.gpu
def test_a_decode_is_the_same_plainly_and_as_a_graph(gpu_bundle: Path) -> None:
    """The same prompt twice: logits are finite and equal, whatever was captured meanwhile."""
    manifest, config = read_manifest(gpu_bundle), read_config(gpu_bundle).model
    assert manifest.engine is not None
    engines = load_engines(
        gpu_bundle,
        manifest.custom_nodes,
        backend=manifest.engine.backend,
        builds=manifest.engine_builds,
    )
    clip = Clip(2, config.tokens_per_frame)
    segments = [Text(3), clip, Text(4)]
    embeds = np.random.default_rng(0).standard_normal(
        (7 + clip.length, config.text.hidden_size), np.float32
    )
    answers = []
    for _ in range(2):
        session = DecoderSession(engines.decoder, config, manifest.profile.max_length)
        logits = [session.prefill(embeds, segments)]
        logits += [session.step(embeds[token]) for token in range(6)]
        answers.append(np.stack(logits))
    assert np.isfinite(answers[0]).all()
    np.testing.assert_array_equal(answers[0], answers[1])
    assert isinstance(engines.decoder, TrtEngine)
    assert engines.decoder.graph_capture.startswith(("captured", "by TensorRT-RTX"))
