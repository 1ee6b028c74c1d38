"""Named points at which a process can be told to die as if by kill -9, for the tests of our promises.

A point does nothing unless `KGENTS_CRASH_AT` names it (`apply.before_commit`, or `apply.before_commit:3` for
the third time it is reached). The variable is read by settings and passed down as a `CrashPoints`.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


class CrashPoints:
    """Dies when the chosen point is reached the chosen time.

    Args:
        chosen: `<point>` or `<point>:<n>`; empty or None for never.
        die: What dying is; tests of this class replace it.
    """

    def __init__(self, chosen: str | None, die: Callable[[], None] = _die) -> None:
        point, _, count = (chosen or "").partition(":")
        self._point = point
        self._left = int(count) if count else 1
        self._die = die

    def reach(self, point: str) -> None:
        """Pass a point, or die there."""
        if point == self._point:
            self._left -= 1
            if self._left == 0:
                self._die()


# For what nobody asked to die.
NEVER = CrashPoints(None)
