"""The slow timers: backfilling new meters, mirroring dead letters to the bus, watching for gaps."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Sequence

import structlog

from kgents_common import subjects
from kgents_common.delivery import header_text
from kgents_common.errors import KgentsError
from kgents_common.publisher import Publisher
from kgents_metering.metrics import Metrics
from kgents_metering.sinks.ledger.dead_letters import DeadLetter, DeadLetters

_log = structlog.get_logger()

Round = Callable[[], Awaitable[bool]]


class Upkeep:
    """Runs rounds again and again; a round that says there is more to do is run again at once."""

    def __init__(self, rounds: Sequence[tuple[str, Round]], *, every_seconds: float) -> None:
        self._rounds = rounds
        self._every = every_seconds
        self._tasks: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        """Begin, each round in a loop of its own."""
        self._tasks = [asyncio.create_task(self._repeat(n, r), name=f"upkeep.{n}") for n, r in self._rounds]

    async def stop(self) -> None:
        """End."""
        for task in self._tasks:
            task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _repeat(self, name: str, one_round: Round) -> None:
        while True:
            has_more = False
            try:
                has_more = await one_round()
            except KgentsError as error:
                _log.warning("upkeep.postponed", round=name, error=str(error))
            except Exception:  # the loop outlives what it does not know
                _log.exception("upkeep.failed", round=name)
            await asyncio.sleep(0 if has_more else self._every)


def mirror_round(letters: DeadLetters, publisher: Publisher, metrics: Metrics) -> Round:
    """Publish new dead letters to `events.deadletter.metering.<code>`, then note that they are there."""

    async def mirror() -> bool:
        metrics.dead_letters.set(await letters.count_open())
        batch = await letters.to_mirror()
        for letter in batch:
            await publisher.publish(
                subjects.dead_letter("metering", letter.code),
                letter.body,
                message_id=f"dl:metering:{letter.epoch.timestamp()}:{letter.seq}",
                headers=_headers(letter),
            )
        if batch:
            await letters.mirrored([letter.id for letter in batch])
        return bool(batch)

    return mirror


def _headers(letter: DeadLetter) -> dict[str, str]:
    kept = {k: v for k, v in letter.header_map().items() if not k.lower().startswith("nats-")}
    return {
        **kept,
        "Kgents-Dead-Letter-Id": str(letter.id),
        "Kgents-Original-Subject": letter.subject,
        "Kgents-Original-Sequence": str(letter.seq),
        "Kgents-Reason": letter.code,
        "Kgents-Detail": header_text(letter.detail),
    }
