# SPDX-License-Identifier: Apache-2.0
"""Drawing: right colours at right places, at any size, alone or among others, and as video."""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np
import pytest

from tc_export.errors import UsageError
from tc_export.tasks import (
    Clip,
    Colour,
    Figure,
    Kind,
    Shape,
    Split,
    make_item,
    make_items,
    render,
    render_distinct,
    write_video,
)
from tc_export.tasks.render import RGB


def plain(*figures: Figure) -> Clip:
    return Clip(frames=(figures, ()), background=0.1, texture=0.0, texture_seed=0)


# Share of the square of side 2 r, by geometry. Square: side 1.8 r. Triangle: height 1.9 r, slope 2.
AREA = {
    Shape.CIRCLE: np.pi / 4,
    Shape.SQUARE: 0.81,
    Shape.TRIANGLE: 0.5 * 1.9 * 1.9 / 4,
    Shape.CROSS: (2 * 0.7 * 2 - 0.7**2) / 4,
}


@pytest.mark.parametrize("shape", Shape)
@pytest.mark.parametrize("size", [31, 32, 200])
def test_shape_has_its_colour_area_and_centre(shape: Shape, size: int) -> None:
    clip = plain(Figure(shape, Colour.RED, 0.3, 0.6, 0.2))
    with_figure, without = render([clip], size)[0].astype(np.float64)
    assert (without == np.round(255 * 0.1)).all()
    red = np.array(RGB[Colour.RED])
    cover = ((with_figure - without) @ red) / ((red - without[0, 0]) @ red)
    assert cover.max() == pytest.approx(1, abs=0.01)
    assert cover.sum() / size**2 == pytest.approx(
        AREA[shape] * 0.4**2, rel=0.12 if size < 99 else 0.02
    )
    row, column = (np.array((cover.sum(axis), np.arange(size) + 0.5)) for axis in (1, 0))
    assert (column[0] @ column[1]) / cover.sum() / size == pytest.approx(0.3, abs=0.01)
    if shape is not Shape.TRIANGLE:
        assert (row[0] @ row[1]) / cover.sum() / size == pytest.approx(0.6, abs=0.01)


def test_triangle_points_upwards() -> None:
    drawn = render([plain(Figure(Shape.TRIANGLE, Colour.WHITE, 0.5, 0.5, 0.4))], 100)[0, 0, :, :, 0]
    width = (drawn > 128).sum(axis=1)
    assert width[20] < width[50] < width[80]


def test_later_figures_are_in_front() -> None:
    behind = Figure(Shape.SQUARE, Colour.RED, 0.5, 0.5, 0.4)
    front = Figure(Shape.SQUARE, Colour.BLUE, 0.5, 0.5, 0.2)
    drawn = render([plain(behind, front)], 50)[0, 0]
    assert tuple(drawn[25, 25]) == RGB[Colour.BLUE]
    assert tuple(drawn[25, 10]) == RGB[Colour.RED]


def test_a_clip_is_drawn_the_same_alone_and_among_others() -> None:
    clips = [item.clip for item in make_items(Split.TEST, 2)]
    together = render(clips, 32)
    for clip, drawn in zip(clips, together, strict=True):
        assert (render([clip], 32)[0] == drawn).all()


def test_equal_frames_are_drawn_once() -> None:
    clips = [make_item(kind, 3, Split.TEST, 0).clip for kind in (Kind.COLOUR, Kind.DIRECTION)]
    frames, index = render_distinct([*clips, clips[0]], 32)
    # A clip that stands still has one frame, one that moves eight; equal clips are not compared.
    assert frames.shape == (10, 32, 32, 3)
    assert index.tolist() == [[0] * 8, list(range(1, 9)), [9] * 8]


def test_texture_is_grey_bounded_and_still() -> None:
    clip = Clip(frames=((), ()), background=0.2, texture=0.1, texture_seed=5)
    first, second = render([clip], 64)[0].astype(np.int64)
    assert (first == second).all()
    assert (first == first[..., :1]).all()
    assert first.min() >= 25
    assert first.max() <= 77
    assert len(np.unique(first)) > 20


@pytest.mark.parametrize(("name", "codec"), [("clip.mp4", "libx264"), ("clip.webm", "libvpx-vp9")])
def test_video_file_shows_each_step_in_turn(tmp_path: Path, name: str, codec: str) -> None:
    drawn = render([make_item(Kind.DIRECTION, 2, Split.TEST, 1).clip], 96)[0]
    write_video(tmp_path / name, drawn, repeat=3, codec=codec)
    with av.open(str(tmp_path / name)) as container:
        decoded = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
        assert container.streams.video[0].average_rate == 8
    assert len(decoded) == 24
    for number, frame in enumerate(decoded):
        error = np.abs(frame.astype(np.float64) - drawn[number // 3])
        assert error.mean() < 6  # compression, and chroma at half the size


def test_video_refuses_what_cannot_be_encoded(tmp_path: Path) -> None:
    odd = np.zeros((2, 31, 32, 3), dtype=np.uint8)
    with pytest.raises(UsageError, match="32 x 31"):
        write_video(tmp_path / "odd.mp4", odd)
    with pytest.raises(UsageError, match="nonsense"):
        write_video(tmp_path / "x.mp4", odd[:, :30], codec="nonsense")
    assert not list(tmp_path.iterdir())
