"""The newest events, facts and dead letters as NATS brings them; nothing is acknowledged."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import AsyncIterator
from typing import Any

import msgspec
from nats.aio.msg import Msg
from nats.errors import Error as NatsError

from kgents_common import subjects
from kgents_common.connection import Client

KEPT = 60
LISTENER_BUFFER = 500
MAX_SHOWN_CHARACTERS = 600
SUBJECTS = {"event": "agentese.>", "fact": "events.billing.>", "dead": "events.deadletter.>"}


class Feed:
    """Follows three subjects with plain subscriptions."""

    def __init__(self) -> None:
        self._kept: dict[str, deque[dict[str, Any]]] = {kind: deque(maxlen=KEPT) for kind in SUBJECTS}
        self._listeners: set[asyncio.Queue[dict[str, Any]]] = set()
        self._client: Client | None = None
        self.seen = 0

    async def start(self, url: str) -> None:
        """Begin to follow; what is published from now on is seen."""
        # Whatever anybody published, a subject that is no text included, ends nothing here.
        self._client = Client()
        await self._client.connect(
            url, max_reconnect_attempts=-1, reconnect_time_wait=1, error_cb=_is_told_elsewhere
        )
        for kind, subject in SUBJECTS.items():
            await self._client.subscribe(subject, cb=self._hearing(kind))
        await self._client.flush()

    async def stop(self) -> None:
        """Stop following."""
        if self._client is not None:
            with contextlib.suppress(NatsError, OSError):
                await self._client.close()

    async def publish_garbage(self, tenant: str) -> None:
        """Something that nobody can read, straight into the stream: it becomes a dead letter."""
        assert self._client is not None
        await self._client.jetstream().publish(subjects.agentese(tenant, "garbage"), b"\x00 not an event")

    async def listen(self) -> AsyncIterator[dict[str, Any]]:
        """What is kept, oldest first, then what comes; one who does not listen in time misses some."""
        queue: asyncio.Queue[dict[str, Any]] = asyncio.Queue(LISTENER_BUFFER)
        earlier = [item for kept in self._kept.values() for item in kept]
        self._listeners.add(queue)
        try:
            for item in earlier:
                yield item
            while True:
                yield await queue.get()
        finally:
            self._listeners.discard(queue)

    def _hearing(self, kind: str) -> Any:
        async def hear(message: Msg) -> None:
            self.seen += 1
            item = {
                "kind": kind,
                "subject": message.subject,
                "at": time.time(),
                "text": message.data[:MAX_SHOWN_CHARACTERS].decode(errors="replace"),
                **_described(kind, message),
            }
            self._kept[kind].append(item)
            for queue in self._listeners:
                with contextlib.suppress(asyncio.QueueFull):
                    queue.put_nowait(item)

        return hear


async def _is_told_elsewhere(_: Exception) -> None:
    """The page shows that NATS is away; the library would print a traceback at each try."""


def _described(kind: str, message: Msg) -> dict[str, str]:
    """Tenant and what it is, from the subject."""
    parts = message.subject.split(".")
    if kind == "event":
        return {"tenant": parts[1], "what": ".".join(parts[2:]), "id": _id_of(message.data)}
    if kind == "fact":
        return {"tenant": parts[2], "what": ".".join(parts[3:]), "id": ""}
    return {"tenant": parts[2], "what": parts[-1], "id": ""}


def _id_of(body: bytes) -> str:
    with contextlib.suppress(msgspec.MsgspecError, UnicodeDecodeError):
        value = msgspec.json.decode(body)
        if isinstance(value, dict):
            return str(value.get("id", ""))[:64]
    return ""
