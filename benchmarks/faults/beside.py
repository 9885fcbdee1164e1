# SPDX-License-Identifier: Apache-2.0
"""Faults of the vision graph, and of the files beside the graphs."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from onnx import TensorProto
from safetensors.numpy import load_file, save_file

from faults.edits import Fault, Graph

TOWER, PROJECTOR = "vision.vision_tower", "vision.multi_modal_projector"


def projector_without_bias(graph: Graph) -> None:
    """The projector's first bias is zero."""
    graph.weight(f"{PROJECTOR}.linear_1.bias", np.zeros_like)


def tanh_gelu(graph: Graph) -> None:
    """GELU is computed by tanh, and not by erf."""
    (node,) = graph.nodes(PROJECTOR, "Gelu")
    del node.attribute[:]
    changed = graph.before(node, "Gelu", [node.input[0]], approximate="tanh")
    node.op_type = "Identity"
    node.input[0] = changed


def class_token_kept(graph: Graph) -> None:
    """The class token stays, and the last patch goes."""
    node = graph.nodes(TOWER, "Slice")[-1]
    patches = graph.config.vision.grid**2
    node.input[1], node.input[2] = (graph.constant(np.array([x])) for x in (0, patches))


def vision_epsilon(graph: Graph) -> None:
    """The epsilon of a tower's norm is 1e-3."""
    (node,) = graph.nodes(f"{TOWER}.layers.0.layer_norm1", "LayerNormalization")
    for attribute in node.attribute:
        if attribute.name == "epsilon":
            attribute.f = 1e-3


def vision_heads_swapped(graph: Graph) -> None:
    """Two heads of the tower's values stand in each other's place."""
    vision = graph.config.vision
    size = vision.hidden_size // vision.num_attention_heads

    def change(weight: np.ndarray) -> np.ndarray:
        order = np.arange(len(weight))
        order[: 2 * size] = np.roll(order[: 2 * size], size)
        return weight[order]

    graph.weight(f"{TOWER}.layers.0.self_attn.v_proj.weight", change)


def blue_first(graph: Graph) -> None:
    """The patches' colours are read in the other order."""
    graph.weight(f"{TOWER}.embeddings.patch_embedding.weight", lambda x: x[:, ::-1])


def positions_shifted(graph: Graph) -> None:
    """Each patch has its neighbour's learned position."""
    graph.weight(f"{TOWER}.embeddings.position_embedding.weight", lambda x: np.roll(x, 1, axis=0))


def features_rounded(graph: Graph) -> None:
    """Features are rounded to float16 before the projector."""
    node = graph.nodes(TOWER, "Slice")[-1]
    graph.after(node, "Cast", ["*"], to=TensorProto.FLOAT)
    last = next(x for x in graph.model.graph.node if x.op_type == "Cast" and "planted" in x.name)
    last.input[0] = graph.before(last, "Cast", [last.input[0]], to=TensorProto.FLOAT16)


def embedding_row_changed(bundle: Path) -> None:
    """One row of the embedding table is another one."""
    path = bundle / "embedding.safetensors"
    tensors = load_file(path)
    (name,) = tensors
    table = tensors[name].copy()
    table[7] = table[8]
    path.unlink()
    save_file({name: table}, path)


def _edit_json(name: str, change: Callable[[dict[str, Any]], None]) -> Callable[[Path], None]:
    def plant(bundle: Path) -> None:
        path = bundle / name
        document = json.loads(path.read_text()) if path.is_file() else {}
        change(document)
        path.unlink(missing_ok=True)  # a link to the checkpoint's, which stays as it is
        path.write_text(json.dumps(document))

    return plant


def template_changed(bundle: Path) -> None:
    """The chat template lost its last word."""
    path = bundle / "chat_template.jinja"
    text = path.read_text()
    path.unlink()
    path.write_text(text.replace("ASSISTANT", "ASSISTENT").replace("assistant", "assistent"))


def _darker(document: dict[str, Any]) -> None:
    document["image_mean"] = [x + 0.1 for x in document.get("image_mean", [0.5, 0.5, 0.5])]


FAULTS = [
    *(
        Fault(name=name, plant=plant, graph="vision", layer=lambda graph: "vision")
        for name, plant in (
            ("projector without its first bias", projector_without_bias),
            ("GELU by tanh, not erf", tanh_gelu),
            ("class token kept", class_token_kept),
            ("epsilon of a vision norm 1e-3", vision_epsilon),
            ("vision heads swapped", vision_heads_swapped),
            ("blue first", blue_first),
            ("patch positions shifted", positions_shifted),
            ("features rounded to float16", features_rounded),
        )
    ),
    Fault(name="one embedding row changed", plant=embedding_row_changed, graph=None),
    Fault(name="chat template changed", plant=template_changed, graph=None),
    Fault(
        name="preprocessor's mean changed",
        plant=_edit_json("preprocessor_config.json", _darker),
        graph=None,
    ),
    Fault(
        name="end token changed",
        plant=_edit_json("generation_config.json", lambda x: x.update(eos_token_id=5)),
        graph=None,
    ),
]
