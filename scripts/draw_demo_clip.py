# SPDX-License-Identifier: Apache-2.0
"""Draw the clip of `make demo`: one of the test set, which the demonstration model never saw.

    python scripts/draw_demo_clip.py engines/out/demo.mp4 [--picture docs/demo.png]

Writes the video, and the question beside it as `.txt`; prints the right answer.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from matplotlib import pyplot

from tc_export.tasks import Item, Kind, Split, make_item, render, write_video

ITEM = make_item(Kind.BEFORE_AFTER, 2, Split.TEST, seed=3)
VIDEO_SIZE = 256
"""Pixels along a side of the video; the model's preprocessing makes them its own."""


def main(
    video: Annotated[Path, typer.Argument(help="Video file to write.")],
    picture: Annotated[
        Path | None, typer.Option(help="Also draw the frames, the question and the answer.")
    ] = None,
) -> None:
    """Draw the clip, and say what is asked about it."""
    video.parent.mkdir(parents=True, exist_ok=True)
    (frames,) = render([ITEM.clip], VIDEO_SIZE)
    write_video(video, frames)
    video.with_suffix(".txt").write_text(ITEM.question)
    print(f"{video}: {len(frames)} scenes; asked: {ITEM.question} Right answer: {ITEM.answer}")
    if picture is not None:
        draw(ITEM, frames, picture)


def draw(item: Item, frames: object, picture: Path) -> None:
    """The frames in a row, with the question and the answer."""
    figure, axes = pyplot.subplots(1, len(item.clip.frames), figsize=(12, 2.1))
    for number, (axis, frame) in enumerate(zip(axes, frames, strict=True), start=1):
        axis.imshow(frame)
        axis.set_title(f"frame {number}", fontsize=8)
        axis.axis("off")
    figure.suptitle(f"{item.question}   {item.answer}", y=0.08)
    figure.savefig(picture, dpi=90, bbox_inches="tight")


if __name__ == "__main__":
    typer.run(main)
