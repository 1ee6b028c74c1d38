"""Waiting for the thing itself: how long that takes is the machine's affair, and no test's to guess.

The limit only ends a run that hangs. Where a deadline is the promise, the test states it in its own words.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable

# A machine ten times slower than a quiet one of two cores stays well below it.
HANGS_AFTER_SECONDS = 300.0
LOOK_SECONDS = 0.05


def until(condition: Callable[[], object], *, state: Callable[[], object] = lambda: "") -> None:
    """Until the condition holds.

    Args:
        state: What to tell where it never does.

    Raises:
        AssertionError: It hangs.
    """
    deadline = time.monotonic() + HANGS_AFTER_SECONDS
    while not condition():
        if time.monotonic() > deadline:
            raise AssertionError(f"it never became so: {state()}")
        time.sleep(LOOK_SECONDS)


async def reached(
    condition: Callable[[], object | Awaitable[object]], *, state: Callable[[], object] = lambda: ""
) -> None:
    """As `until`, while the event loop goes on; the condition may be a coroutine function."""
    deadline = time.monotonic() + HANGS_AFTER_SECONDS
    while True:
        found = condition()
        if isinstance(found, Awaitable):
            found = await found
        if found:
            return
        if time.monotonic() > deadline:
            raise AssertionError(f"it never became so: {state()}")
        await asyncio.sleep(LOOK_SECONDS)
