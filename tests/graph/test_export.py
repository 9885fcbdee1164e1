# SPDX-License-Identifier: Apache-2.0
"""The exported graphs: what they contain, and that they run at lengths that were never traced."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from onnx.reference import ReferenceEvaluator

from tc_export.bundle.layout import GRAPH_FOLDER
from tc_export.dtypes import DType
from tc_export.errors import TcExportError
from tc_export.graph import export as graph_export
from tc_export.graph import trace
from tc_export.graph.export import check_graph
from tc_export.graph.weights_plan import own_weights, plan_weights
from tc_export.model.positions import Clip, Layout, Text, lay_out, pad
from tc_export.parity.torch_engine import TorchDecoderEngine, TorchVisionEngine
from tests.exported import Exported, export_graph, export_small
from tests.repository import REPOSITORY


def decoder_feeds(exported: Exported, layout: Layout, rows: int, seed: int = 0) -> dict:
    """Random embeddings and a random past, for a layout [B, S]; logits of every token."""
    random = np.random.default_rng(seed)
    text = exported.config.text
    batch, tokens = layout.position_ids.shape
    shape = (batch, text.num_key_value_heads, rows, text.head_dim)
    feeds = {
        "inputs_embeds": random.standard_normal((batch, tokens, text.hidden_size), np.float32),
        "position_ids": layout.position_ids,
        "temporal_ids": layout.temporal_ids,
        "kv_end": layout.kv_end,
        "logits_indices": np.tile(np.arange(tokens), (batch, 1)),
    }
    for layer in range(text.num_hidden_layers):
        for part in ("key", "value"):
            feeds[f"past_key_values.{layer}.{part}"] = random.standard_normal(shape, np.float32)
    return feeds


def close(actual: np.ndarray, truth: np.ndarray) -> None:
    """Within 32 roundings of float32 of the largest value."""
    np.testing.assert_allclose(actual, truth, rtol=0, atol=32 * 2**-23 * np.abs(truth).max())


def layouts(exported: Exported) -> dict[str, Layout]:
    """Sequences of lengths that tracing never saw, alone and padded on either side."""
    temporal, m = exported.config.temporal, exported.config.tokens_per_frame

    def lay(*segments: Text | Clip) -> Layout:
        return lay_out(segments, temporal)[0]

    ragged = [lay(Text(2), Clip(3, m), Text(4)), lay(Clip(2, m)), lay(Text(1))]
    return {
        "one token": lay(Text(1)).batched(),
        "one frame": lay(Clip(1, m)).batched(),
        "long": lay(Text(3), Clip(9, m), Text(5), Clip(2, m), Text(30)).batched(),
        "padded left": pad(ragged, "left"),
        "padded right": pad(ragged, "right"),
    }


@pytest.mark.parametrize("name", ["one token", "one frame", "long", "padded left", "padded right"])
def test_decoder_at_lengths_never_traced(exported: Exported, name: str) -> None:
    layout = layouts(exported)[name]
    tokens = layout.position_ids.shape[1]
    feeds = decoder_feeds(exported, layout, rows=tokens + 11)
    truth = TorchDecoderEngine(exported.checkpoint.load_model(torch.float64)).run(feeds)
    session = ort.InferenceSession(exported.graph("decoder"))
    names = [output.name for output in session.get_outputs()]
    outputs = dict(zip(names, session.run(None, feeds), strict=True))
    real = layout.position_ids >= 0
    close(outputs["logits"][real], truth["logits"][real])
    assert np.isfinite(outputs["logits"]).all()
    for cache in names[1:]:  # the last row takes the padding
        close(outputs[cache][:, :, :-1], truth[cache][:, :, :-1])


def test_decoder_continues_from_a_past(exported: Exported) -> None:
    """A call whose tokens follow a cache that holds rows already, with fewer logits than tokens."""
    m = exported.config.tokens_per_frame
    whole, _ = lay_out([Text(3), Clip(4, m), Text(2)], exported.config.temporal)
    layout = whole.tokens(3 + m, 3 + 3 * m).batched()
    feeds = decoder_feeds(exported, layout, rows=40)
    feeds["logits_indices"] = np.array([[2 * m - 1]])
    truth = TorchDecoderEngine(exported.checkpoint.load_model(torch.float64)).run(feeds)
    session = ort.InferenceSession(exported.graph("decoder"))
    (logits,) = session.run(["logits"], feeds)
    assert logits.shape[1] == 1
    close(logits, truth["logits"])


@pytest.mark.parametrize("frames", [1, 2, 7])
def test_vision_at_frame_counts_never_traced(exported: Exported, frames: int) -> None:
    size = exported.config.vision.image_size
    pixels = np.random.default_rng(1).standard_normal((frames, 3, size, size), np.float32)
    feeds = {"pixel_values": pixels}
    truth = TorchVisionEngine(exported.checkpoint.load_model(torch.float64)).run(feeds)
    session = ort.InferenceSession(exported.graph("vision"))
    close(session.run(None, feeds)[0], truth["visual_features"])


def test_runs_on_the_onnx_reference(exported: Exported, tmp_path: Path) -> None:
    """The functions are true ONNX: the specification's own evaluator runs them.

    ONNX's own loader refuses weights that are hard links, so it gets a copy.
    """
    folder = Path(shutil.copytree(exported.folder / GRAPH_FOLDER, tmp_path / GRAPH_FOLDER))
    layout = layouts(exported)["padded left"]
    feeds = decoder_feeds(exported, layout, rows=24)
    truth = TorchDecoderEngine(exported.checkpoint.load_model(torch.float64)).run(feeds)
    model = onnx.load(folder / "decoder.onnx")
    (logits,) = ReferenceEvaluator(model).run(["logits"], feeds)
    real = layout.position_ids >= 0
    close(logits[real], truth["logits"][real])


def test_custom_nodes_and_their_functions_are_in_one_file(exported: Exported) -> None:
    model = onnx.load(exported.graph("decoder"), load_external_data=False)
    layers = exported.config.text.num_hidden_layers
    counts = {"TcDualRope": 2 * layers, "TcBlockCausalAttention": layers}
    assert exported.decoder.custom_nodes == counts
    assert {function.name for function in model.functions} == counts.keys()
    assert all(function.domain == "tc" for function in model.functions)
    for node in model.graph.node:
        if node.domain == "tc":
            attributes = {item.name: item.s for item in node.attribute}
            assert attributes["plugin_namespace"] == b"tc"
            assert attributes["plugin_version"] == b"1"


@pytest.mark.parametrize("graph", ["vision", "decoder"])
def test_checker_is_clean(exported: Exported, graph: str) -> None:
    check_graph(exported.graph(graph))


@pytest.mark.parametrize("graph", ["vision", "decoder"])
def test_weights_stay_in_the_shard(exported: Exported, graph: str) -> None:
    path = exported.graph(graph)
    model = onnx.load(path, load_external_data=False)
    inline = [x.name for x in model.graph.initializer if not x.external_data]
    assert inline == (["decoder.inv_freq"] if graph == "decoder" else [])
    shard = next(iter(exported.checkpoint.tensors.values())).file
    assert {x.value for y in model.graph.initializer for x in y.external_data[:1]} == {shard.name}
    assert path.with_name(shard.name).read_bytes() == shard.read_bytes()
    assert not own_weights(path).exists()
    assert path.stat().st_size == getattr(exported, graph).bytes_written


def test_both_graphs_share_what_lies_in_one_folder(exported: Exported) -> None:
    assert {file.name for file in (exported.folder / GRAPH_FOLDER).iterdir()} == {
        "vision.onnx",
        "decoder.onnx",
        "model.safetensors",
    }


@pytest.mark.parametrize("graph", ["vision", "decoder"])
def test_nothing_of_this_machine_is_in_the_graph(exported: Exported, graph: str) -> None:
    raw = exported.graph(graph).read_bytes()
    assert str(REPOSITORY).encode() not in raw
    assert b"site-packages" not in raw


def test_export_is_deterministic(exported: Exported, tmp_path: Path) -> None:
    again = export_small(tmp_path)
    for graph in ("vision", "decoder"):
        first = exported.graph(graph).read_bytes()
        assert first == again.graph(graph).read_bytes()


def test_a_copied_shard_computes_the_same(exported: Exported, tmp_path: Path) -> None:
    copied = shutil.copytree(exported.folder / GRAPH_FOLDER, tmp_path / GRAPH_FOLDER)
    feeds = decoder_feeds(exported, layouts(exported)["long"], rows=90)
    expected, actual = (
        ort.InferenceSession(path).run(["logits"], feeds)[0]
        for path in (exported.graph("decoder"), Path(copied) / "decoder.onnx")
    )
    np.testing.assert_array_equal(actual, expected)


def test_shards_that_are_called_alike_are_told_apart(exported: Exported, tmp_path: Path) -> None:
    """The names in a checkpoint may be links to anything; in the Hugging Face cache, to hashes."""
    checkpoint = exported.checkpoint
    names = ("a/model.safetensors", "b/model.safetensors", "c/0123abcd", "d/decoder.onnx")
    tensors = {
        name: replace(location, file=tmp_path / names[index % len(names)])
        for index, (name, location) in enumerate(checkpoint.tensors.items())
    }
    plan = plan_weights(replace(checkpoint, tensors=tensors), "decoder", DType.FLOAT32)
    assert {name: str(file.relative_to(tmp_path)) for name, file in plan.shards.items()} == {
        "model.safetensors": "a/model.safetensors",
        "model-2.safetensors": "b/model.safetensors",
        "0123abcd.safetensors": "c/0123abcd",
        "decoder.onnx.safetensors": "d/decoder.onnx",
    }
    name = next(name for name, (shard, _) in plan.places.items() if shard == "model-2.safetensors")
    assert tensors[name].file == tmp_path / "b/model.safetensors"


def test_what_is_stored_otherwise_gets_a_file_of_the_graph_s_own(
    exported: Exported, tmp_path: Path
) -> None:
    report = export_graph("vision", exported.checkpoint, DType.FLOAT16, tmp_path)
    files = {file.name: file for file in (tmp_path / GRAPH_FOLDER).iterdir()}
    assert files.keys() == {"vision.onnx", "vision.weights.bin"}
    padding = sum(file.stat().st_size for file in files.values()) - report.bytes_written
    assert 0 <= padding < 64 * len(exported.checkpoint.tensors)
    assert report.bytes_referenced == 0


def test_converts_stored_bfloat16(tmp_path: Path) -> None:
    """Widening is exact: the graph computes with the very numbers that were stored."""
    exported = export_small(tmp_path, stored=torch.bfloat16)
    assert exported.decoder.bytes_referenced == 0
    layout = layouts(exported)["long"]
    feeds = decoder_feeds(exported, layout, rows=90)
    truth = TorchDecoderEngine(exported.checkpoint.load_model(torch.float64)).run(feeds)
    session = ort.InferenceSession(exported.graph("decoder"))
    close(session.run(["logits"], feeds)[0], truth["logits"])


def test_frame_block_goes_through_standard_operators(tmp_path: Path) -> None:
    """This mask is no prefix, so its graph has no attention op of ours."""
    exported = export_small(tmp_path, temporal={"mask": "frame_block"})
    assert exported.decoder.custom_nodes == {"TcDualRope": 4}
    layout = layouts(exported)["long"]
    rows = layout.length + 1
    feeds = decoder_feeds(exported, layout, rows)
    feeds["key_frame_ids"] = np.full((1, rows), -1)
    feeds["key_frame_ids"][0, : layout.length] = layout.frame_ids[0]
    truth = TorchDecoderEngine(exported.checkpoint.load_model(torch.float64)).run(feeds)
    session = ort.InferenceSession(exported.graph("decoder"))
    (logits,) = session.run(["logits"], feeds)
    close(logits, truth["logits"])
    feeds["key_frame_ids"][:] = -1  # as if all were text: the mask must matter
    assert np.abs(session.run(["logits"], feeds)[0] - logits).max() > 1e-3


def test_a_frozen_axis_is_an_error(
    exported: Exported, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With example sizes of one, the tracer would take an axis for a constant."""
    monkeypatch.setattr(graph_export, "trace_decoder", _trace_with_frozen_batch)
    with pytest.raises(TcExportError, match="frozen"):
        graph_export.export_decoder(
            exported.checkpoint, DType.FLOAT32, tmp_path / "decoder.onnx", lambda nbytes: None
        )


def _trace_with_frozen_batch(config, dtype):  # type: ignore[no-untyped-def]
    real_export = trace.export

    def static_export(graph, arguments, **options):  # type: ignore[no-untyped-def]
        return real_export(graph, arguments, strict=False)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trace, "export", static_export)
        return trace.trace_decoder(config, dtype)


def test_a_lost_custom_op_is_an_error(
    exported: Exported, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(graph_export, "custom_node_counts", lambda model: {"TcDualRope": 3})
    with pytest.raises(TcExportError, match="custom nodes"):
        graph_export.export_decoder(
            exported.checkpoint, DType.FLOAT32, tmp_path / "decoder.onnx", lambda nbytes: None
        )
