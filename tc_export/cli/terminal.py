# SPDX-License-Identifier: Apache-2.0
"""How the command line prints: whatever others wrote is shown, and never obeyed.

File names, questions, answers and configurations come from elsewhere. A name like `[red]x.mp4`
keeps its brackets, and a code that would move the cursor or colour the screen is spelled out. So
every verb prints through this module.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterable, Iterator
from typing import Any

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.text import Text

# C0 and C1 but for newline and tab, the marks that change the direction of a line, and what is
# left of bytes that are no UTF-8, which no terminal takes.
_CONTROLS = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]"
)


def spell_controls(text: object) -> str:
    """The text with every control character as Python writes it: an escape code begins `\\x1b`."""
    return _CONTROLS.sub(lambda found: repr(found.group())[1:-1], str(text))


class Terminal(Console):
    """A console on which no string is markup, an emoji or a control code.

    What is to have colour is given as `rich.text.Text`, or with `style`.
    """

    def __init__(self, *, stderr: bool = False, markup: bool = False) -> None:
        super().__init__(stderr=stderr, markup=markup, emoji=False, highlight=False)

    def render_str(self, text: str, **options: Any) -> Text:
        """As rich does, with control characters spelled before the text is measured."""
        return super().render_str(spell_controls(text), **options)

    def render(
        self, renderable: RenderableType, options: ConsoleOptions | None = None
    ) -> Iterable[Segment]:
        """As rich does; its own control segments (of progress bars) pass."""
        return self._spelled(super().render(renderable, options))

    @staticmethod
    def _spelled(segments: Iterable[Segment]) -> Iterator[Segment]:
        for segment in segments:
            if segment.control:
                yield segment
            else:
                yield Segment(spell_controls(segment.text), segment.style)


def say(line: str) -> None:
    """Print a line of a verb's result."""
    print(spell_controls(line).replace("\n", "\\n"))


def say_piece(text: str) -> None:
    """Print a piece of an answer at once, without ending the line."""
    sys.stdout.write(spell_controls(text))
    sys.stdout.flush()


def show(renderable: RenderableType) -> None:
    """Print a verb's result for people: a table, or several."""
    Terminal().print(renderable)


def print_json(document: Any) -> None:
    """Print a verb's result for programs: the one document on its standard output."""
    print(json.dumps(document, indent=2))
