"""One NATS connection with the guard rails every process needs; it publishes and consumes nothing itself.

What nats-py does by default and we do not want: it gives up after 60 reconnects, and a client that the
server closed (an oversize message, revoked credentials) stays closed while the process looks alive. Here it
reconnects for ever, and a client closed for good ends the process (exit code 75, EX_TEMPFAIL), so that the
supervisor starts a new one.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Callable
from typing import Any

import structlog
from nats.js import JetStreamContext

from kgents_common.cancelling import cancelled
from kgents_common.connection.client import Client, discard
from kgents_common.connection.options import RECONNECT_WAIT_SECONDS, connect_options
from kgents_common.errors import NotDurableError
from kgents_common.settings import ServiceSettings

EXIT_CLOSED_FOR_GOOD = 75
BUFFER_BYTES = 2 * 1024 * 1024
NO_BUFFER = -1

_log = structlog.get_logger()


def _exit() -> None:
    os._exit(EXIT_CLOSED_FOR_GOOD)


class Connection:
    """A client that keeps trying; usable, and honest about being down, from the first moment."""

    def __init__(
        self,
        settings: ServiceSettings,
        *,
        name: str,
        on_closed: Callable[[], None] = _exit,
        buffer_while_down: bool = False,
    ) -> None:
        """Prepare; `start` connects.

        Args:
            name: Shown in the server's connection list.
            on_closed: Called when the client closed for good without being asked; ends the process.
            buffer_while_down: Let nats-py keep up to 2 MiB of publishes while disconnected. Off, a publish
                while down fails at once, so that a door can answer 503 and mean it.
        """
        self._settings = settings
        self._name = name
        self._on_closed = on_closed
        self._buffer = buffer_while_down
        self._client = Client()
        self._connecting: asyncio.Task[None] | None = None
        self._up = asyncio.Event()
        self._tried = asyncio.Event()
        self._stopping = False

    @property
    def is_connected(self) -> bool:
        """Whether a server is on the other end right now."""
        return self._client.is_connected

    @property
    def is_reading(self) -> bool:
        """Whether a server is there and what it sends is read."""
        return self._client.is_reading

    @property
    def client(self) -> Client:
        """The connected client.

        Raises:
            NotDurableError: No server is connected.
        """
        if not self._client.is_connected:
            raise NotDurableError("nats: not connected")
        return self._client

    def jetstream(self, *, timeout_seconds: float = 5) -> JetStreamContext:
        """A JetStream context of the connected client.

        Raises:
            NotDurableError: No server is connected.
        """
        return self.client.jetstream(timeout=timeout_seconds)

    async def start(self) -> None:
        """Begin connecting in the background; returns at once."""
        self._connecting = asyncio.create_task(self._connect(), name="nats.connect")

    async def wait(self) -> None:
        """Until the first connection stands."""
        await self._up.wait()

    async def wait_for_a_try(self) -> None:
        """Until the first attempt to connect is over, however it ended."""
        await self._tried.wait()

    async def stop(self) -> None:
        """Close; what was published is flushed first, within a second."""
        self._stopping = True
        await cancelled(self._connecting)
        if self._client.is_connected:
            with contextlib.suppress(Exception):
                await self._client.flush(timeout=1)
        with contextlib.suppress(Exception):
            await asyncio.wait_for(self._client.close(), 2)

    async def _connect(self) -> None:
        while True:
            try:
                await self._client.connect(
                    **connect_options(self._settings, self._name, self._callbacks()),
                    pending_size=BUFFER_BYTES if self._buffer else NO_BUFFER,
                    # Every subject is made by `subjects`, of parts that were checked.
                    skip_subject_validation=True,
                )
            except asyncio.CancelledError:
                raise
            except Exception as error:  # no server yet, a wrong credential: both may heal without us
                _log.warning("nats.connect_failed", error=type(error).__name__)
                self._tried.set()
                await discard(self._client)
                await asyncio.sleep(RECONNECT_WAIT_SECONDS)
                self._client = Client()
                continue
            self._up.set()
            self._tried.set()
            _log.info("nats.connected", server=str(self._client.connected_server_version))
            return

    def _callbacks(self) -> dict[str, Any]:
        async def closed() -> None:
            if self._up.is_set() and not self._stopping:
                _log.critical("nats.closed_for_good", hint="the process exits and is started anew")
                self._on_closed()

        async def disconnected() -> None:
            if not self._stopping:
                _log.warning("nats.disconnected")

        async def reconnected() -> None:
            _log.info("nats.reconnected")

        async def failed(error: Exception) -> None:
            _log.warning("nats.error", error=type(error).__name__, detail=str(error)[:200])

        return {
            "closed_cb": closed,
            "disconnected_cb": disconnected,
            "reconnected_cb": reconnected,
            "error_cb": failed,
        }
