# SPDX-License-Identifier: Apache-2.0
"""What a key/value cache in fewer bits costs on text, with real language weights.

SmolLM2-135M in a LLaVA folder reads passages that no calibration saw, once with its cache in
float32, and once for each way to store keys and values:

    python benchmarks/kv_cache.py --json
    python benchmarks/kv_cache.py --passages 4 --tokens 1024

`int8` is what a build with `--kv int8` computes. The other ways are tried by rounding what the
plain attention is given. KL is of each token's distribution, from the float32 cache's to the
other's, in nats: the mean over tokens, and the largest. `bits` are those of a number of the cache,
scales included.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Annotated, Any

import numpy as np
import torch
import typer
from quantisation import smollm2
from torch import Tensor

from tc_export import ops
from tc_export.checkpoint.reader import Checkpoint, open_checkpoint
from tc_export.config import CacheConfig, KvFormat
from tc_export.parity.cost.text import CheckpointReader
from tc_export.runtime.tokenizer import Tokenizer
from tc_export.tasks.passages import passages_of

Rounding = Callable[[Tensor], Tensor]

SCALE_BITS = 32


def exact(x: Tensor) -> Tensor:
    """Not rounded."""
    return x


def whole_numbers(bits: int, group: int | None = None) -> Rounding:
    """Whole numbers with a scale for each row of each head, or for each group of channels."""
    largest = 2 ** (bits - 1) - 1

    def rounded(x: Tensor) -> Tensor:
        rows = x.unflatten(-1, (-1, group or x.shape[-1]))
        scale = rows.abs().amax(-1, keepdim=True) / largest
        codes = (rows / torch.where(scale > 0, scale, 1.0)).round()
        return (codes * scale).flatten(-2)

    return rounded


def fp8(x: Tensor) -> Tensor:
    """E4M3 with a scale for each row of each head."""
    scale = x.abs().amax(-1, keepdim=True) / torch.finfo(torch.float8_e4m3fn).max
    codes = (x / torch.where(scale > 0, scale, 1.0)).to(torch.float8_e4m3fn)
    return codes.to(x.dtype) * scale


@dataclass(frozen=True)
class Way:
    """How keys and values are rounded; `bits` of a number, where a row has `head_dim`."""

    name: str
    keys: Rounding
    values: Rounding
    key_bits: int
    value_bits: int
    group: int | None = None

    def bits(self, head_dim: int) -> float:
        """Bits of a number, scales included."""
        scales = [
            SCALE_BITS / (self.group or head_dim) if bits < SCALE_BITS else 0.0
            for bits in (self.key_bits, self.value_bits)
        ]
        return (self.key_bits + self.value_bits + sum(scales)) / 2


WAYS = (
    Way("int8 keys", whole_numbers(8), exact, 8, 32),
    Way("int8 values", exact, whole_numbers(8), 32, 8),
    Way("int8, a scale for 32 channels", whole_numbers(8, 32), whole_numbers(8, 32), 8, 8, 32),
    Way("int8, a scale for 16 channels", whole_numbers(8, 16), whole_numbers(8, 16), 8, 8, 16),
    Way("fp8", fp8, fp8, 8, 8),
    Way("fp8 keys", fp8, exact, 8, 32),
    Way("fp8 values", exact, fp8, 32, 8),
    Way("int4 keys", whole_numbers(4), exact, 4, 32),
    Way("int4 values", exact, whole_numbers(4), 32, 4),
)


@contextmanager
def rounded_by(way: Way) -> Iterator[None]:
    """Round what enters the cache."""
    plain = ops.block_causal_attention

    def attention(q: Tensor, k: Tensor, v: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor]:
        found: tuple[Tensor, Tensor, Tensor] = plain(q, way.keys(k), way.values(v), *rest)
        return found

    ops.block_causal_attention = attention  # type: ignore[assignment]
    try:
        yield
    finally:
        ops.block_causal_attention = plain


def in_int8(checkpoint: Checkpoint) -> Checkpoint:
    """The checkpoint as a build with `--kv int8` has it."""
    model = checkpoint.config.model.model_copy(update={"cache": CacheConfig(kv=KvFormat.INT8)})
    return replace(checkpoint, config=replace(checkpoint.config, model=model))


def read(checkpoint: Checkpoint, passages: list[np.ndarray]) -> list[np.ndarray]:
    """Logarithms of each token's distribution [S, V], of every passage."""
    reader = CheckpointReader(checkpoint, passages)
    return [reader.log_probabilities(index) for index in range(len(passages))]


def row(name: str, bits: float, truth: list[np.ndarray], found: list[np.ndarray]) -> dict[str, Any]:
    """The figures of one way."""
    divergence = np.concatenate(
        [
            np.sum(np.exp(p) * (p - q), axis=1, dtype=np.float64)
            for p, q in zip(truth, found, strict=True)
        ]
    )
    same = [p.argmax(axis=1) == q.argmax(axis=1) for p, q in zip(truth, found, strict=True)]
    return {
        "way": name,
        "bits": round(bits, 2),
        "kl": float(f"{divergence.mean():.3g}"),
        "largest_kl": float(f"{divergence.max():.3g}"),
        "same_token": round(float(np.concatenate(same).mean()), 4),
    }


def main(
    passages: Annotated[int, typer.Option(min=1, help="That are read.")] = 32,
    tokens: Annotated[int, typer.Option(min=2, help="Of each, at most.")] = 128,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Read the passages with each cache, and print a row for each."""
    checkpoint = open_checkpoint(smollm2())
    head_dim = checkpoint.config.model.text.head_dim
    short = passages_of(Tokenizer.load(checkpoint.folder), passages, held_out=True)
    each = max(1, tokens // len(short[0]))
    token_ids = [np.concatenate(short[i : i + each]) for i in range(0, len(short), each)]
    truth = read(checkpoint, token_ids)
    found = read(in_int8(checkpoint), token_ids)
    rows = [row("int8", 8 + SCALE_BITS / head_dim, truth, found)]
    for way in WAYS:
        with rounded_by(way):
            found = read(checkpoint, token_ids)
        rows.append(row(way.name, way.bits(head_dim), truth, found))
    if as_json:
        print(json.dumps(rows))
    else:
        for values in rows:
            print(" ".join(f"{value:>30}" for value in values.values()))


if __name__ == "__main__":
    typer.run(main)
