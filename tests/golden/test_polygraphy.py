# SPDX-License-Identifier: Apache-2.0
"""Golden data as Polygraphy reads it: all of a graph's inputs, the cache as packed zeros."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
from polygraphy.comparator import RunResults
from polygraphy.json import load_json

from tc_export.bundle.layout import golden_folder, graph_path
from tc_export.config import TemporalConfig
from tc_export.contracts.graph_io import GraphTensor, decoder_inputs, names
from tc_export.dtypes import DType
from tc_export.golden.files import read_golden, write_golden
from tc_export.golden.make import Golden
from tc_export.golden.polygraphy import REFERENCE, write_for_polygraphy
from tests.bundled import MAX_LENGTH
from tests.model.small_models import random_model


def load(bundle: Path, graph: str) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    folder = bundle / golden_folder(graph)
    (feed,) = load_json(str(folder / "inputs.json"))
    results = RunResults.load(str(folder / "outputs.json"))
    (result,) = results[REFERENCE]
    return dict(feed), dict(result.items())


@pytest.mark.parametrize("built", ["bundle", "ablation"])
@pytest.mark.parametrize("graph", ["vision", "decoder"])
def test_a_graph_takes_them_as_they_are(
    request: pytest.FixtureRequest, built: str, graph: str
) -> None:
    bundle: Path = request.getfixturevalue(built)
    feed, expected = load(bundle, graph)
    session = ort.InferenceSession(bundle / graph_path(graph))
    assert set(feed) == {x.name for x in session.get_inputs()}
    ((name, values),) = expected.items()
    (given,) = session.run([name], feed)
    tolerance = read_golden(bundle)[graph].outputs[name].tolerance
    assert given.shape == values.shape
    np.testing.assert_allclose(given, values, rtol=0, atol=tolerance)


def test_they_are_those_of_the_files_beside(bundle: Path) -> None:
    for graph, call in read_golden(bundle).items():
        feed, expected = load(bundle, graph)
        for name, tensor in call.inputs.items():
            np.testing.assert_array_equal(tensor.load(bundle), feed[name])
            assert feed[name].dtype == tensor.dtype
        for name, output in call.outputs.items():
            np.testing.assert_array_equal(output.load(bundle), expected[name])


def test_the_cache_has_the_rows_that_engines_are_built_for(bundle: Path) -> None:
    feed, _ = load(bundle, "decoder")
    caches = [values for name, values in feed.items() if name.startswith("past_key_values")]
    assert {values.shape[2] for values in caches} == {MAX_LENGTH}
    assert not any(values.any() for values in caches)


def test_gigabytes_of_cache_take_no_room(tmp_path: Path) -> None:
    inputs = tuple(
        GraphTensor(f"past_key_values.{layer}.key", ("batch", 8, "cache_rows", 128), "T", "a cache")
        for layer in range(32)
    )
    golden = Golden(inputs={}, outputs={"logits": (np.zeros((1, 1, 8), np.float32), 1e-3)})
    write_golden(tmp_path, {"decoder": golden})
    write_for_polygraphy(
        tmp_path, "decoder", golden, inputs, precision=DType.FLOAT16, cache_rows=16_384
    )
    feed, _ = load(tmp_path, "decoder")
    assert feed["past_key_values.31.key"].shape == (1, 8, 16_384, 128)
    assert feed["past_key_values.31.key"].dtype == np.float16
    size = (tmp_path / "golden" / "decoder" / "inputs.json").stat().st_size
    assert size * 200 < sum(values.nbytes for values in feed.values())


def test_bfloat16_stands_there_as_float32_and_in_the_files_as_it_is(tmp_path: Path) -> None:
    config = random_model(TemporalConfig()).config
    embeds = np.array([[[1.0, -2.5, 3.140625]]], DType.BFLOAT16.numpy)
    golden = Golden(
        inputs={"inputs_embeds": embeds}, outputs={"logits": (np.zeros((1, 1, 8), np.float32), 0.1)}
    )
    calls = write_golden(tmp_path, {"decoder": golden})
    write_for_polygraphy(
        tmp_path,
        "decoder",
        golden,
        decoder_inputs(config),
        precision=DType.BFLOAT16,
        cache_rows=4,
    )
    feed, _ = load(tmp_path, "decoder")
    past = [name for name in names(decoder_inputs(config)) if name.startswith("past")]
    assert {feed[name].dtype for name in ("inputs_embeds", *past)} == {np.dtype(np.float32)}
    np.testing.assert_array_equal(feed["inputs_embeds"], [[[1.0, -2.5, 3.140625]]])
    tensor = calls["decoder"].inputs["inputs_embeds"]
    assert tensor.dtype == "bfloat16"
    assert (tmp_path / tensor.file).read_bytes() == embeds.tobytes()
