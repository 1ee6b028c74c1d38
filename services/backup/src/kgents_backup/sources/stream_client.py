"""The connection that streams are read and written over, for commands and the service alike."""

from __future__ import annotations

import asyncio

import structlog
from nats.errors import Error as NatsError

from kgents_backup.model.faults import ProtocolError
from kgents_backup.sources.verbatim import VerbatimClient
from kgents_common.connection import connect_options
from kgents_common.settings import ServiceSettings

_log = structlog.get_logger()


class StreamClient:
    """One verbatim client, connected when first wanted, and anew when it was closed for good."""

    def __init__(
        self, settings: ServiceSettings, *, servers: tuple[str, ...] | None = None, name: str
    ) -> None:
        self._options = connect_options(settings, name, {"error_cb": _note_error})
        if servers is not None:
            self._options["servers"] = list(servers)
        self._client: VerbatimClient | None = None
        self._connecting = asyncio.Lock()

    async def __call__(self) -> VerbatimClient:
        """The connected client.

        Raises:
            ProtocolError: No server answers now.
        """
        async with self._connecting:
            if self._client is None or self._client.is_closed:
                client = VerbatimClient()
                try:
                    # It would try for ever; whoever asks wants to know.
                    await asyncio.wait_for(client.connect(**self._options), 10)
                except (NatsError, OSError, TimeoutError) as error:
                    raise ProtocolError(
                        f"nats: {type(error).__name__}", hint="check NATS_SERVERS and that a server runs"
                    ) from error
                self._client = client
        if not self._client.is_connected:
            raise ProtocolError("nats: not connected")
        return self._client

    async def start(self) -> None:
        """Nothing: the first use connects."""

    async def stop(self) -> None:
        """Close."""
        if self._client is not None:
            await self._client.close()
            self._client = None


async def _note_error(error: Exception) -> None:
    _log.warning("nats.error", error=type(error).__name__)
