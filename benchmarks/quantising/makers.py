# SPDX-License-Identifier: Apache-2.0
"""Who makes checkpoints of few bits: our recipes, plain rounding, and NNCF.

Each makes of a checkpoint another one that opens as any. NNCF runs in an environment of its own
(`nncf_weights.py`), and hands back the weights that its numbers stand for, in float32.
"""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from safetensors.torch import load_file, save_file

from tc_export.checkpoint.reader import Checkpoint, open_checkpoint
from tc_export.quantize.checkpoint import SMALL_FILES, quantize_checkpoint
from tc_export.recipes import Recipe, list_recipes, load_recipe
from tc_export.runtime.tokenizer import Tokenizer
from tc_export.tasks import Split, make_items
from tc_export.tasks.passages import passages_of

LAYERS = "decoder.layers."
MATRICES = ("decoder.layers.*.self_attn.?_proj.weight", "decoder.layers.*.mlp.*_proj.weight")
CALIBRATION = 16  # passages of text, as many as a recipe's

INSTALL = (
    "python -m venv .cache/nncf && .cache/nncf/bin/pip install nncf==3.1.0 torch==2.10.0 "
    "transformers safetensors"
)


@dataclass(frozen=True, kw_only=True)
class Made:
    """A checkpoint, and how many bytes its decoder's layers are stored in."""

    checkpoint: Checkpoint
    layer_bytes: int


class Maker(Protocol):
    """One way to few bits; `is_peer` where it is not ours, or not more than rounding."""

    name: str
    is_peer: bool

    def make(self, source: Checkpoint, folder: Path) -> Made:
        """Make a checkpoint under `folder`, which is empty."""


@dataclass(frozen=True)
class ByRecipe:
    """A recipe of this project."""

    recipe: Recipe
    is_peer: bool = False

    @property
    def name(self) -> str:
        return self.recipe.name

    def make(self, source: Checkpoint, folder: Path) -> Made:
        made = open_checkpoint(quantize_checkpoint(source, self.recipe, folder / "new").folder)
        return Made(checkpoint=made, layer_bytes=layer_bytes(made))


@dataclass(frozen=True)
class ByNncf:
    """NNCF's weight compression: INT4_SYM in groups of 64, of the matrices of the layers alone."""

    name: str
    python: Path
    flags: tuple[str, ...] = ()
    is_peer: bool = True

    def make(self, source: Checkpoint, folder: Path) -> Made:
        given = folder / "given"
        _write_language_model(source, given)
        found = folder / "found"
        program = Path(__file__).with_name("nncf_weights.py")
        subprocess.run(
            [self.python, program, given, found, *self.flags], check=True, stdout=subprocess.DEVNULL
        )
        weights = load_file(found / "weights.safetensors")
        tensors = {x.name: x.as_tensor() for x in source.stored().values()}
        for name, weight in weights.items():
            location = source.tensors[f"decoder.{name}"]
            tensors[location.name] = weight.contiguous()
        new = folder / "new"
        new.mkdir()
        for pattern in SMALL_FILES:
            for path in source.folder.glob(pattern):
                if not path.name.endswith("index.json"):
                    shutil.copyfile(path, new / path.name)
        save_file(tensors, new / "model.safetensors")
        few_bits = json.loads((found / "bytes.json").read_text())
        rest = sum(
            x.nbytes
            for name, x in source.stored().items()
            if name.startswith(LAYERS) and name.removeprefix("decoder.") not in weights
        )
        return Made(checkpoint=open_checkpoint(new), layer_bytes=few_bits + rest)


def layer_bytes(checkpoint: Checkpoint) -> int:
    """What the decoder's layers take on the disk."""
    stored = checkpoint.stored().items()
    return sum(location.nbytes for name, location in stored if name.startswith(LAYERS))


def makers(nncf_python: Path) -> Iterator[Maker]:
    """All that there are: the shipped recipes, and the peers that are here."""
    yield from (ByRecipe(recipe) for recipe in list_recipes())
    yield ByRecipe(_plain("int4"), is_peer=True)
    yield ByRecipe(_plain("int8"), is_peer=True)
    if nncf_python.exists():
        yield ByNncf("NNCF int4", nncf_python)
        yield ByNncf("NNCF int4, AWQ", nncf_python, ("--awq",))
        yield ByNncf("NNCF int4, AWQ and scale estimation", nncf_python, ("--awq", "--scale"))


def by_name(name: str) -> Maker:
    """A recipe, by its name or path."""
    return ByRecipe(load_recipe(name))


def _plain(bits: str) -> Recipe:
    """Rounding to the nearest, and nothing else."""
    values = {
        "name": f"{bits}, to the nearest",
        "description": "rounded to the nearest in groups of 64",
        "weights": [{"names": MATRICES, "format": bits, "group_size": 64}],
    }
    return Recipe.read(values, where="the benchmark")


def _write_language_model(source: Checkpoint, folder: Path) -> None:
    """The decoder as transformers' LlamaForCausalLM, and token ids to calibrate with."""
    folder.mkdir()
    config = dict(source.config.document["text_config"])
    config |= {"model_type": "llama", "architectures": ["LlamaForCausalLM"]}
    config["tie_word_embeddings"] = source.config.model.text.tie_word_embeddings
    (folder / "config.json").write_text(json.dumps(config))
    tensors = {"model.embed_tokens.weight": source.embedding.as_tensor().contiguous()}
    for name, location in source.tensors.items():
        inner = name.removeprefix("decoder.")
        if inner.startswith("layers.") or inner == "norm.weight":
            tensors[f"model.{inner}"] = location.as_tensor().contiguous()
    if not config["tie_word_embeddings"]:
        tensors["lm_head.weight"] = source.tensors["decoder.lm_head.weight"].as_tensor()
    vocabulary = len(tensors["model.embed_tokens.weight"])
    (folder / "config.json").write_text(json.dumps(config | {"vocab_size": vocabulary}))
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    np.savez(folder / "calibration.npz", *_calibration(Tokenizer.load(source.folder)))


def _calibration(tokenizer: Tokenizer) -> list[np.ndarray]:
    """Passages of text, and questions: what our own calibration reads, without its clips."""
    items = make_items(Split.TRAIN, 1, grades=[1])
    questions = [np.array(tokenizer.encode(item.question)) for item in items]
    return [*passages_of(tokenizer, CALIBRATION), *questions]
