"""Hands that work on what a broker brings, several at a time; what is not finished is given back."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import Generic, TypeVar

import structlog
from nats.aio.msg import Msg

from kgents_common import delivery
from kgents_common.cancelling import cancelled

T = TypeVar("T")

_log = structlog.get_logger()


class Hands(Generic[T]):
    """A bounded queue and the tasks that work it off.

    Args:
        name: Of the tasks, for a debugger, and of what is logged.
        count: How many work at once.
        waiting: How many things may wait for a free hand; more make `put` wait.
        work: What is done with each.
        messages: The messages a thing is made of, for giving it back.
        after_failure: When a thing comes again that `work` failed with: nothing may end a hand.
    """

    def __init__(
        self,
        name: str,
        *,
        count: int,
        waiting: int,
        work: Callable[[T], Awaitable[None]],
        messages: Callable[[T], list[Msg]],
        after_failure: timedelta,
    ) -> None:
        self._name = name
        self._count = count
        self._work = work
        self._messages = messages
        self._after_failure = after_failure
        self._queue: asyncio.Queue[T] = asyncio.Queue(waiting)
        self._tasks: list[asyncio.Task[None]] = []
        self._is_stopping = False

    async def start(self) -> None:
        """Begin to work on what is put in."""
        self._tasks = [
            asyncio.create_task(self._go_on(), name=f"{self._name}.{n}") for n in range(self._count)
        ]

    async def stop(self) -> None:
        """Take no more, and finish what was taken."""
        self._is_stopping = True
        await self._queue.join()
        await cancelled(*self._tasks)

    async def put(self, thing: T) -> None:
        """Hand one in; waits while all hands are full. After a stop it is given back at once."""
        if self._is_stopping:
            await delivery.nak(self._messages(thing), delay=timedelta())
            return
        await self._queue.put(thing)

    async def _go_on(self) -> None:
        while True:
            thing = await self._queue.get()
            try:
                await self._work(thing)
            except Exception:  # nothing may end this loop: what is not acknowledged comes again
                _log.exception("hands.failed", hands=self._name)
                await delivery.nak(self._messages(thing), delay=self._after_failure)
            finally:
                self._queue.task_done()
