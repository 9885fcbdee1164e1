# SPDX-License-Identifier: Apache-2.0
"""A checkpoint and a recipe to a checkpoint: layer by layer, a file each.

One that another library has quantised is repacked so, bit for bit; the recipe is then its own
(`tc_export.checkpoint.foreign`).

    .NAME.quantizing/  what is being made; a killed run goes on from the files that are done
    NAME/              the checkpoint, once it is whole

The new folder is a checkpoint as any other: it opens, builds and is compared as one. Names are
those of the old one, so that whatever reads it finds its tensors; a quantised one is stored as
`tc_export.checkpoint.quantized` says.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
import shutil
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from tc_export.bundle.files import flush, write_atomically
from tc_export.checkpoint import unquantised
from tc_export.checkpoint.foreign import QUANT_CONFIG, PackedWeight, Packing
from tc_export.checkpoint.hf_config import CONFIG
from tc_export.checkpoint.quantized import (
    GLOBAL_SCALE,
    INPUT_SCALE,
    SCALES,
    VALUES,
    QuantizedWeight,
)
from tc_export.checkpoint.reader import Checkpoint
from tc_export.checkpoint.safetensors_file import TensorLocation
from tc_export.checkpoint.shards import INDEX, read_json_object
from tc_export.dtypes import DType
from tc_export.errors import CheckpointError, UsageError
from tc_export.quantize.grouped import Grouped
from tc_export.quantize.layer import CalibratedQuantizer, LayerWeight, Quantizer
from tc_export.quantize.repack import Repacker
from tc_export.recipes import (
    GROUP_SIZES,
    QUANT_METHOD,
    Recipe,
    WeightRule,
    list_recipes,
    load_recipe,
)

Advance = Callable[[int, int], None]
"""Called with the bytes that are done, and all there are, of the old checkpoint."""

SMALL_FILES = ("*.json", "*.jinja", "*.model", "*.txt")
_LAYER = re.compile(r"decoder\.layers\.(\d+)\.")
_STATE = "state.json"
_CHOSEN = "chosen.json"


@dataclass(frozen=True, kw_only=True)
class Quantized:
    """What was made.

    Attributes:
        folder: the new checkpoint.
        weights: how many were quantised.
        bytes_before: of all weights.
        bytes_after: of all weights.
    """

    folder: Path
    weights: int
    bytes_before: int
    bytes_after: int


def recipe_for(checkpoint: Checkpoint, asked: str | None) -> Recipe:
    """The recipe that is asked for, or what repacks a checkpoint that is quantised already.

    Raises:
        UsageError: there is no such recipe, none was named, or there is nothing to quantise.
        InputError: the recipe's file cannot be read.
        CheckpointError: what another library has made of the weights cannot be kept bit for bit.
    """
    config = checkpoint.config
    if config.packing is not None and asked is None:
        return _repacking(checkpoint, config.packing)
    if config.recipe is not None:
        also = "; without a recipe this one is repacked as it is" if config.packing else ""
        raise UsageError(
            f"{checkpoint.folder} is quantised already, and is not quantised again",
            hint=f"give the checkpoint before it was quantised{also}",
        )
    if asked is None:
        names = ", ".join(recipe.name for recipe in list_recipes())
        raise UsageError("no recipe is named", hint=f"name one: {names}, or a recipe's file")
    return load_recipe(asked)


def quantize_checkpoint(
    checkpoint: Checkpoint,
    recipe: Recipe,
    folder: Path,
    advance: Advance = lambda done, total: None,
) -> Quantized:
    """Write a quantised checkpoint to `folder`, or find that it is there.

    Raises:
        CheckpointError: a weight cannot be stored so, or the checkpoint is quantised already.
        UsageError: the recipe does not fit the model, or something else is at `folder`.
    """
    key = _key(checkpoint, recipe)
    shards = _plan(checkpoint, recipe)
    if folder.exists():
        if _key_of(folder) != key:
            raise UsageError(
                f"{folder} exists, and is not this checkpoint quantised by {recipe.name}",
                hint="name another place, or remove it",
            )
    else:
        work = folder.with_name(f".{folder.name}.quantizing")
        _begin(work, key)
        if recipe.budget is not None:
            recipe = _chosen(checkpoint, recipe, shards, work / _CHOSEN, advance)
            shards = _plan(checkpoint, recipe)
        _write_shards(shards, work, _quantizer(checkpoint, recipe), advance)
        _write_index(checkpoint, recipe, key, shards, work)
        (work / _STATE).unlink()
        (work / _CHOSEN).unlink(missing_ok=True)
        flush(work)
        work.rename(folder)
        flush(folder.parent)
    return Quantized(
        folder=folder,
        weights=sum(x.rule is not None for shard in shards for x in shard.weights),
        bytes_before=sum(shard.nbytes for shard in shards),
        bytes_after=sum((folder / shard.file).stat().st_size for shard in shards),
    )


@dataclass(frozen=True)
class _Shard:
    """A file to be: the weights of a decoder layer, or all others."""

    file: str
    layer: int | None
    weights: tuple[LayerWeight, ...]

    @property
    def nbytes(self) -> int:
        return sum(weight.location.nbytes for weight in self.weights)

    @property
    def stored(self) -> list[str]:
        """The names of its tensors on the disk."""
        return [
            weight.location.name + suffix
            for weight in self.weights
            for suffix in (_suffixes(weight.rule) if weight.rule else ("",))
        ]


def _suffixes(rule: WeightRule) -> tuple[str, ...]:
    beside = [INPUT_SCALE] if rule.inputs else [GLOBAL_SCALE] if rule.dtype is DType.NVFP4 else []
    return (VALUES, SCALES, *beside)


def _repacking(checkpoint: Checkpoint, packing: Packing) -> Recipe:
    """What becomes of the weights that another library has quantised."""
    packed = [name for name, x in checkpoint.tensors.items() if isinstance(x, PackedWeight)]
    return packing.recipe(checkpoint.config.model, packed)


def _plan(checkpoint: Checkpoint, recipe: Recipe) -> list[_Shard]:
    """A shard for each decoder layer, and one for all else; what cannot be is found here."""
    recipe.check_patterns(checkpoint.tensors)
    packing = checkpoint.config.packing
    repacks = packing is not None and recipe == _repacking(checkpoint, packing)
    by_layer: dict[int, dict[str, LayerWeight]] = {}
    problems = []
    for name, location in checkpoint.tensors.items():
        packed = isinstance(location, PackedWeight)
        if isinstance(location, QuantizedWeight) or (packed and not repacks):
            raise CheckpointError(
                f"{checkpoint.folder} is quantised already",
                hint="give the checkpoint before it was quantised",
            )
        rules = recipe.rules(name)
        for rule in rules:
            problems += [f"  {name}: {x}" for x in _misfit(name, location, rule, recipe.budget)]
        found = _LAYER.match(name)
        of = by_layer.setdefault(int(found[1]) if found else -1, {})
        # A tied head is the embedding again.
        own_name = name[found.end() :] if found else name
        of.setdefault(location.name, LayerWeight(own_name, location, next(iter(rules), None)))
    if problems and repacks:
        raise CheckpointError(
            f"{checkpoint.folder} has weights that cannot be kept so:\n" + "\n".join(problems),
            hint="give the checkpoint before it was quantised",
        )
    if problems:
        raise UsageError(
            f"the recipe {recipe.name!r} does not fit {checkpoint.folder}:\n" + "\n".join(problems),
            hint="name fewer weights, or another group_size",
        )
    count = len(by_layer)
    return [
        _Shard(
            file=f"model-{number:05}-of-{count:05}.safetensors",
            layer=None if layer < 0 else layer,
            weights=tuple(by_layer[layer].values()),
        )
        for number, layer in enumerate(sorted(by_layer), start=1)
    ]


def _misfit(
    model_name: str,
    location: TensorLocation | PackedWeight,
    rule: WeightRule,
    budget: float | None,
) -> list[str]:
    if len(location.shape) != 2 or not location.name.endswith(".weight"):
        return ["is no matrix of a linear layer"]
    if "embed_tokens" in location.name or "lm_head" in location.name:
        return ["tokens are embedded outside the graphs, and the head stays as it is"]
    N, K = location.shape
    problems = []
    if rule.group_size and K % rule.group_size:
        fitting = [size for size in GROUP_SIZES if K % size == 0]
        also = f"; {', '.join(map(str, fitting))} do" if fitting else ""
        problems.append(f"{K} channels are no multiple of groups of {rule.group_size}{also}")
    if not _LAYER.match(model_name) and (rule.inputs or budget is not None):
        problems.append("inputs are looked at in the decoder's layers alone")
    if rule.dtype.bits == 4 and N % 2:
        problems.append(f"{N} rows are odd, and four-bit numbers lie two to a byte")
    return problems


def _key(checkpoint: Checkpoint, recipe: Recipe) -> str:
    described = {"checkpoint": checkpoint.digest(), "recipe": recipe.model_dump(mode="json")}
    return hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()


def _key_of(folder: Path) -> str | None:
    with suppress(OSError, ValueError, KeyError, TypeError):
        document = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        return str(document["quantization_config"]["key"])
    return None


def _begin(work: Path, key: str) -> None:
    """Make the folder; what a killed run left of the same work stays, all else goes."""
    state = work / _STATE
    if work.is_dir() and not (state.is_file() and state.read_text(encoding="utf-8") == key):
        shutil.rmtree(work)
    work.mkdir(parents=True, exist_ok=True)
    write_atomically(state, key)


def _chosen(
    checkpoint: Checkpoint, recipe: Recipe, shards: list[_Shard], path: Path, advance: Advance
) -> Recipe:
    """The recipe with one rule for each weight, which a killed run has left at `path`, or will."""
    with suppress(OSError, ValueError):
        return Recipe.read(json.loads(path.read_text(encoding="utf-8")), where=str(path))
    from tc_export.quantize.calibration import Calibration
    from tc_export.quantize.mixed import choose, options_of

    calibration = Calibration(checkpoint, recipe.clips, recipe.passages)
    options = {}
    done, total = 0, sum(shard.nbytes for shard in shards)
    for shard in shards:
        inputs = {} if shard.layer is None else calibration.inputs(shard.layer)
        for weight in shard.weights if inputs else ():
            name = f"decoder.layers.{shard.layer}.{weight.name}"
            rules = recipe.rules(name)
            if rules:
                options[name] = options_of(weight, rules, inputs)
        done += shard.nbytes
        advance(done, total)
    numbers = sum(math.prod(checkpoint.tensors[name].shape) for name in options)
    chosen = choose(options, recipe, numbers)
    write_atomically(path, chosen.model_dump_json())
    return chosen


def _quantizer(checkpoint: Checkpoint, recipe: Recipe) -> Quantizer:
    from tc_export.quantize.calibration import Calibration

    packing = checkpoint.config.packing
    calibrates = recipe.looks_at_inputs if packing is None else packing.calibrates
    calibration = Calibration(checkpoint, recipe.clips, recipe.passages) if calibrates else None
    if recipe.method is None:
        return Repacker(calibration)
    return CalibratedQuantizer(recipe, calibration) if calibration else Quantizer()


def _write_shards(shards: list[_Shard], work: Path, quantizer: Quantizer, advance: Advance) -> None:
    done, total = 0, sum(shard.nbytes for shard in shards)
    for shard in shards:
        path = work / shard.file
        if path.is_file():
            quantizer.skip(shard.layer)
        else:
            _write_shard(quantizer.quantize(shard.layer, shard.weights), path)
        done += shard.nbytes
        advance(done, total)


def _write_shard(found: Mapping[str, Tensor | Grouped], path: Path) -> None:
    """Write a file that is whole whenever it has its name."""
    tensors: dict[str, Tensor] = {}
    for name, weight in found.items():
        if isinstance(weight, Grouped):
            tensors[name + VALUES], tensors[name + SCALES] = weight.stored()
            if weight.input_scale is not None:
                tensors[name + INPUT_SCALE] = weight.input_scale
            if weight.global_scale is not None:
                tensors[name + GLOBAL_SCALE] = weight.global_scale
        else:
            tensors[name] = weight.contiguous()
    partial = path.with_suffix(".partial")
    partial.touch()
    mode = partial.stat().st_mode & 0o777  # what the umask gives to a new file
    save_file(tensors, partial)
    partial.chmod(mode)  # the library lets nobody but the owner read what it writes
    flush(partial)
    partial.rename(path)


def _made_from(checkpoint: Checkpoint) -> dict[str, Any]:
    """The checkpoint before, or how a library had quantised it by then."""
    if checkpoint.config.packing is not None:
        stated = checkpoint.config.document.get("quantization_config")
        return {"repacked_from": stated or read_json_object(checkpoint.folder / QUANT_CONFIG)}
    made_from = unquantised.Unquantised.of(checkpoint)
    return {unquantised.KEY: made_from.model_dump(mode="json")}


def _write_index(
    checkpoint: Checkpoint, recipe: Recipe, key: str, shards: list[_Shard], work: Path
) -> None:
    """Everything beside the weights: the small files, the index, and config.json."""
    for pattern in SMALL_FILES:
        for path in sorted(checkpoint.folder.glob(pattern)):
            if path.is_file() and not path.name.endswith((INDEX, QUANT_CONFIG)):
                shutil.copyfile(path, work / path.name)
    weight_map = {name: shard.file for shard in shards for name in shard.stored}
    write_atomically(work / INDEX, json.dumps({"metadata": {}, "weight_map": weight_map}))
    document: dict[str, Any] = dict(checkpoint.config.document)
    if "kv" in recipe.model_fields_set:
        document["cache"] = {"kv": recipe.kv}
    document["quantization_config"] = {
        "quant_method": QUANT_METHOD,
        "recipe": recipe.model_dump(mode="json"),
        "key": key,
        **_made_from(checkpoint),
    }
    write_atomically(work / CONFIG, json.dumps(document, indent=2) + "\n")
