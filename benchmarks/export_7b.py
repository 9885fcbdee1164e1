# SPDX-License-Identifier: Apache-2.0
"""What exporting a 7B model costs: time, memory and disk.

Makes a checkpoint of LLaVA-1.5-7B's shapes in float16 (13.5 GB, sparse files: the values are zero,
which changes nothing of what is measured), and exports both graphs and the embedding in a process
of its own, whose peak resident set is the kernel's figure.

    python benchmarks/export_7b.py [--json] [--folder DIR] [--layers 32]
"""

from __future__ import annotations

import json
import resource
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from math import prod
from pathlib import Path
from typing import Annotated

import typer

SHARD_BYTES = 5 << 30
CONFIG = {
    "model_type": "llava",
    "architectures": ["LlavaForConditionalGeneration"],
    "image_token_index": 32000,
    "vision_feature_layer": -2,
    "vision_feature_select_strategy": "default",
    "vision_config": {
        "model_type": "clip_vision_model",
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "image_size": 336,
        "patch_size": 14,
    },
    "text_config": {
        "model_type": "llama",
        "vocab_size": 32064,
        "hidden_size": 4096,
        "intermediate_size": 11008,
        "num_attention_heads": 32,
        "num_key_value_heads": 32,
        "max_position_embeddings": 4096,
        "rms_norm_eps": 1e-05,
    },
}


def main(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    folder: Annotated[
        Path | None, typer.Option(help="Where to work; a temporary folder by default.")
    ] = None,
    layers: Annotated[int, typer.Option(min=1, help="Layers of the language model.")] = 32,
) -> None:
    """Make the checkpoint, export it in a process of its own, and print what that cost."""
    with tempfile.TemporaryDirectory(dir=folder) as work:
        checkpoint, output = Path(work, "checkpoint"), Path(work, "bundle")
        parameters = make_checkpoint(checkpoint, layers)
        output.mkdir()
        start = time.perf_counter()
        printed = subprocess.run(
            [sys.executable, __file__, "--worker", str(checkpoint), str(output)],
            check=True,
            stdout=subprocess.PIPE,
            text=True,
        ).stdout
        seconds = time.perf_counter() - start
        peak_kib = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
        report = {
            "seconds": round(seconds, 1),
            "peak_rss_gib": round(peak_kib / 2**20, 2),
            "bytes_written_gib": round(json.loads(printed)["bytes_written"] / 2**30, 3),
            "parameters": parameters,
        }
    if as_json:
        print(json.dumps(report))
    else:
        for name, value in report.items():
            print(f"{name:20} {value}")


def make_checkpoint(folder: Path, layers: int) -> int:
    """Write config and sparse shards; return the number of parameters."""
    from tc_export.checkpoint.hf_config import read_config
    from tc_export.checkpoint.names import usual_name
    from tc_export.checkpoint.reader import empty_model

    folder.mkdir()
    document = {**CONFIG, "text_config": {**CONFIG["text_config"], "num_hidden_layers": layers}}
    (folder / "config.json").write_text(json.dumps(document))
    config = read_config(folder)
    shapes = {
        usual_name(name, config.family): tuple(tensor.shape)
        for name, tensor in empty_model(config.model).state_dict().items()
    }
    shards = list(split(shapes))
    weight_map = {}
    for number, shard in enumerate(shards, start=1):
        name = f"model-{number:05}-of-{len(shards):05}.safetensors"
        write_sparse(folder / name, shard)
        weight_map |= dict.fromkeys(shard, name)
    index = {"metadata": {}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return sum(prod(shape) for shape in shapes.values())


def split(shapes: dict[str, tuple[int, ...]]) -> Iterator[dict[str, tuple[int, ...]]]:
    """Cut into shards of at most `SHARD_BYTES`."""
    shard: dict[str, tuple[int, ...]] = {}
    for name, shape in shapes.items():
        if shard and 2 * sum(prod(x) for x in (*shard.values(), shape)) > SHARD_BYTES:
            yield shard
            shard = {}
        shard[name] = shape
    yield shard


def write_sparse(path: Path, shapes: dict[str, tuple[int, ...]]) -> None:
    """A float16 safetensors file whose data is one hole."""
    header, end = {}, 0
    for name, shape in shapes.items():
        begin, end = end, end + 2 * prod(shape)
        header[name] = {"dtype": "F16", "shape": shape, "data_offsets": [begin, end]}
    raw = json.dumps(header).encode()
    raw += b" " * (-len(raw) % 8)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(raw)) + raw)
        file.truncate(8 + len(raw) + end)


def worker(checkpoint_folder: Path, output: Path) -> None:
    """Export, and print the bytes that were written."""

    from tc_export.bundle.layout import GRAPH_FOLDER, graph_path
    from tc_export.checkpoint.reader import open_checkpoint
    from tc_export.dtypes import DType
    from tc_export.graph.export import export_decoder, export_embedding, export_vision

    checkpoint = open_checkpoint(checkpoint_folder)
    written = export_embedding(checkpoint, DType.FLOAT16, output / "embedding.safetensors")
    (output / GRAPH_FOLDER).mkdir()
    for name, export in (("vision", export_vision), ("decoder", export_decoder)):
        path = output / graph_path(name)
        report = export(checkpoint, DType.FLOAT16, path, lambda nbytes: None)
        written += report.bytes_written
    print(json.dumps({"bytes_written": written}))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--worker"]:
        worker(Path(sys.argv[2]), Path(sys.argv[3]))
    else:
        typer.run(main)
