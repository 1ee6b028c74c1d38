"""A publisher with a spool behind it: what the stream cannot take is kept on disk, and published later in
order under the same identity.

While anything waits in the spool, what comes goes behind it, so that a producer's events stay in the order
it sent them. While the stream takes what waits, half as much may come as was moved, so that the spool empties
under any load; the last batch is moved while what comes waits for it. Then the way to the stream is free.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from typing import Protocol

import structlog

from kgents_common import subjects
from kgents_common.cancelling import cancelled
from kgents_common.clock import Clock
from kgents_common.connection import Connection
from kgents_common.errors import KgentsError, PermanentError, TransientError
from kgents_common.publisher.acknowledgement import Ack
from kgents_common.publisher.pipeline import Message, Publisher
from kgents_common.publisher.spool import Spool, Spooled
from kgents_common.publisher.spool_file import Kept, Waiting
from kgents_common.publisher.stored import CLOCK_SKEW, SURELY_REMEMBERED, stored_ids
from kgents_common.retry import Patience

# Moved in one go: so many messages, and no more once they are so large.
BATCH = 200
BATCH_BYTES = 4 * 1024 * 1024
# Between two looks at whether the stream can take what waits.
LOOK_SECONDS = 0.2
LONGEST_WAIT = timedelta(seconds=2)

Outcome = Ack | Spooled | KgentsError

_NOT_TRIED = TransientError("spool: not tried")

_log = structlog.get_logger()


class PublishesAll(Protocol):
    """What a `Publisher` and a `SpoolingPublisher` have in common."""

    async def publish_all(self, messages: Sequence[Message]) -> Sequence[Outcome]:
        """For each message, in order, where it is durable or why it is not."""


class SpoolingPublisher:
    """Publishes, or keeps; messages are AGENTESE's.

    Args:
        publisher: The way to the stream; started and stopped by whoever made it, around this one.
        spool: Started and stopped here.
        looks_up: Whether what was sent longer ago than JetStream remembers is looked for in the stream before
            it is sent again; that takes the right to make consumers on all of AGENTESE. Without, it may be
            stored twice, and the ledger counts it once.
        on_replayed: Told how many messages of the spool the stream has taken.
    """

    def __init__(
        self,
        publisher: Publisher,
        connection: Connection,
        spool: Spool,
        clock: Clock,
        *,
        looks_up: bool = True,
        on_replayed: Callable[[int], None] = lambda _: None,
    ) -> None:
        self._publisher = publisher
        self._connection = connection
        self.spool = spool
        self._clock = clock
        self._looks_up = looks_up
        self._on_replayed = on_replayed
        self._patience = Patience("spool.replay", longest=LONGEST_WAIT)
        self._spooling = asyncio.Event()
        # How many messages may still come before the next batch is moved; None for any number.
        self._room: int | None = None
        self._has_room = asyncio.Event()
        self._has_room.set()
        self._replay: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Open the spool; what an earlier process left there is published first.

        Raises:
            ConfigurationError: The spool cannot be used.
        """
        await self.spool.start()
        if self.spool.depth:
            self._divert("left")
        self._replay = asyncio.create_task(self._replay_for_ever(), name="spool.replay")

    async def stop(self) -> None:
        """Close the spool; what waits there waits for the next process."""
        await cancelled(self._replay)
        self._make_room(None)
        await self.spool.stop()

    async def publish_all(self, messages: Sequence[Message]) -> list[Outcome]:
        """For each message, in order: in the stream, in the spool, or the error that kept it from both."""
        if await self._is_live(len(messages)):
            asked_at = self._clock.now()
            outcomes: list[Outcome] = [*await self._publisher.publish_all(messages)]
            missed = [i for i, outcome in enumerate(outcomes) if isinstance(outcome, TransientError)]
            if not missed:
                return outcomes
            self._divert(str(outcomes[missed[0]]))
            kept = [Kept(messages[i], _sent_at(outcomes[i], asked_at)) for i in missed]
        else:
            outcomes = [_NOT_TRIED] * len(messages)
            missed = list(range(len(messages)))
            kept = [Kept(message) for message in messages]
        try:
            words: Sequence[Outcome] = await self.spool.append(kept)
        except TransientError as error:
            words = [error] * len(missed)
        for i, word in zip(missed, words, strict=True):
            outcomes[i] = word
        return outcomes

    async def _is_live(self, count: int) -> bool:
        """Whether so many messages may go to the stream at once; else there is room for them in the spool."""
        while self._spooling.is_set():
            if self._room is None:
                return False
            if self._room > 0:
                self._make_room(self._room - count)
                return False
            await self._has_room.wait()
        return True

    def _make_room(self, room: int | None) -> None:
        self._room = room
        if room is None or room > 0:
            self._has_room.set()
        else:
            self._has_room.clear()

    def _divert(self, reason: str) -> None:
        if not self._spooling.is_set():
            self._spooling.set()
            _log.warning("spool.began", reason=reason, waiting=self.spool.depth)

    async def _replay_for_ever(self) -> None:
        while True:
            await self._spooling.wait()
            try:
                is_taken = await self._move()
                if is_taken and self.spool.depth == 0:
                    await self._end()
                    continue
            except Exception as error:  # whatever it was, what waits must not wait for ever
                if not isinstance(error, KgentsError):
                    _log.exception("spool.failed", waiting=self.spool.depth)
                self._make_room(None)
                await self._patience.wait(error)
                continue
            self._patience.progressed()
            if not is_taken:  # NATS is away, or took only some: its circuit knows for how long
                self._make_room(None)
                await asyncio.sleep(LOOK_SECONDS)
            elif self.spool.depth <= BATCH:
                self._make_room(0)
            else:
                self._make_room(min(BATCH, (self._room or 0) + BATCH // 2))

    async def _end(self) -> None:
        self._spooling.clear()
        self._make_room(None)
        _log.info("spool.ended", refused=self.spool.refused)
        await self.spool.shrink()

    async def _move(self) -> bool:
        """Move the oldest messages to the stream; whether it took all of them.

        Raises:
            TransientError: The disk or JetStream does not answer.
        """
        if not self._connection.is_connected or self._publisher.breaker.retry_after:
            return False
        waiting = await self.spool.first(BATCH, BATCH_BYTES)
        there = await self._already_stored(waiting)
        missing = [kept for kept in waiting if kept.message.message_id not in there]
        await self.spool.note_sent(missing, self._clock.now())
        outcomes = await self._publisher.publish_all([kept.message for kept in missing])
        taken = [kept for kept, outcome in zip(missing, outcomes, strict=True) if isinstance(outcome, Ack)]
        taken += [kept for kept in waiting if kept.message.message_id in there]
        await self.spool.remove(taken)
        self._on_replayed(len(taken))
        for kept, outcome in zip(missing, outcomes, strict=True):
            if isinstance(outcome, PermanentError):
                _log.error("spool.refused", message_id=kept.message.message_id, error=str(outcome))
                await self.spool.refuse(kept, str(outcome))
        return not any(isinstance(outcome, TransientError) for outcome in outcomes)

    async def _already_stored(self, waiting: Sequence[Waiting]) -> dict[str, int]:
        """Those the stream holds of the messages that were sent longer ago than it is sure to remember."""
        surely = self._clock.now() - SURELY_REMEMBERED
        sent_at = {
            kept.message.message_id: kept.sent_at
            for kept in waiting
            if kept.sent_at is not None and kept.sent_at < surely
        }
        if not sent_at or not self._looks_up:
            return {}
        return await stored_ids(
            self._connection,
            stream=subjects.AGENTESE,
            subject="agentese.>",
            since=min(sent_at.values()) - CLOCK_SKEW,
            wanted=sent_at,
        )


def _sent_at(outcome: Outcome, asked_at: datetime) -> datetime | None:
    """When a message was sent whose fate is not known; None where it is: not stored."""
    return asked_at if getattr(outcome, "may_be_stored", False) else None
