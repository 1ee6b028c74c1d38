"""The loop that puts facts on the bus: woken by commits, and by a timer for what was left."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Protocol

import structlog

from kgents_billing.metrics import Metrics
from kgents_billing.sinks.store import Outbox, Owed
from kgents_common.cancelling import cancelled
from kgents_common.errors import KgentsError, TransientError
from kgents_common.retry import Patience

IDLE_SECONDS = 1.0

_log = structlog.get_logger()


class PublishesFacts(Protocol):
    """The bus, as this loop needs it."""

    async def publish_facts(self, owed: list[Owed]) -> list[int]:
        """Publish facts; the numbers of those that are stored."""


class Teller:
    """Publishes owed facts until it is stopped; several processes may."""

    def __init__(self, outbox: Outbox, bus: PublishesFacts, metrics: Metrics) -> None:
        self._outbox = outbox
        self._bus = bus
        self._metrics = metrics
        self._patience = Patience("billing.teller")
        self._wake = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def wake(self) -> None:
        """There is a new fact."""
        self._wake.set()

    async def start(self) -> None:
        """Begin."""
        self._task = asyncio.create_task(self._run(), name="billing.teller")

    async def stop(self) -> None:
        """End; what is owed stays owed."""
        await cancelled(self._task)

    async def _run(self) -> None:
        while True:
            self._wake.clear()
            try:
                is_idle = await self._round()
            except KgentsError as error:
                await self._patience.wait(error)
                continue
            except Exception as error:  # the loop outlives what it does not know
                _log.exception("teller.failed")
                await self._patience.wait(error)
                continue
            self._patience.progressed()
            wait = IDLE_SECONDS if is_idle else 0.0
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(wait):
                    await self._wake.wait()

    async def _round(self) -> bool:
        """Publish once; whether there is nothing more to do now."""

        async def publish(owed: object) -> list[int]:
            assert isinstance(owed, list)  # noqa: S101 the outbox gives a list
            stored = await self._bus.publish_facts(owed)
            for fact in owed:
                self._metrics.made_to_published.observe(fact.age_seconds)
            return stored

        taken, stored = await self._outbox.drain(publish)
        if stored < taken:
            raise TransientError(f"the bus did not store {taken - stored} facts")
        return taken == 0
