# SPDX-License-Identifier: Apache-2.0
"""A model of the size that users have, built by the command that they type.

Makes a checkpoint of LLaVA-1.5-7B's shapes in float16 with random weights (normal, scaled as LLaMA
is initialised, so that numbers neither vanish nor overflow), runs `tc-export build` on it, and
watches the resident sets of all its processes together.

    python benchmarks/real_size.py --target orin --json
    python benchmarks/real_size.py --target rtx4090 --json --folder DIR   # keeps the checkpoint
    python benchmarks/real_size.py --target cpu --quantize int4-awq --json

An engine for this processor is then asked about a clip, and what that takes is measured too.
`--shape 135m` and `--shape small` are the same at other sizes.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from PIL import Image

REPOSITORY = Path(__file__).resolve().parents[1]
TOKENIZER = REPOSITORY / "checkpoints" / "tc-llava-tiny"
SHARD_BYTES = 5 << 30
SAMPLE_S = 0.5  # looking at every process takes 0.02 s of a core
FRAMES = 16
PLANNED = ("--parts", "--memory", "--precision", "--max-length", "--quantize")
"""Flags of a build that change what it takes."""

CLIP_L = {
    "model_type": "clip_vision_model",
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "image_size": 336,
    "patch_size": 14,
}
SHAPES: dict[str, dict[str, dict[str, Any]]] = {
    "7b": {
        "vision_config": CLIP_L,
        "text_config": {
            "vocab_size": 32064,
            "hidden_size": 4096,
            "intermediate_size": 11008,
            "num_hidden_layers": 32,
            "num_attention_heads": 32,
            "num_key_value_heads": 32,
        },
    },
    "135m": {
        "vision_config": CLIP_L
        | {
            "hidden_size": 192,
            "intermediate_size": 768,
            "num_hidden_layers": 5,
            "num_attention_heads": 3,
        },
        "text_config": {
            "vocab_size": 49154,
            "hidden_size": 576,
            "intermediate_size": 1536,
            "num_hidden_layers": 30,
            "num_attention_heads": 9,
            "num_key_value_heads": 3,
        },
    },
    "small": {
        "vision_config": CLIP_L
        | {
            "hidden_size": 64,
            "intermediate_size": 128,
            "image_size": 56,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
        },
        "text_config": {
            "vocab_size": 512,
            "hidden_size": 128,
            "intermediate_size": 256,
            "num_hidden_layers": 4,
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
        },
    },
}


def main(
    target: Annotated[str, typer.Option(help="What to build for.")] = "orin",
    shape: Annotated[str, typer.Option(help=f"One of {', '.join(SHAPES)}.")] = "7b",
    folder: Annotated[
        Path | None,
        typer.Option(help="Where to work; the checkpoint is kept there for the next run."),
    ] = None,
    quantize: Annotated[str | None, typer.Option(help="A recipe, or a path of one.")] = None,
    frames: Annotated[int, typer.Option(min=1, help="`--max-frames` of the build.")] = FRAMES,
    flags: Annotated[str, typer.Option(help="More flags for `tc-export build`.")] = "",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Make the checkpoint where it is not there, build it, and print what that cost."""
    with tempfile.TemporaryDirectory() as scratch:
        work = folder or Path(scratch)
        words = [*flags.split(), *(["--quantize", quantize] if quantize else [])]
        kind = f"-{Path(quantize).stem}" if quantize else ""
        checkpoint, output = work / f"llava-{shape}", work / f"llava-{shape}-{target}{kind}"
        if not (checkpoint / "config.json").is_file():
            make_checkpoint(checkpoint, shape)
        shutil.rmtree(output, ignore_errors=True)
        expected = predicted_bytes(checkpoint, target, frames, words)
        report: dict[str, Any] = {"target": target, "recipe": quantize}
        report |= build(checkpoint, output, target, frames, words)
        report["predicted_rss_gib"] = round(expected / 2**30, 2)
        if target == "cpu":
            report |= ask(output, work / "clip.png")
    if as_json:
        print(json.dumps(report))
    else:
        for name, value in report.items():
            print(f"{name:20} {value}")


def build(
    checkpoint: Path, output: Path, target: str, frames: int, flags: list[str]
) -> dict[str, Any]:
    """Run the command; its own output goes to standard error."""
    words = ["build", "--checkpoint", str(checkpoint), "--target", target]
    words += ["--output", str(output), "--max-frames", str(frames), *flags]
    seconds, peak, _ = watched(words)
    manifest = json.loads((output / "manifest.json").read_text())
    report = output / "parity" / "report.json"
    return {
        "seconds": round(seconds, 1),
        "peak_rss_gib": round(peak / 2**30, 2),
        "bytes_written_gib": round(written_bytes(checkpoint, output) / 2**30, 3),
        "parity": json.loads(report.read_text())["passed"] if report.is_file() else None,
        "engine": manifest["engine"]["state"],
    }


def ask(bundle: Path, picture: Path) -> dict[str, Any]:
    """Ask a bundle about a picture, and say what that took and how fast tokens came."""
    rows = np.linspace(0, 255, 3 * 336 * 336, dtype=np.uint8).reshape(336, 336, 3)
    Image.fromarray(rows).save(picture)
    words = ["ask", str(bundle), "--video", str(picture), "--question", "What is it?"]
    seconds, peak, out = watched([*words, "--max-new-tokens", "16", "--json"])
    figures = json.loads(out)
    return {
        "ask_seconds": round(seconds, 1),
        "ask_rss_gib": round(peak / 2**30, 2),
        "tokens_per_s": figures["decode_tokens_per_s"],
    }


def watched(words: list[str]) -> tuple[float, int, str]:
    """Run `tc-export`; seconds, the largest resident set of all its processes, what it printed.

    What it says to standard error is seen; where it fails, so does this.
    """
    start = time.perf_counter()
    command = [sys.executable, "-m", "tc_export", *words]
    with tempfile.TemporaryFile("w+") as out:
        with subprocess.Popen(command, cwd=REPOSITORY, stdout=out) as process:
            peak = 0
            while process.poll() is None:
                peak = max(peak, resident_bytes(process.pid))
                time.sleep(SAMPLE_S)
        seconds = time.perf_counter() - start
        out.seek(0)
        printed = out.read()
    print(printed, file=sys.stderr)
    if process.returncode:
        sys.exit(process.returncode)
    return seconds, peak, printed


def predicted_bytes(checkpoint: Path, target: str, frames: int, flags: list[str]) -> int:
    """What `tc-export plan` says that this build takes at its peak."""
    command = [sys.executable, "-m", "tc_export", "plan", "--checkpoint", str(checkpoint)]
    command += ["--target", target, "--frames", str(frames), "--json"]
    for name, value in pairwise(flags):
        command += [name, value] if name in PLANNED else []
    plan = subprocess.run(command, cwd=REPOSITORY, stdout=subprocess.PIPE, check=True)
    peak = "peak_bytes_without_parity" if "--no-parity" in flags else "peak_bytes"
    return int(json.loads(plan.stdout)["build"][peak])


def resident_bytes(pid: int) -> int:
    """Resident sets of a process and all that come from it, added up."""
    children: dict[int, list[int]] = {}
    sizes: dict[int, int] = {}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            stat = (entry / "stat").read_text().rpartition(")")[2].split()
            sizes[int(entry.name)] = int((entry / "statm").read_text().split()[1])
        except (OSError, IndexError):
            continue  # it has just ended
        children.setdefault(int(stat[1]), []).append(int(entry.name))
    pages, waiting = 0, [pid]
    while waiting:
        one = waiting.pop()
        pages += sizes.get(one, 0)
        waiting += children.get(one, [])
    return pages * os.sysconf("SC_PAGE_SIZE")


def written_bytes(checkpoint: Path, output: Path) -> int:
    """Bytes of the bundle that are not the checkpoint's own files, each file once."""
    linked = {path.stat().st_ino for path in checkpoint.rglob("*")}
    sizes = {
        path.stat().st_ino: path.stat().st_size
        for path in output.rglob("*")
        if path.is_file() and path.stat().st_ino not in linked
    }
    return sum(sizes.values())


def make_checkpoint(folder: Path, shape: str, *, context: int = 4096) -> None:
    """Write configuration, tokenizer and shards of random weights."""
    from tc_export.checkpoint.hf_config import read_config
    from tc_export.checkpoint.names import usual_name
    from tc_export.checkpoint.reader import empty_model

    folder.mkdir(parents=True)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        if (TOKENIZER / name).is_file():
            shutil.copyfile(TOKENIZER / name, folder / name)
    text = {"model_type": "llama", "max_position_embeddings": context, "rms_norm_eps": 1e-5}
    ids = json.loads((TOKENIZER / "config.json").read_text())
    document = {
        "model_type": "llava",
        "image_token_index": ids.get("image_token_index", ids.get("image_token_id")),
        "vision_feature_layer": -2,
        "vision_feature_select_strategy": "default",
        "vision_config": SHAPES[shape]["vision_config"],
        "text_config": text | SHAPES[shape]["text_config"],
    }
    (folder / "config.json.part").write_text(json.dumps(document, indent=2))
    (folder / "config.json.part").rename(folder / "config.json")
    config = read_config(folder)
    shapes = {
        usual_name(name, config.family): (name, tuple(tensor.shape))
        for name, tensor in empty_model(config.model).state_dict().items()
    }
    random = np.random.default_rng(0)
    shards = list(split(shapes))
    weight_map = {}
    for number, shard in enumerate(shards, start=1):
        name = f"model-{number:05}-of-{len(shards):05}.safetensors"
        write_shard(folder / name, shard, random, config.model.text.num_hidden_layers)
        weight_map |= dict.fromkeys(shard, name)
        print(f"{name} is written", file=sys.stderr)
    index = {"metadata": {}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


Shapes = dict[str, tuple[str, tuple[int, ...]]]
"""Name in the file -> name in our model, and shape."""


def split(shapes: Shapes) -> Iterator[Shapes]:
    """Cut into shards of at most `SHARD_BYTES`."""
    shard: Shapes = {}
    for name, (ours, shape) in shapes.items():
        if (
            shard
            and 2 * sum(math.prod(x) for _, x in (*shard.values(), (ours, shape))) > SHARD_BYTES
        ):
            yield shard
            shard = {}
        shard[name] = (ours, shape)
    yield shard


def write_shard(path: Path, shapes: Shapes, random: np.random.Generator, layers: int) -> None:
    """A float16 safetensors file."""
    header, end = {}, 0
    for name, (_, shape) in shapes.items():
        begin, end = end, end + 2 * math.prod(shape)
        header[name] = {"dtype": "F16", "shape": shape, "data_offsets": [begin, end]}
    raw = json.dumps(header).encode()
    raw += b" " * (-len(raw) % 8)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(raw)) + raw)
        for ours, shape in shapes.values():
            file.write(draw(ours, shape, random, layers).tobytes())


def draw(name: str, shape: tuple[int, ...], random: np.random.Generator, layers: int) -> np.ndarray:
    """Normal, of LLaMA's deviation; what adds to the residual is smaller by the number of layers.

    Norms are near one and biases near zero, but not there: else an exchange of two would not show.
    """
    values = random.standard_normal(shape, dtype=np.float32)
    if name.endswith("bias"):
        values *= 0.02
    elif len(shape) == 1 and "class_embedding" not in name:
        values = 1 + 0.1 * values
    elif any(part in name for part in ("o_proj", "down_proj", "out_proj", "fc2")):
        values *= 0.02 / math.sqrt(2 * layers)
    else:
        values *= 0.02
    return values.astype(np.float16)


if __name__ == "__main__":
    typer.run(main)
