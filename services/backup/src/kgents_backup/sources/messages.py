"""A stream's messages in order from a sequence on, whole, through an ephemeral pull consumer of our own.

No durable is needed and nothing is acknowledged: where to go on is the reader's to know. It works on every
server from 2.10 (batched direct get needs 2.11) and on mirrors. A lost message or a lost consumer shows in
the consumer's own count, and reading starts anew right after the last good one.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any

import structlog
from nats.aio.msg import Msg
from nats.errors import Error as NatsError

from kgents_backup.model.faults import ProtocolError
from kgents_backup.model.segment import Message, subject_of
from kgents_backup.sources.stream import NOT_FOUND
from kgents_common.connection import Client
from kgents_common.connection import Message as Received
from kgents_common.errors import TransientError
from kgents_common.pull import Delivered, Forward
from kgents_common.streams import JetStreamApiError, request

BATCH_MESSAGES = 2000
BATCH_BYTES = 8 * 1024 * 1024

_log = structlog.get_logger()


class MessageReader:
    """Reads one stream forward, a batch at a time.

    Args:
        start: The first sequence wanted; reading begins with the first stored one from there.
        api: The API's prefix; another for a stream behind a domain, e.g. `$JS.dr.API`.
    """

    def __init__(self, client: Client, stream: str, *, start: int = 1, api: str = "$JS.API") -> None:
        self._client = client
        self._stream = stream
        self._next = max(1, start)
        self._api = api
        self._consumer: Forward | None = None
        self._pending: int | None = None

    @property
    def next_sequence(self) -> int:
        """Where reading goes on."""
        return self._next

    @property
    def is_open(self) -> bool:
        """Whether its consumer stands, as far as known; a lost one is opened anew by the next batch.

        Whoever must not read on into another stream of the same name looks before that.
        """
        return self._consumer is not None

    @property
    def pending(self) -> int | None:
        """Messages that were still to come when the last one was sent; None before the first."""
        return self._pending

    async def open(self) -> None:
        """Make the consumer, where there is none; errors as `batch`."""
        if self._consumer is None:
            await self._open()

    async def batch(
        self, *, limit: int = BATCH_MESSAGES, limit_bytes: int = BATCH_BYTES, wait_seconds: float | None = 1.0
    ) -> list[Message]:
        """The next messages; fewer than `limit` or none where there are no more within `wait_seconds`.

        Args:
            wait_seconds: None for what is there now.

        Raises:
            JetStreamApiError: The stream is gone.
            TransientError: The server does not answer.
        """
        await self.open()
        assert self._consumer is not None  # noqa: S101 it is open
        found: list[Message] = []
        try:
            arrived = await self._consumer.batch(
                limit=limit,
                wait=None if wait_seconds is None else timedelta(seconds=wait_seconds),
                max_bytes=limit_bytes,
            )
        except (NatsError, OSError, TimeoutError):
            await self.close()
            return found
        for message, place in arrived:
            if place.sequence < self._next:
                _log.warning("messages.out_of_order", stream=self._stream, at=self._next)
                await self.close()
                return found
            found.append(self._take(message, place))
        if self._consumer.is_lost:
            await self.close()  # deleted, or its leader is away: the next batch opens another
        return found

    async def read(self, until: int) -> AsyncIterator[Message]:
        """Every stored message up to `until`, which the stream must have passed.

        Raises:
            JetStreamApiError, TransientError: As `batch`.
            ProtocolError: No progress for half a minute.
        """
        loop = asyncio.get_running_loop()
        seen_at = loop.time()
        wait_seconds: float | None = None  # everything wanted is stored: waiting is for a server that is slow
        while self._next <= until:
            messages = await self.batch(wait_seconds=wait_seconds)
            wait_seconds = None if messages else 1.0
            for message in messages:
                if message.sequence > until:
                    return
                yield message
            if messages:
                seen_at = loop.time()
                continue
            state = (await self._info())["state"]
            if state["last_seq"] < self._next or (state["messages"] == 0):
                return
            if self._pending == 0 and self._consumer is not None:
                if await self.is_only_gaps(until):
                    return
                await self.close()  # it stands where not everything has arrived yet
            if loop.time() - seen_at > 30:
                raise ProtocolError(f"{self._stream} gives nothing after {self._next - 1}")

    async def is_only_gaps(self, until: int) -> bool:
        """Whether nothing is stored from here to `until`: the stream's leader is asked.

        A consumer says that nothing is pending of what the server it stands on has: of a replicated stream, a
        follower may still lack what its leader took.

        Raises:
            JetStreamApiError, TransientError: As `batch`.
        """
        wanted = {"seq": self._next, "next_by_subj": ">"}
        try:
            found = await request(self._client, f"STREAM.MSG.GET.{self._stream}", wanted, api=self._api)
        except JetStreamApiError as error:
            if error.code != NOT_FOUND:
                raise
            return True
        return int(found["message"]["seq"]) > until

    async def close(self) -> None:
        """Let go of the consumer; the server would, after a minute."""
        consumer, self._consumer = self._consumer, None
        if consumer is not None:
            await consumer.close()

    def _take(self, message: Msg, place: Delivered) -> Message:
        assert isinstance(message, Received)  # noqa: S101 our client's
        self._next = place.sequence + 1
        self._pending = place.pending
        return Message(
            place.sequence, place.time, subject_of(message.raw_subject), message.raw_headers, message.data
        )

    async def _open(self) -> None:
        try:
            self._consumer = await Forward.opened(
                self._client,
                self._stream,
                start=self._next,
                description="backup reads forward",
                api=self._api,
            )
        except (NatsError, OSError) as error:
            raise TransientError(f"nats: {type(error).__name__}") from error
        self._pending = self._consumer.pending

    async def _info(self) -> dict[str, Any]:
        return await request(self._client, f"STREAM.INFO.{self._stream}", api=self._api)
