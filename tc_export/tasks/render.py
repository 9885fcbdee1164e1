# SPDX-License-Identifier: Apache-2.0
"""Draws clips, many at once: each array operation covers all figures of one layer.

Axes: N distinct frames, K figures, Y and X pixels, C colour channels.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from tc_export.tasks.clips import Clip, Colour, Figure, Frame, Shape

TEXTURE_CELLS = 8  # along one side of the background

RGB: dict[Colour, tuple[int, int, int]] = {
    Colour.RED: (225, 40, 40),
    Colour.GREEN: (40, 190, 60),
    Colour.BLUE: (50, 80, 240),
    Colour.YELLOW: (240, 220, 40),
    Colour.PURPLE: (190, 60, 220),
    Colour.WHITE: (245, 245, 245),
    Colour.GREY: (120, 120, 120),
}

Floats = NDArray[np.float32]


def render(clips: Sequence[Clip], size: int) -> NDArray[np.uint8]:
    """Draw clips of one length as RGB [clips, steps, size, size, 3]."""
    frames, index = render_distinct(clips, size)
    drawn: NDArray[np.uint8] = frames[index]
    return drawn


def render_distinct(
    clips: Sequence[Clip], size: int
) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Draw each distinct frame of each clip once.

    Returns:
        The frames [N, size, size, 3], and an index [clips, steps] into them. Where nothing
        changes, frames repeat; a model that runs over N frames instead of all saves the rest.
    """
    index = np.empty((len(clips), len(clips[0].frames)), dtype=np.int64)
    distinct: list[Frame] = []
    clip_of_frame: list[int] = []
    for row, clip in enumerate(clips):
        seen: dict[Frame, int] = {}
        for step, frame in enumerate(clip.frames):
            if frame not in seen:
                seen[frame] = len(distinct)
                distinct.append(frame)
                clip_of_frame.append(row)
            index[row, step] = seen[frame]
    canvas_NYXC = np.stack([_background(clip, size) for clip in clips])[clip_of_frame]
    for layer in range(max(map(len, distinct))):
        at = [n for n, frame in enumerate(distinct) if len(frame) > layer]
        _paint(canvas_NYXC, at, [distinct[n][layer] for n in at])
    return (canvas_NYXC + 0.5).astype(np.uint8), index


def _background(clip: Clip, size: int) -> Floats:
    cells = np.random.default_rng(clip.texture_seed).random((TEXTURE_CELLS, TEXTURE_CELLS))
    level = 255 * (clip.background + clip.texture * (2 * cells - 1))
    cell = np.arange(size) * TEXTURE_CELLS // size
    grey_YX = level.astype(np.float32)[cell[:, None], cell]
    return np.repeat(grey_YX[:, :, None], 3, axis=2)


def _paint(canvas_NYXC: Floats, at: Sequence[int], figures: Sequence[Figure]) -> None:
    """Blend figure k into the frame at[k], in place."""
    size = canvas_NYXC.shape[1]
    centres = (np.arange(size, dtype=np.float32) + 0.5) / size
    place_K3 = np.array([(f.x, f.y, f.radius) for f in figures], dtype=np.float32)
    x_KX = centres - place_K3[:, 0, None]
    y_KY = centres - place_K3[:, 1, None]
    inside_KYX = np.empty((len(figures), size, size), dtype=np.float32)
    for shape in Shape:
        of_shape = [k for k, figure in enumerate(figures) if figure.shape is shape]
        x, y = x_KX[of_shape, None, :], y_KY[of_shape, :, None]
        inside_KYX[of_shape] = _inside(shape, x, y, place_K3[of_shape, 2, None, None])
    # The edge is one pixel wide: half covered where the distance is zero.
    cover_KYX1 = np.clip(inside_KYX * size + 0.5, 0, 1)[..., None]
    colour_KC = np.array([RGB[figure.colour] for figure in figures], dtype=np.float32)
    behind_KYXC = canvas_NYXC[at]
    canvas_NYXC[at] = behind_KYXC + cover_KYX1 * (colour_KC[:, None, None] - behind_KYXC)


def _inside(shape: Shape, x: Floats, y: Floats, radius: Floats) -> Floats:
    """How far a point is inside the figure (negative outside); exact enough near the edge."""
    inside: Floats
    match shape:
        case Shape.CIRCLE:
            inside = radius - np.sqrt(x * x + y * y)
        case Shape.SQUARE:
            inside = np.float32(0.9) * radius - np.maximum(abs(x), abs(y))
        case Shape.TRIANGLE:  # apex above; the slanted sides have slope 2
            side = (y + radius - 2 * abs(x)) / np.float32(np.sqrt(5))
            inside = np.minimum(np.float32(0.9) * radius - y, side)
        case Shape.CROSS:
            long, short = np.maximum(abs(x), abs(y)), np.minimum(abs(x), abs(y))
            inside = np.minimum(radius - long, np.float32(0.35) * radius - short)
    return inside
