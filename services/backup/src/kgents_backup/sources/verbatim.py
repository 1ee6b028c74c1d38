"""Connecting the common client, which keeps header blocks as their bytes, in and out; nothing is read here.

What an archive gives back must be what was stored: a name given twice, spacing, bytes that are not text.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from nats.aio.msg import Msg
from nats.errors import Error as NatsError
from nats.errors import MaxPayloadError

from kgents_backup.model.faults import ProtocolError
from kgents_common.connection import Client, Message, client


class VerbatimClient(Client):
    """The common client, whose refusals are ours."""

    @property
    def version(self) -> str:
        """The connected server's version, e.g. `2.15.1`."""
        return str(self._server_info.get("version", ""))

    @property
    def is_clustered(self) -> bool:
        """Whether the connected server is one of several."""
        return bool(self._server_info.get("cluster"))

    async def publish_verbatim(
        self, subject: str | bytes, reply: str, headers: bytes, payload: bytes
    ) -> None:
        """As the common client's.

        Raises:
            nats.errors.Error: The connection is closed or away.
            ProtocolError: Headers and payload are more than the server takes.
        """
        try:
            await super().publish_verbatim(subject, reply, headers, payload)
        except MaxPayloadError as error:
            size = len(headers) + len(payload)
            raise ProtocolError(f"a message of {size} bytes is more than the server takes") from error


def raw_headers(message: Msg) -> bytes:
    """The header block of a message that a VerbatimClient received; empty for none."""
    return message.raw_headers if isinstance(message, Message) else b""


async def connect(options: dict[str, Any]) -> VerbatimClient:
    """A connected client; `options` as `nats.connect` takes them.

    Raises:
        ProtocolError: No server answers.
    """
    try:
        return await client.connect(options, VerbatimClient)
    except (NatsError, OSError, TimeoutError) as error:
        raise ProtocolError(
            f"nats: {type(error).__name__}", hint="check NATS_SERVERS and that the server runs"
        ) from error


@asynccontextmanager
async def connected(options: dict[str, Any]) -> AsyncIterator[VerbatimClient]:
    """A client for as long as the body runs; errors as `connect`."""
    made = await connect(options)
    try:
        yield made
    finally:
        await made.close()
