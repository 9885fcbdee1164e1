# SPDX-License-Identifier: Apache-2.0
"""Parts of a decoder graph: run one after the other they are the whole."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from tc_export.contracts.parts import Part
from tc_export.engine.onnxruntime import OrtEngine
from tc_export.engine.parted import PartedEngine
from tc_export.engine.session import DecoderSession, position_feeds
from tc_export.errors import TcExportError
from tc_export.graph import parts as parts_module
from tc_export.graph.onnx_ops import custom_node_counts
from tc_export.graph.parts import cut_decoder, cut_layers, write_parts
from tc_export.model.positions import Clip, Segment, Text, lay_out
from tc_export.native.find import find_native_library
from tests.exported import Exported, export_small

ROWS = 50
LAYERS = 5
CUTS = [
    (Part(0, 5),),
    (Part(0, 1), Part(1, 5)),
    (Part(0, 2), Part(2, 4), Part(4, 5)),
    tuple(Part(layer, layer + 1) for layer in range(LAYERS)),
]


@pytest.fixture(scope="module", params=["frame_block_causal", "full_visual", "frame_block"])
def exported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    folder = tmp_path_factory.mktemp("deep")
    return export_small(
        folder, text={"num_hidden_layers": LAYERS}, temporal={"mask": request.param, "gamma": 0.5}
    )


def graph_of(exported: Exported) -> Path:
    return exported.graph("decoder")


def open_parts(exported: Exported, cut: tuple[Part, ...], native: Path | None) -> PartedEngine:
    models = cut_decoder(graph_of(exported), exported.config, cut)
    return PartedEngine(
        [
            OrtEngine(
                graph_of(exported),
                rewritten=ir.to_proto(model).SerializeToString(),
                native_library=native,
                threads=1,
            )
            for model in models
        ]
    )


def answers(session: DecoderSession, exported: Exported) -> list[np.ndarray]:
    segments: list[Segment] = [Text(3), Clip(4, exported.config.tokens_per_frame), Text(4)]
    length = sum(segment.length for segment in segments)
    embeds = np.random.default_rng(5).standard_normal((length, exported.config.text.hidden_size))
    return [session.prefill(embeds, segments), *(session.step(embeds[i]) for i in range(4))]


@pytest.mark.parametrize("cut", CUTS, ids=len)
@pytest.mark.parametrize("native", [False, True])
def test_parts_are_the_whole_bit_for_bit(
    exported: Exported, cut: tuple[Part, ...], native: bool
) -> None:
    library = find_native_library() if native else None
    if native and library is None:
        pytest.skip("the native library is not built: make setup, with CMake and a compiler")
    path = library.path if library else None
    whole = OrtEngine(graph_of(exported), native_library=path, threads=1)
    parts = open_parts(exported, cut, path)
    assert dict(parts.native_nodes) == dict(whole.native_nodes)
    assert parts.inputs.keys() == whole.inputs.keys()
    assert parts.outputs.keys() == whole.outputs.keys()
    expected = answers(DecoderSession(whole, exported.config, ROWS), exported)
    found = answers(DecoderSession(parts, exported.config, ROWS), exported)
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("cut", CUTS, ids=len)
def test_every_node_and_weight_is_in_one_part(exported: Exported, cut: tuple[Part, ...]) -> None:
    """Weights are referred to, never copied, and each by one part; so are the custom nodes."""
    whole = ir.load(graph_of(exported))
    models = cut_decoder(graph_of(exported), exported.config, cut)
    counts: dict[str, int] = {}
    seen: list[str] = []
    for model in models:
        for op, count in custom_node_counts(model).items():
            counts[op] = counts.get(op, 0) + count
        seen += [name for name in model.graph.initializers if name != "decoder.inv_freq"]
        for name, value in model.graph.initializers.items():
            original = whole.graph.initializers[name].const_value
            if isinstance(original, ir.ExternalTensor):
                tensor = value.const_value
                assert isinstance(tensor, ir.ExternalTensor)
                assert (tensor.location, tensor.offset) == (original.location, original.offset)
    assert counts == custom_node_counts(whole)
    assert sorted(seen) == sorted(set(whole.graph.initializers) - {"decoder.inv_freq"})


def test_what_would_cross_a_cut_is_named(exported: Exported, tmp_path: Path) -> None:
    model = ir.load(graph_of(exported))
    leaving = next(
        node
        for node in model.graph
        if node.op_type == "Sigmoid" and "decoder.layers.1" in str(node.metadata_props)
    )
    user = next(
        node
        for node in model.graph
        if node.op_type == "Mul" and "decoder.layers.3.mlp" in str(node.metadata_props)
    )
    user.replace_input_with(0, leaving.outputs[0])
    path = tmp_path / "crossed.onnx"
    path.write_bytes(ir.to_proto(model).SerializeToString())
    with pytest.raises(TcExportError, match=r"cannot be cut after layer 1: .*leaves it"):
        cut_decoder(path, exported.config, CUTS[1])


def test_parts_must_cover_the_layers_in_order(exported: Exported) -> None:
    for wrong in ((Part(0, 2), Part(3, 5)), (Part(2, 5), Part(0, 2)), (Part(0, 4),)):
        with pytest.raises(ValueError, match="do not cover"):
            cut_decoder(graph_of(exported), exported.config, wrong)


def test_engines_that_do_not_fit_are_refused(exported: Exported) -> None:
    first, second, third = (
        OrtEngine(graph_of(exported), rewritten=ir.to_proto(x).SerializeToString(), threads=1)
        for x in cut_decoder(graph_of(exported), exported.config, CUTS[2])
    )
    PartedEngine([first, second, third])
    with pytest.raises(ValueError, match="do not fit"):
        PartedEngine([first, third])


def test_a_part_without_its_layers_nodes_is_not_written(
    exported: Exported, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parts_module, "expected_custom_nodes", lambda config, layers: {"Other": 1})
    places = {part: tmp_path / f"{part.first}.onnx" for part in CUTS[1]}
    with pytest.raises(TcExportError, match=r"layer 0 of the decoder have custom nodes .*Other"):
        write_parts(graph_of(exported), exported.config, places)
    assert not list(tmp_path.iterdir())


def test_layers_and_the_head_are_the_whole_bit_for_bit(exported: Exported) -> None:
    layers, head = cut_layers(graph_of(exported), exported.config)
    assert len(layers) == LAYERS
    assert [x.graph.outputs[0].name for x in layers] == [
        f"hidden_states.{layer + 1}" for layer in range(LAYERS)
    ]
    assert [x.name for x in head.graph.inputs] == [f"hidden_states.{LAYERS}", "logits_indices"]
    config = exported.config
    layout, _ = lay_out([Text(3), Clip(2, config.tokens_per_frame), Text(2)], config.temporal)
    S = layout.length
    feeds = {
        "inputs_embeds": np.random.default_rng(3)
        .standard_normal((1, S, config.text.hidden_size))
        .astype(np.float32),
        "key_frame_ids": layout.frame_ids[None],
        "logits_indices": np.arange(S)[None],
        **position_feeds(layout.batched()),
    }

    def run(engine: OrtEngine, given: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        wanted = {name: x for name, x in given.items() if name in engine.inputs}
        has_cache = any(name.startswith("past") for name in engine.inputs)
        return engine.run(wanted, engine.new_cache(S) if has_cache else None)

    expected = run(OrtEngine(graph_of(exported), threads=1), feeds)["logits"]
    for part in (*layers, head):
        content = ir.to_proto(part).SerializeToString()
        feeds |= run(OrtEngine(graph_of(exported), rewritten=content, threads=1), feeds)
    np.testing.assert_array_equal(feeds["logits"], expected)
