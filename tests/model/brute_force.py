# SPDX-License-Identifier: Apache-2.0
"""The method's definition, read word by word with Python loops and float64: the tests' reference.

It imports nothing of the package. A sequence is a list of runs: a number is that many text tokens,
a pair (F, m) is a clip of F frames of m visual tokens. An image is a clip of one frame.

    n          global position of a token, from 0
    f(n)       its frame in its clip, -1 for text
    T(n)       temporal position: n before the first clip; one for a whole frame; one for a text
    P(n)       n + gamma T(n), the position that queries and keys are rotated by
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

Run = int | tuple[int, int]

MASKS = ("causal", "full_visual", "frame_block", "frame_block_causal")
READINGS = ("restart", "share")


@dataclass(frozen=True)
class Token:
    """One token: f(n), its clip (-1 for text) and T(n)."""

    frame: int
    clip: int
    temporal: int


def tokens_of(runs: Sequence[Run], after_clip: str) -> list[Token]:
    """Every token of the sequence, in order; a token's index is n."""
    tokens: list[Token] = []
    temporal = 0
    clips = 0
    for run in runs:
        if isinstance(run, int):
            for _ in range(run):
                tokens.append(Token(frame=-1, clip=-1, temporal=temporal))
                temporal += 1
            continue
        frames, tokens_per_frame = run
        for frame in range(frames):
            for _ in range(tokens_per_frame):
                tokens.append(Token(frame=frame, clip=clips, temporal=temporal))
            temporal += 1
        if after_clip == "share":  # what follows stands where the last frame stood
            temporal -= 1
        clips += 1
    return tokens


def rotary_positions(tokens: Sequence[Token], gamma: float) -> list[float]:
    """P(n) of every token."""
    return [n + gamma * token.temporal for n, token in enumerate(tokens)]


def sees(tokens: Sequence[Token], mask: str, query: int, key: int) -> bool:
    """Whether the query attends to the key: the table of masks, row by row."""
    i, j = tokens[query], tokens[key]
    if i.clip < 0 or j.clip < 0:
        return key <= query
    same_clip = i.clip == j.clip
    same_frame = same_clip and i.frame == j.frame
    if mask == "causal":
        return key <= query
    if mask == "full_visual":
        return same_clip or key <= query
    if mask == "frame_block":
        return same_frame
    if mask == "frame_block_causal":
        return same_frame or key <= query
    raise ValueError(mask)


def visibility(tokens: Sequence[Token], mask: str) -> list[list[bool]]:
    """Row i says which keys token i sees."""
    count = range(len(tokens))
    return [[sees(tokens, mask, i, j) for j in count] for i in count]
