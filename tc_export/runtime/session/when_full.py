# SPDX-License-Identifier: Apache-2.0
"""Which frames stay when one more comes than a session holds.

Half of them go at once: those that stay are read again, so that making room seldom is cheap. A
frame is then read about twice in all; were a quarter let go of, it would be four times.
"""

from __future__ import annotations

from typing import Literal, get_args

from tc_export.errors import UsageError

WhenFull = Literal["refuse", "drop-oldest", "stride"]
"""`refuse` takes no more frames; `drop-oldest` lets the older half go; `stride` every other one,
so that the first stays and the far past is seen ever more coarsely."""


def check_when_full(when_full: str, capacity: int) -> None:
    """See that there is such a choice, and that it makes room.

    Raises:
        UsageError: there is not, or it does not.
    """
    if when_full not in get_args(WhenFull):
        raise UsageError(
            f"when_full is {when_full!r}", hint=f"choose one of {', '.join(get_args(WhenFull))}"
        )
    if when_full == "stride" and capacity < 2:
        raise UsageError(
            "of one frame there is no other to let go of",
            hint="use drop-oldest, or build with a larger --max-frames",
        )


def frames_that_stay(when_full: WhenFull, frames: int) -> range | None:
    """Which of so many frames, from 0 on, stay when room is made; None where none is made."""
    match when_full:
        case "refuse":
            return None
        case "drop-oldest":
            return range((frames + 1) // 2, frames)
        case "stride":
            return range(0, frames, 2)
