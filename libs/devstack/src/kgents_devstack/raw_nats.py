"""Publishing to NATS over a bare socket: what no client library sends and every server takes."""

from __future__ import annotations

import asyncio
from types import TracebackType
from typing import Self
from urllib.parse import urlsplit

CONNECT = b'CONNECT {"verbose":false,"pedantic":false,"headers":true,"name":"raw"}\r\n'

# Subjects and header blocks that a server stores, and that nats-py 2.16 cannot read; the first subject a
# server up to 2.15.1 at least keeps in no index.
UNREADABLE_SUBJECTS = (
    b"\x7fdelete",
    b"\xff\xfe",
    b"nul\x00",
    b"vertical\x0btab",
    b"form\x0cfeed",
    b"next\xc2\x85line",
)
UNREADABLE_HEADERS = (
    b"NATS/1.0",
    b"NATS/1.0 ",
    b"NATS/1.0 \xff",
    b"NATS/1.0 503",
    b"\xff\x00 no header block",
    b"N",
)


class RawPublisher:
    """One connection that writes what it is given; an async context manager.

    Args:
        url: `nats://host:port`; a user and a password in it are used.
    """

    def __init__(self, url: str) -> None:
        self._at = urlsplit(url)

    async def __aenter__(self) -> Self:
        self._reader, self._writer = await asyncio.open_connection(self._at.hostname, self._at.port or 4222)
        await self._reader.readline()
        connect = CONNECT
        if self._at.username:
            login = f',"user":"{self._at.username}","pass":"{self._at.password or ""}"}}\r\n'
            connect = CONNECT.replace(b"}\r\n", login.encode())
        self._writer.write(connect)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._writer.close()

    def publish(self, subject: bytes, body: bytes = b"", headers: bytes | None = None) -> None:
        """Write one message; `headers` is the whole block, empty or not, or None for a message without."""
        if headers is None:
            self._writer.write(b"PUB %s %d\r\n%s\r\n" % (subject, len(body), body))
        else:
            sizes = (len(headers), len(headers) + len(body))
            self._writer.write(b"HPUB %s %d %d\r\n%s%s\r\n" % (subject, *sizes, headers, body))

    async def settle(self) -> None:
        """Until the server has read everything; a stream may store it a moment later.

        Raises:
            ConnectionError: It closed the connection.
        """
        self._writer.write(b"PING\r\n")
        await self._writer.drain()
        while True:
            line = await self._reader.readline()
            if line == b"PONG\r\n":
                return
            if line == b"PING\r\n":
                self._writer.write(b"PONG\r\n")
            elif not line:
                raise ConnectionError("the server closed the connection")
