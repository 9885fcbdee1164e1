# SPDX-License-Identifier: Apache-2.0
"""All tensors of a checkpoint folder: one safetensors file, or shards with an index."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tc_export.checkpoint.safetensors_file import TensorLocation, read_header
from tc_export.errors import CheckpointError

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
PICKLED = ("*.bin", "*.pt", "*.pth", "*.ckpt")


def find_tensors(folder: Path) -> dict[str, TensorLocation]:
    """Find every tensor of the folder's weights, by its name on disk.

    Symbolic links are followed to the real file (the Hugging Face cache is made of them), but a
    name in the index may not point out of the folder.

    Raises:
        CheckpointError: there are no weights, only pickled ones, or damaged ones.
    """
    if _is_there(folder / SINGLE):
        return read_header(_real_file(folder / SINGLE))
    if _is_there(folder / INDEX):
        return _read_shards(folder)
    raise _no_weights(folder)


def read_json_object(file: Path) -> dict[str, Any]:
    """Read a JSON file that must hold an object.

    Raises:
        CheckpointError: it cannot be read, or holds something else.
    """
    try:
        parsed = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise CheckpointError(f"{file} cannot be read ({error.strerror})") from error
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{file} is not JSON ({error})") from error
    if not isinstance(parsed, dict):
        raise CheckpointError(f"{file} holds {type(parsed).__name__}, expected a JSON object")
    return parsed


def _is_there(path: Path) -> bool:
    """True also for a broken link: it must be reported, not passed over."""
    return path.exists() or path.is_symlink()


def _real_file(path: Path) -> Path:
    try:
        real = path.resolve(strict=True)
    except (OSError, RuntimeError, ValueError) as error:
        raise CheckpointError(
            f"{path} does not exist, or is a link to nothing",
            hint="download the missing file, or save the checkpoint again",
        ) from error
    if not real.is_file():
        raise CheckpointError(f"{path} is not a file")
    return real


def _read_shards(folder: Path) -> dict[str, TensorLocation]:
    index = folder / INDEX
    weight_map = read_json_object(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{index} has no weight_map from tensor names to files")
    shards = sorted({_checked_shard_name(shard, index) for shard in weight_map.values()})
    tensors: dict[str, TensorLocation] = {}
    problems: list[str] = []
    for shard in shards:
        for name, location in read_header(_real_file(folder / shard)).items():
            if weight_map.get(name) == shard:
                tensors[name] = location
            else:
                problems.append(
                    f"  {name} is in {shard}, but the index says {weight_map.get(name)}"
                )
    problems += [
        f"  {name} is not in {weight_map[name]}" for name in weight_map if name not in tensors
    ]
    if problems:
        raise CheckpointError(
            f"{index} and the shards disagree:\n" + "\n".join(problems),
            hint="the shards are of another checkpoint than the index: download all of it again",
        )
    return tensors


def _checked_shard_name(shard: Any, index: Path) -> str:
    """A plain file name: no folder, no `..`, nothing absolute."""
    plain = isinstance(shard, str) and shard == Path(shard).name and "\\" not in shard
    if not plain or not shard.endswith(".safetensors"):
        raise CheckpointError(
            f"{index} names the shard {shard!r}, expected the name of a .safetensors file "
            "in the same folder"
        )
    return str(shard)


def _no_weights(folder: Path) -> CheckpointError:
    pickled = sorted(path.name for pattern in PICKLED for path in folder.glob(pattern))
    if pickled:
        return CheckpointError(
            f"{folder} has only pickled weights ({', '.join(pickled)}), which can run code when "
            "they are opened; expected safetensors",
            hint="if you trust them, convert them: LlavaForConditionalGeneration"
            ".from_pretrained(folder).save_pretrained(new_folder)",
        )
    others = sorted(path.name for path in folder.glob("*.safetensors"))
    found = f"; it has {', '.join(others)}" if others else ""
    return CheckpointError(
        f"{folder} has neither {SINGLE} nor {INDEX}{found}",
        hint="download the whole repository, with its index" if others else None,
    )
