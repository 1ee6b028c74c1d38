"""HTTP load on loopback: raw keep-alive connections, and requests that are due at a rate whether or not the
last one is answered; it knows nothing of what it sends.

Written on asyncio's streams: a client library would cost more than what it measures.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Self

# A request that leaves later than this after it was due was not offered at the rate.
LATE_SECONDS = 0.25
# Of all requests, so many may leave late.
MAY_BE_LATE = 0.02


class TooSlowError(Exception):
    """The machine is too slow for this load: what it would have measured is the loader."""


class Line:
    """One keep-alive connection, with one request under way at a time."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    @classmethod
    async def open(cls, port: int) -> Self:
        """Connect to loopback."""
        return cls(*await asyncio.open_connection("127.0.0.1", port))

    async def ask(self, request: bytes) -> tuple[int, bytes]:
        """Send a whole request; the answer's status and body."""
        self._writer.write(request)
        head = (await self._reader.readuntil(b"\r\n\r\n")).lower()
        length = int(head.partition(b"content-length:")[2].partition(b"\r")[0] or 0)
        return int(head.split(None, 2)[1]), await self._reader.readexactly(length) if length else b""

    def close(self) -> None:
        """Hang up."""
        self._writer.close()


def post(path: str, body: bytes, **headers: str) -> bytes:
    """A whole request; an underscore in a header's name is a dash."""
    lines = "".join(f"{name.replace('_', '-')}: {value}\r\n" for name, value in headers.items())
    head = f"POST {path} HTTP/1.1\r\nhost: bench\r\n{lines}content-length: {len(body)}\r\n\r\n"
    return head.encode() + body


def get(path: str, **headers: str) -> bytes:
    """As `post`, without a body."""
    lines = "".join(f"{name.replace('_', '-')}: {value}\r\n" for name, value in headers.items())
    return f"GET {path} HTTP/1.1\r\nhost: bench\r\n{lines}\r\n".encode()


async def at_rate(
    port: int,
    *,
    per_second: float,
    seconds: float,
    connections: int,
    send: Callable[[Line, int], Awaitable[None]],
) -> None:
    """Call `send` with a free connection for each request's number, when it is due.

    Raises:
        TooSlowError: More than a few of them left late.
    """
    lines = await asyncio.gather(*(Line.open(port) for _ in range(connections)))
    total, began = int(per_second * seconds), time.perf_counter()
    numbers, late = iter(range(total)), 0

    async def work(line: Line) -> None:
        nonlocal late
        for number in numbers:
            due = began + number / per_second
            await asyncio.sleep(max(0.0, due - time.perf_counter()))
            late += time.perf_counter() - due > LATE_SECONDS
            await send(line, number)

    try:
        async with asyncio.TaskGroup() as workers:
            for line in lines:
                workers.create_task(work(line))
    finally:
        for line in lines:
            line.close()
    if late > MAY_BE_LATE * total:
        raise TooSlowError(
            f"{late} of {total} requests left more than {LATE_SECONDS:g} s late at {per_second:,.0f}/s"
        )
