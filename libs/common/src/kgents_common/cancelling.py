"""Ending a task for sure: Python 3.11's `asyncio.wait_for` may swallow a cancellation (CPython 86296)."""

from __future__ import annotations

import asyncio
from typing import Any

AGAIN_SECONDS = 0.5


async def cancelled(*tasks: asyncio.Task[Any] | None) -> None:
    """Cancel tasks and wait for their end, again where one went on as if nothing had been said.

    What they raise is not raised here.
    """
    left = {task for task in tasks if task is not None and not task.done()}
    while left:
        for task in left:
            task.cancel()
        _, left = await asyncio.wait(left, timeout=AGAIN_SECONDS)
    for ended in tasks:
        if ended is not None and not ended.cancelled():
            ended.exception()  # seen, so that nobody complains that it was not
