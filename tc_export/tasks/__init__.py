# SPDX-License-Identifier: Apache-2.0
"""A generated video-QA suite: short clips drawn by code, with questions that need time or do not.

It serves to train the small demonstration model, and to judge every engine by its answers. It
knows nothing of models: a task is a clip, a question and the one right answer.
"""

from tc_export.tasks.clips import Clip, Colour, Figure, Shape
from tc_export.tasks.kinds import Kind
from tc_export.tasks.render import render, render_distinct
from tc_export.tasks.suite import (
    GRADES,
    Item,
    Split,
    accuracy_by_kind,
    best_guess_by_kind,
    is_right,
    make_item,
    make_items,
    possible_answers,
)
from tc_export.tasks.video import write_video

__all__ = [
    "GRADES",
    "Clip",
    "Colour",
    "Figure",
    "Item",
    "Kind",
    "Shape",
    "Split",
    "accuracy_by_kind",
    "best_guess_by_kind",
    "is_right",
    "make_item",
    "make_items",
    "possible_answers",
    "render",
    "render_distinct",
    "write_video",
]
