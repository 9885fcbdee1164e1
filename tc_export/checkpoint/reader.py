# SPDX-License-Identifier: Apache-2.0
"""A checkpoint folder, opened: its config, the place of every weight, and the model on demand.

Opening reads headers only. Weights are mapped into memory tensor by tensor when they are used, so
a checkpoint larger than memory can be opened, checked, hashed and exported. Opening and hashing
take no PyTorch, so that a wrong checkpoint is refused, and an unchanged one known, at once.
"""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tc_export.checkpoint.foreign import join_packed
from tc_export.checkpoint.hf_config import CheckpointConfig, read_config
from tc_export.checkpoint.names import Renaming, rename, usual_name
from tc_export.checkpoint.quantized import (
    GLOBAL_SCALE,
    INPUT_SCALE,
    SCALES,
    QuantizedWeight,
    Weight,
    join_quantized,
    stored_parts,
)
from tc_export.checkpoint.safetensors_file import TensorLocation
from tc_export.checkpoint.shards import find_tensors
from tc_export.config import ModelConfig, ModelSettings
from tc_export.digests import LARGE_BYTES, is_settled, recall, remember, stamp
from tc_export.dtypes import DType
from tc_export.errors import CheckpointError
from tc_export.model.weight_shapes import Shape, weight_shapes
from tc_export.recipes import is_ours

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from tc_export.model.input_rounding import InputRounding
    from tc_export.model.tc_llava import TcLlava

EMBEDDING = "embed_tokens.weight"
HEAD = "decoder.lm_head.weight"
FLOATS = (DType.FLOAT64, DType.FLOAT32, DType.FLOAT16, DType.BFLOAT16)
CHUNK_BYTES = 16 << 20

Progress = Callable[[int, int], None]
"""Called with bytes done and bytes in all."""


@dataclass(frozen=True)
class Checkpoint:
    """An opened checkpoint. Every tensor that the model needs is there, with the right shape."""

    folder: Path
    config: CheckpointConfig
    tensors: Mapping[str, Weight]
    """By the names of `TcLlava.state_dict()`. A tied head is where the embedding is."""

    @property
    def embedding(self) -> TensorLocation:
        """The table of tokens, which is never quantised."""
        table = self.tensors[EMBEDDING]
        assert isinstance(table, TensorLocation)
        return table

    def digest(self, progress: Progress | None = None) -> str:
        """SHA-256 over the configuration and every weight that is used, as hexadecimal digits.

        That of a large checkpoint is remembered as long as no file of it changes; then nothing is
        read, and `progress` is not called.
        """
        key = self._digest_key()
        found = recall().checkpoints.get(key)
        if found:
            return found
        sha = hashlib.sha256(self._description().encode())
        watch = _Watch(self.stored(), progress)
        for name, location in self.stored().items():
            sha.update(f"{name} {location.dtype} {location.shape}\n".encode())
            raw = location.as_bytes()
            for start in range(0, raw.size, CHUNK_BYTES):
                sha.update(raw[start : start + CHUNK_BYTES].data)
                watch.advance(min(CHUNK_BYTES, raw.size - start))
        digest = sha.hexdigest()
        settled = all(map(is_settled, self._statuses().values()))
        if watch.total > LARGE_BYTES and settled and self._digest_key() == key:
            remember(checkpoints={key: digest})
        return digest

    def _description(self) -> str:
        config = self.config
        tokens = (config.image_token_id, config.video_token_id, config.eos_token_ids)
        packing = f" {config.packing!r}" if config.packing else ""
        return f"{config.family} {config.model.model_dump_json()} {tokens}{packing}\n"

    def _digest_key(self) -> str:
        """A hash of what the digest is of, with the files' stamps in the place of their bytes."""
        stamps = {file: stamp(status) for file, status in self._statuses().items()}
        places = [
            f"{name} {x.dtype} {x.shape} {x.offset} {stamps[x.file]}\n"
            for name, x in self.stored().items()
        ]
        return hashlib.sha256((self._description() + "".join(places)).encode()).hexdigest()

    def _statuses(self) -> dict[Path, os.stat_result]:
        """The state of every file that has weights."""
        files = {location.file for location in self.stored().values()}
        try:
            return {file: file.stat() for file in files}
        except OSError as error:
            raise CheckpointError(
                f"{error.filename} can no longer be read ({error.strerror})",
                hint="the checkpoint changed after it was opened: restore it and start again",
            ) from error

    def check_values(self, progress: Progress | None = None) -> None:
        """Read every weight once and look for values that are no finite numbers.

        Scales of quantised weights have to be above zero too.

        Raises:
            CheckpointError: naming every tensor with such values.
        """
        watch = _Watch(self.stored(), progress)
        problems = []
        for name, location in self.stored().items():
            if not location.dtype.is_float or location.dtype is DType.NVFP4:
                watch.advance(location.nbytes)
                continue
            is_scale = name.endswith((SCALES, INPUT_SCALE, GLOBAL_SCALE))
            count = _count_no_scales if is_scale else _count_not_finite
            found = sum(count(chunk) for chunk in _chunks(location, watch))
            if found:
                problems.append(f"  {location.name}: {found} of {_count(location)} values")
        if problems:
            raise CheckpointError(
                f"{self.folder} has weights that are NaN or infinite, or scales that are not above "
                "zero:\n" + "\n".join(problems),
                hint="the checkpoint was damaged, or its training diverged: use an earlier one",
            )

    def load_model(self, dtype: torch.dtype | None = None) -> TcLlava:
        """The reference model with these weights, in eval mode, in float32 or another `dtype`.

        Weights that have `dtype` on disk stay there until they are used (memory-mapped, copy on
        write). The rotary frequencies are float32 whatever the dtype.
        """
        from tc_export.model.input_rounding import round_inputs
        from tc_export.model.rope import inverse_frequencies

        model = empty_model(self.config.model)
        dtype = dtype or DType.FLOAT32.torch
        state = {name: location.as_tensor().to(dtype) for name, location in self.tensors.items()}
        model.load_state_dict(state, assign=True)
        if self.config.model.text.tie_word_embeddings:
            model.decoder.lm_head.weight = model.embed_tokens.weight
        model.decoder.inv_freq, _ = inverse_frequencies(self.config.model.text)
        round_inputs(model, self.input_roundings())
        return model.eval()

    def input_roundings(
        self, module: str = "", scales: DType | None = None
    ) -> dict[str, InputRounding]:
        """What the linear layers in a module round their inputs to, by their names in there.

        Those that are not named take them as they are. Scales may be rounded to a format before.
        """
        prefix = f"{module}." if module else ""
        found: dict[str, InputRounding] = {}
        for name, weight in self.tensors.items():
            if isinstance(weight, QuantizedWeight) and name.startswith(prefix):
                rounding = weight.input_rounding(scales)
                if rounding is not None:
                    found[name.removeprefix(prefix).removesuffix(".weight")] = rounding
        return found

    def stored(self) -> dict[str, TensorLocation]:
        """What lies on the disk, in the order of the weights' names, each place once.

        Of a quantised weight that are its values and its scales.
        """
        tied = self.config.model.text.tie_word_embeddings
        names = [name for name in sorted(self.tensors) if not (tied and name == HEAD)]
        return dict(part for name in names for part in stored_parts(name, self.tensors[name]))


def open_checkpoint(path: Path | str, asked: ModelSettings | None = None) -> Checkpoint:
    """Open a Hugging Face folder of a LLaVA-family model.

    What the user asked for counts where the checkpoint says nothing; see `read_config`.

    Raises:
        CheckpointError: not a checkpoint, not supported, damaged, or of another shape.
        UsageError: what was asked for contradicts the checkpoint, or cannot be of this model.
    """
    folder = Path(path)
    if not folder.is_dir():
        found = "is a file" if folder.exists() else "does not exist"
        raise CheckpointError(
            f"the checkpoint {folder} {found}; expected a folder",
            hint="give the folder that has config.json and the safetensors",
        )
    config = read_config(folder, asked)
    on_disk = _read_tensors(folder, config)
    renaming = rename(on_disk, config.family, config.model.vision.layers_used)
    if config.model.text.tie_word_embeddings:
        _tie_head(renaming, on_disk, folder)
    return Checkpoint(
        folder=folder, config=config, tensors=_match(renaming, on_disk, config, folder)
    )


def empty_model(config: ModelConfig) -> TcLlava:
    """The model on the meta device: shapes and dtypes of all weights, and no memory."""
    import torch

    from tc_export.model.tc_llava import TcLlava

    with torch.device("meta"):
        return TcLlava(config)


def _read_tensors(folder: Path, config: CheckpointConfig) -> dict[str, Weight]:
    """All weights of a folder; quantised ones are read where config.json says that there are."""
    found = find_tensors(folder)
    if config.packing is not None:
        return dict(join_packed(found, config.packing, folder))
    if is_ours(config.document.get("quantization_config")):
        return join_quantized(found, folder)
    return dict(found)


def _tie_head(renaming: Renaming, on_disk: Mapping[str, Weight], folder: Path) -> None:
    """Let the head take the embedding's place on disk. A stored head must be the same weights."""
    embedding = renaming.sources.get(EMBEDDING, [])
    for name in renaming.sources.get(HEAD, []):
        if not embedding or not _same_bytes(on_disk[name], on_disk[embedding[0]]):
            raise CheckpointError(
                f"{folder}: config.json ties the head to the embedding, but {name} is not the "
                "same as the embedding",
                hint="set tie_word_embeddings to false, or remove the head from the weights",
            )
    if embedding:
        renaming.sources[HEAD] = embedding


def _same_bytes(a: Weight, b: Weight) -> bool:
    if not (isinstance(a, TensorLocation) and isinstance(b, TensorLocation)):
        return False
    same_kind = (a.dtype, a.shape) == (b.dtype, b.shape)
    return same_kind and bool((a.as_bytes() == b.as_bytes()).all())


def _match(
    renaming: Renaming,
    on_disk: Mapping[str, Weight],
    config: CheckpointConfig,
    folder: Path,
) -> dict[str, Weight]:
    """Pair every weight of the model with one tensor on disk, or list all that does not pair."""
    expected = weight_shapes(config.model)
    tensors: dict[str, Weight] = {}
    problems: list[str] = []
    for name, shape in expected.items():
        sources = renaming.sources.get(name, [])
        if not sources:
            problems.append(f"  missing: {usual_name(name, config.family)}")
        elif len(sources) > 1:
            problems.append(f"  stored more than once: {', '.join(sources)}")
        else:
            tensors[name] = on_disk[sources[0]]
            problems += _differences(tensors[name], shape)
    unused = [
        s for name, sources in renaming.sources.items() if name not in expected for s in sources
    ]
    problems += [f"  unused: {name}" for name in sorted(renaming.unknown + unused)]
    if problems:
        raise CheckpointError(
            f"the weights in {folder} do not fit its config.json ({config.family}); "
            f"{len(problems)} problems:\n" + "\n".join(problems),
            hint="config.json and weights must be of one checkpoint",
        )
    return tensors


def _differences(location: Weight, expected: Shape) -> Iterator[str]:
    if location.shape != expected:
        yield f"  shape of {location.name}: {location.shape}, expected {expected}"
    if isinstance(location, TensorLocation) and location.dtype not in FLOATS:
        kinds = ", ".join(FLOATS)
        yield f"  dtype of {location.name}: {location.dtype}, expected one of {kinds}"


def _chunks(location: TensorLocation, watch: _Watch) -> Iterator[Tensor]:
    """The tensor's values, a bounded part at a time."""
    import torch

    values = location.as_tensor().flatten()
    for chunk in torch.split(values, CHUNK_BYTES * 8 // location.dtype.bits):
        # PyTorch looks for no extremes in eight bits.
        yield chunk.to(torch.float32) if chunk.dtype.itemsize == 1 else chunk
        watch.advance(chunk.nbytes)


def _count_not_finite(chunk: Tensor) -> int:
    # The extremes of a whole chunk are finite, so one pass without a mask is the usual case.
    if chunk.numel() == 0 or all(math.isfinite(extreme) for extreme in chunk.aminmax()):
        return 0
    return int((~chunk.isfinite()).sum())


def _count_no_scales(chunk: Tensor) -> int:
    return int((~(chunk.isfinite() & (chunk > 0))).sum())


def _count(location: TensorLocation) -> int:
    return location.nbytes * 8 // location.dtype.bits


class _Watch:
    """Adds up bytes and tells the caller."""

    def __init__(self, locations: Mapping[str, TensorLocation], progress: Progress | None) -> None:
        self._done = 0
        self.total = sum(location.nbytes for location in locations.values())
        self._progress = progress

    def advance(self, nbytes: int) -> None:
        self._done += nbytes
        if self._progress:
            self._progress(self._done, self.total)
