"""Requests of a pull consumer's messages over one inbox; it neither makes a consumer nor acknowledges.

A message is what JetStream delivered for this consumer (see `delivered`), whatever its headers are named; a
status is what comes to the request's own reply subject without such a delivery (ADR-13 of the NATS
architecture). Everything else that reaches the inbox is another's, and dropped.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections import deque
from datetime import timedelta
from enum import StrEnum

import structlog
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription
from nats.errors import ConnectionReconnectingError
from nats.errors import Error as NatsError

from kgents_common.connection.client import Client
from kgents_common.pull.delivered import Delivered, delivered

API = "$JS.API"
# How much longer than a request lasts its end may take to come. A server that syncs a flood of messages
# answers nobody for seconds; each request that is given up meanwhile, it answers later, too.
PATIENCE_SECONDS = 5.0
# The same beyond two heartbeats.
HEARTBEAT_PATIENCE_SECONDS = 1.0
# How soon a connection that was lost meanwhile is noticed.
LOOK_SECONDS = 1.0
HEARTBEAT = "100"
_NANO = 1_000_000_000

_log = structlog.get_logger()


class End(StrEnum):
    """How a request ended."""

    DONE = "done"  # all it asked for came
    EMPTY = "empty"  # no more messages for now (404, 408)
    FULL = "full"  # the next message would have been more than the bytes it asked for (409)
    LOST = "lost"  # consumer, leader or connection is gone, or nothing was heard in time


class Pull:
    """Pulls from one consumer; not for concurrent use.

    Attributes:
        end: How the last request ended; None while it lasts, or before the first.
        reason: What the server said with it, for a log.
    """

    def __init__(self, client: Client, stream: str, consumer: str, *, api: str = API) -> None:
        self._client = client
        self._stream = stream
        self._consumer = consumer
        self._next = f"{api}.CONSUMER.MSG.NEXT.{stream}.{consumer}"
        self._inbox = client.new_inbox()
        self._subscription: Subscription | None = None
        self._reconnects = 0
        self._arrived: deque[tuple[Msg, Delivered]] = deque()
        self._arrival = asyncio.Event()
        self._requests = 0
        self._owed = 0
        self._heard_at = 0.0
        self._silence = 0.0
        self._now = asyncio.get_running_loop().time
        self.end: End | None = None
        self.reason = ""

    @property
    def is_open(self) -> bool:
        """Whether a request lasts: more may come without asking."""
        return self._requests > 0 and self.end is None

    async def start(self) -> None:
        """Subscribe the inbox.

        Raises:
            nats.errors.Error: The connection is closed.
        """
        self._subscription = await self._client.subscribe(
            f"{self._inbox}.*", cb=self._take, pending_msgs_limit=-1, pending_bytes_limit=-1
        )

    async def stop(self) -> None:
        """Give the inbox back; the server forgets what was asked through it."""
        self._finish(End.LOST, "stopped")
        subscription, self._subscription = self._subscription, None
        if subscription is not None:
            with contextlib.suppress(NatsError, OSError):
                await subscription.unsubscribe()

    async def ask(
        self,
        batch: int,
        *,
        expires: timedelta | None,
        max_bytes: int | None = None,
        heartbeat: timedelta | None = None,
    ) -> None:
        """Ask for up to `batch` messages; what came before stays to be taken.

        Args:
            expires: How long the request lasts; None for what is there now.
            max_bytes: Of all messages together, as the server counts them.
            heartbeat: How often the server says that it lives while there is nothing.

        Raises:
            nats.errors.Error, OSError: It could not be sent; it is never kept until there is a server again.
        """
        if not self._client.is_reading:
            self._finish(End.LOST, "not connected")
            raise ConnectionReconnectingError
        wanted: dict[str, int | bool] = {"batch": batch}
        if expires is None:
            wanted["no_wait"] = True
        else:
            wanted["expires"] = _nanoseconds(expires)
        if max_bytes is not None:
            wanted["max_bytes"] = max_bytes
        if heartbeat is not None:
            wanted["idle_heartbeat"] = _nanoseconds(heartbeat)
        self._requests += 1
        self._owed = batch
        self._heard_at = self._now()
        lasting = expires.total_seconds() if expires is not None else 0.0
        self._silence = (
            2 * heartbeat.total_seconds() + HEARTBEAT_PATIENCE_SECONDS
            if heartbeat is not None
            else lasting + PATIENCE_SECONDS
        )
        self._reconnects = self._client.stats["reconnects"]
        self.end, self.reason = None, ""
        await self._client.publish(
            self._next, json.dumps(wanted).encode(), reply=f"{self._inbox}.{self._requests}"
        )

    async def wait(self) -> None:
        """Until a message is here to be taken or the request has ended."""
        while not self._arrived and self.is_open:
            self._arrival.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(LOOK_SECONDS):
                    await self._arrival.wait()
            if not self._arrived and self.is_open:
                self._check_alive()

    async def whole(self) -> None:
        """Until the request has ended."""
        while self.is_open:
            self._arrival.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(LOOK_SECONDS):
                    await self._arrival.wait()
            if self.is_open:
                self._check_alive()

    def take(self, limit: int | None = None) -> list[tuple[Msg, Delivered]]:
        """What has arrived and was not taken yet, in order, at most `limit`."""
        count = len(self._arrived) if limit is None else min(limit, len(self._arrived))
        return [self._arrived.popleft() for _ in range(count)]

    def _check_alive(self) -> None:
        if not self._client.is_reading or self._client.stats["reconnects"] != self._reconnects:
            self._finish(End.LOST, "reconnected")
        elif self._now() - self._heard_at > self._silence:
            self._finish(End.LOST, "silence")

    def _finish(self, end: End, reason: str = "") -> None:
        if self.end is None:
            self.end, self.reason = end, reason
        self._arrival.set()

    async def _take(self, message: Msg) -> None:
        found = delivered(message)
        if found is not None:
            if (found.stream, found.consumer) != (self._stream, self._consumer):
                _log.warning("pull.not_ours", stream=self._stream, consumer=self._consumer)
                return
            self._heard_at = self._now()
            self._arrived.append((message, found))
            self._owed -= 1
            if self._owed <= 0:
                self._finish(End.DONE)
            self._arrival.set()
        elif not message.reply and message.subject == f"{self._inbox}.{self._requests}":
            self._heard_at = self._now()
            self._note_status(message)

    def _note_status(self, message: Msg) -> None:
        headers = message.headers or {}
        status, description = headers.get("Status", ""), headers.get("Description", "")
        if status == HEARTBEAT:
            return
        if status in ("404", "408"):
            self._finish(End.EMPTY)
        elif status == "409" and "MaxBytes" in description:
            self._finish(End.FULL)
        else:
            self._finish(End.LOST, f"{status} {description}".strip())


def _nanoseconds(duration: timedelta) -> int:
    return int(duration.total_seconds() * _NANO)
