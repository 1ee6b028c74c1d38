"""A NATS client that keeps a message's header block as its bytes, in and out; otherwise it is nats-py's own.

nats-py parses headers into a dict: a name given twice, spacing and bytes that are not text are lost. What an
archive gives back must be what was stored.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.errors import Error as NatsError
from nats.protocol import command

from kgents_backup.model.faults import ProtocolError


class RawHeaders(dict[str, str]):
    """Parsed headers with the bytes they were parsed from."""

    raw: bytes = b""


class VerbatimClient(Client):
    """Reads and writes header blocks verbatim.

    It rests on two private methods of nats-py 2.16 (`_process_headers`, `_send_command`);
    `tests/backup/test_messages.py` fails when they change.
    """

    async def _process_headers(self, headers: bytes | None) -> RawHeaders | None:
        if not headers:
            return None
        parsed = RawHeaders(await super()._process_headers(headers) or {})
        parsed.raw = bytes(headers)
        return parsed

    async def publish_verbatim(self, subject: str, reply: str, headers: bytes, payload: bytes) -> None:
        """Publish with a header block as it stands; empty for none.

        Raises:
            nats.errors.Error: The connection is closed.
            ProtocolError: Headers and payload are more than the server takes.
        """
        if len(headers) + len(payload) > self.max_payload:
            raise ProtocolError(
                f"a message of {len(headers) + len(payload)} bytes is more than the server takes"
            )
        if headers:
            line = command.hpub_cmd(subject, reply, headers, payload)
        else:
            line = command.pub_cmd(subject, reply, payload)
        await self._send_command(line)
        queue = self._flush_queue
        if queue is not None and queue.empty():
            await self._flush_pending()


def raw_headers(message: Msg) -> bytes:
    """The header block of a message that a VerbatimClient received; empty for none."""
    headers = message.headers
    return headers.raw if isinstance(headers, RawHeaders) else b""


async def connect(options: dict[str, Any]) -> VerbatimClient:
    """A connected client; `options` as `nats.connect` takes them.

    Raises:
        ProtocolError: No server answers.
    """
    client = VerbatimClient()
    try:
        await asyncio.wait_for(client.connect(**options), 30)
    except (NatsError, OSError, TimeoutError) as error:
        raise ProtocolError(
            f"nats: {type(error).__name__}", hint="check NATS_SERVERS and that the server runs"
        ) from error
    return client


@asynccontextmanager
async def connected(options: dict[str, Any]) -> AsyncIterator[VerbatimClient]:
    """A client for as long as the body runs; errors as `connect`."""
    client = await connect(options)
    try:
        yield client
    finally:
        await client.close()
