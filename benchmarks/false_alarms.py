# SPDX-License-Identifier: Apache-2.0
"""How often parity fails though nothing is wrong, on real language weights.

A LLaVA folder is made for each seed: SmolLM2-135M as the language model, and a random CLIP tower
(192 wide, 4 layers, 336 px, patches of 14, pooled to 144 tokens a frame). The seed also draws the
prompts and the frames. The graphs are exported as a build exports them, run in ONNX Runtime, and
judged as a build judges them. Each alarm is a false one.

    python benchmarks/false_alarms.py --seeds 50 --json
    python benchmarks/false_alarms.py --seeds 2 --frames 2 --language checkpoints/tc-llava-tiny \\
        --image-size 56 --json    # small

A line a run goes to standard error.
"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from safetensors.numpy import load_file, save_file
from transformers import LlavaConfig, LlavaForConditionalGeneration

from tc_export.bundle import place_file
from tc_export.bundle.layout import graph_path, shard_path
from tc_export.checkpoint.reader import Checkpoint, open_checkpoint
from tc_export.contracts.graph_io import DECODER, VISION
from tc_export.graph.export import export_decoder, export_vision
from tc_export.graph.weights_plan import plan_weights
from tc_export.parity.graph_engines import GraphsInTurn
from tc_export.parity.tensors.check import check_parity
from tc_export.parity.tensors.check_bundle import references
from tc_export.parity.tensors.report import failures
from tc_export.parity.tensors.result import ParityResult
from tc_export.parity.tensors.scenario import Scenario, standard_scenarios
from tc_export.parity.tensors.sides import Calls
from tc_export.plan.build_memory import memory_limits
from tc_export.targets import Precisions

REPOSITORY = Path(__file__).resolve().parents[1]
MAX_LENGTH = 2600
TOWER = {
    "model_type": "clip_vision_model",
    "hidden_size": 192,
    "intermediate_size": 768,
    "num_hidden_layers": 4,
    "num_attention_heads": 3,
    "hidden_act": "quick_gelu",
    "patch_size": 14,
}
VISION_PARTS = ("vision_tower.", "multi_modal_projector.")


def main(
    seeds: Annotated[int, typer.Option(min=1, help="How many folders are made.")] = 50,
    first: Annotated[int, typer.Option(help="The first seed.")] = 0,
    precisions: Annotated[
        str, typer.Option(help="Formats, with commas between.")
    ] = "float32,float16,bfloat16",
    frames: Annotated[int, typer.Option(min=1, help="The profile's most frames.")] = 16,
    image_size: Annotated[int, typer.Option(help="Pixels of a frame's side.")] = 336,
    language: Annotated[
        Path | None,
        typer.Option(help="A LLaVA folder whose language model is taken. By default SmolLM2's."),
    ] = None,
    folder: Annotated[
        Path | None, typer.Option(help="Where to work; decoder graphs are kept for the next run.")
    ] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="Processor threads.")] = None,
    answers: Annotated[
        bool, typer.Option(help="Compare greedy answers too, for which the truth takes long.")
    ] = True,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Check every seed in every format, and count."""
    if threads is not None:
        torch.set_num_threads(threads)
    source = language or smollm2()
    formats = [Precisions.both(name) for name in precisions.split(",")]
    results: list[ParityResult] = []
    with tempfile.TemporaryDirectory() as scratch:
        work = folder or Path(scratch)
        for seed in range(first, first + seeds):
            checkpoint = make_checkpoint(work, source, seed, image_size)
            scenarios = standard_scenarios(checkpoint.config.model, frames, MAX_LENGTH, seed)
            for each in formats:
                start = time.perf_counter()
                graphs = export_graphs(work, checkpoint, each, threads)
                results.append(check(checkpoint, graphs, scenarios, answers=answers))
                report(results[-1], seed, time.perf_counter() - start)
            shutil.rmtree(checkpoint.folder)
    figures = count(results)
    if as_json:
        print(json.dumps(figures))
    else:
        for key, value in figures.items():
            print(f"{key:24} {value}")


def count(results: Sequence[ParityResult]) -> dict[str, Any]:
    """The figures of all runs."""
    tokens = sum(x.tokens for result in results for x in result.noise)
    ill = sum(len(x.ill_conditioned) for result in results for x in result.noise)
    return {
        "runs": len(results),
        "false_alarms": sum(not result.passed for result in results),
        "ill_conditioned_share": round(ill / tokens, 5),
    }


def smollm2() -> Path:
    """The folder that the tests make of the package with SmolLM2's weights."""
    sys.path.insert(0, str(REPOSITORY))
    from tests.checkpoint.real_language import real_language_checkpoint

    return real_language_checkpoint()


def make_checkpoint(work: Path, source: Path, seed: int, image_size: int) -> Checkpoint:
    """The language model of `source` behind another tower."""
    language = work / "language.safetensors"
    if not language.is_file():
        work.mkdir(parents=True, exist_ok=True)
        save_file(language_tensors(source), language)
    folder = work / f"checkpoint-{seed}"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    for path in source.iterdir():
        if path.suffix in (".json", ".jinja", ".model") and "index" not in path.name:
            shutil.copyfile(path, folder / path.name)
    document = json.loads((source / "config.json").read_text())
    document["vision_config"] = TOWER | {"image_size": image_size}
    (folder / "config.json").write_text(json.dumps(document))
    preprocessing = folder / "preprocessor_config.json"
    preprocessing.unlink(missing_ok=True)  # it is of another size
    place_file(language, folder / language.name)
    tower = random_tower(document, seed)
    save_file(tower, folder / "tower.safetensors")
    weight_map = dict.fromkeys(load_file(language), language.name)
    weight_map |= dict.fromkeys(tower, "tower.safetensors")
    index = {"metadata": {}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return open_checkpoint(folder)


def language_tensors(source: Path) -> dict[str, np.ndarray]:
    """All tensors of a LLaVA folder that are not vision's."""
    return {
        name: tensor
        for path in sorted(source.glob("*.safetensors"))
        for name, tensor in load_file(path).items()
        if not any(part in name for part in VISION_PARTS)
    }


def random_tower(document: dict[str, Any], seed: int) -> dict[str, np.ndarray]:
    """Weights of a tower and a projector as transformers starts them."""
    torch.manual_seed(seed)
    # A language model of one layer and few words: it is thrown away.
    small = {"num_hidden_layers": 1, "vocab_size": 8, "pad_token_id": None}
    config = LlavaConfig(**document | {"text_config": document["text_config"] | small})
    model = LlavaForConditionalGeneration(config)
    return {
        name: tensor.float().numpy().copy()
        for name, tensor in model.state_dict().items()
        if any(part in name for part in VISION_PARTS)
    }


class Graphs:
    """A vision graph and a decoder graph of two folders."""

    takes_batches = GraphsInTurn.takes_batches

    def __init__(self, vision: GraphsInTurn, decoder: GraphsInTurn) -> None:
        self.name = decoder.name
        self.pixel_type, self.embeds_type = vision.pixel_type, decoder.embeds_type
        self._vision, self._decoder = vision, decoder

    def features(self, clips: Sequence[np.ndarray]) -> list[np.ndarray]:
        """See `Side.features`."""
        return self._vision.features(clips)

    def logits(self, calls: Sequence[Calls]) -> list[list[np.ndarray]]:
        """See `Side.logits`."""
        return self._decoder.logits(calls)


@dataclass(frozen=True)
class Exported:
    """A checkpoint's graphs in their own arithmetic, and in float32 where that is another."""

    precisions: Precisions
    own: Graphs
    in_float32: Graphs | None


def export_graphs(
    work: Path, checkpoint: Checkpoint, precisions: Precisions, threads: int | None
) -> Exported:
    """Export what is not exported yet: decoders are the same for all seeds."""
    config = checkpoint.config.model
    decoder, vision = work / f"decoder-{precisions}", checkpoint.folder / f"vision-{precisions}"
    if not (decoder / "exported").is_file():
        export(DECODER, checkpoint, precisions, decoder)
        (decoder / "exported").touch()
    export(VISION, checkpoint, precisions, vision)
    parts = memory_limits(config, precisions).parts

    def graphs(in_float32: bool) -> Graphs:
        return Graphs(
            *(
                GraphsInTurn(
                    folder, config, precisions, parts, in_float32=in_float32, threads=threads
                )
                for folder in (vision, decoder)
            )
        )

    is_narrow = precisions != Precisions.both("float32")
    return Exported(precisions, graphs(False), graphs(True) if is_narrow else None)


def check(
    checkpoint: Checkpoint, graphs: Exported, scenarios: Sequence[Scenario], *, answers: bool
) -> ParityResult:
    """Judge the graphs as a build does."""
    return check_parity(
        references(checkpoint, graphs.precisions),
        graphs.own,
        graphs.precisions,
        scenarios,
        in_float32=graphs.in_float32,
        answer_bytes=None if answers else 0,
    )


def export(graph: str, checkpoint: Checkpoint, precisions: Precisions, folder: Path) -> None:
    """Write a graph and its weights to where a bundle at `folder` has them."""
    dtype = getattr(precisions, graph).dtype
    path = folder / graph_path(graph)
    path.parent.mkdir(parents=True, exist_ok=True)
    for shard, file in plan_weights(checkpoint, graph, dtype).shards.items():
        if not (folder / shard_path(shard)).exists():
            place_file(file, folder / shard_path(shard))
    exporter = {VISION: export_vision, DECODER: export_decoder}[graph]
    exporter(checkpoint, dtype, path, lambda nbytes: None)


def report(result: ParityResult, seed: int, seconds: float) -> None:
    """A line for a run, and one for each thing that failed."""
    line = {
        "seed": seed,
        "precision": result.precision,
        "passed": result.passed,
        "seconds": round(seconds),
        "worst": round(max(x.ratio / x.factor for x in result.noise), 3),
        "factor": round(max(x.factor for x in result.noise), 1),
        "median": round(max(x.median_ratio / x.median_factor for x in result.noise), 3),
        "ill_conditioned": sum(len(x.ill_conditioned) for x in result.noise),
        "most_ill_conditioned_share": round(max(x.ill_conditioned_share for x in result.noise), 4),
        "tokens": sum(x.tokens for x in result.noise),
    }
    print(json.dumps(line), *failures(result), sep="\n  ", file=sys.stderr, flush=True)


if __name__ == "__main__":
    typer.run(main)
