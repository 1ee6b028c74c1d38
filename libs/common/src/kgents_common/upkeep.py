"""Rounds of slow work run again and again beside a service's main loop; what a round does is its own."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import timedelta

import structlog

from kgents_common.cancelling import cancelled
from kgents_common.errors import KgentsError
from kgents_common.retry import Patience

LEAST_WAIT = timedelta(seconds=0.2)
LONGEST_WAIT = timedelta(seconds=30)

_log = structlog.get_logger()

Work = Callable[[], Awaitable[bool]]


@dataclass(frozen=True, slots=True)
class Round:
    """One kind of slow work.

    Attributes:
        work: Does a bounded part of it; True where there is more to do at once.
        every_seconds: How long to rest where there is not.
    """

    name: str
    work: Work
    every_seconds: float = 1.0


class Upkeep:
    """Runs rounds, each in a loop of its own, until it is stopped; no error ends a loop."""

    def __init__(self, *rounds: Round) -> None:
        self._rounds = rounds
        self._tasks: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        """Begin."""
        self._tasks = [asyncio.create_task(_repeat(r), name=f"upkeep.{r.name}") for r in self._rounds]

    async def stop(self) -> None:
        """End."""
        await cancelled(*self._tasks)


async def _repeat(one: Round) -> None:
    rest = max(timedelta(seconds=one.every_seconds), LEAST_WAIT)
    patience = Patience(f"upkeep.{one.name}", first=rest, longest=max(rest, LONGEST_WAIT))
    while True:
        try:
            has_more = await one.work()
        except KgentsError as error:
            await patience.wait(error)
        except Exception as error:  # the loop outlives what it does not know
            _log.exception("upkeep.failed", round=one.name)
            await patience.wait(error)
        else:
            patience.progressed()
            await asyncio.sleep(0 if has_more else one.every_seconds)
