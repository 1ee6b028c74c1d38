"""A client of the live stream, made of a socket: it parses as the HTML standard says, or does not read."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self
from urllib.parse import urlencode

from kgents_devstack.waiting import HANGS_AFTER_SECONDS

PATIENCE_SECONDS = HANGS_AFTER_SECONDS


@dataclass(frozen=True)
class Received:
    """One dispatched event."""

    id: str
    event: str
    data: dict[str, Any]

    @property
    def sequence(self) -> int:
        """The stream sequence in the id."""
        return int(self.id.partition("-")[0])


class LiveStream:
    """An open request of `GET /v1/events/stream`.

    Attributes:
        received: Every event so far.
        last_id: What a browser would send as Last-Event-ID.
        has_ended: The server ended the response properly; `is_cut`: it closed the connection without.
    """

    def __init__(
        self,
        port: int,
        key: str,
        *,
        types: tuple[str, ...] = (),
        after: int | str | None = None,
        reads: bool = True,
        receive_buffer: int | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        self._port = port
        query = f"?{urlencode([('type', t) for t in types])}" if types else ""
        sent = {"host": "api", "authorization": f"Bearer {key}", **(headers or {})}
        if after is not None:
            sent["last-event-id"] = str(after)
        head = "".join(f"{name}: {value}\r\n" for name, value in sent.items())
        self._request = f"GET /v1/events/stream{query} HTTP/1.1\r\n{head}\r\n".encode()
        self._reads = reads
        self._receive_buffer = receive_buffer
        self._reading: asyncio.Task[None] | None = None
        self._changed = asyncio.Condition()
        self._socket: socket.socket | None = None
        self._event = ""
        self._data: list[str] = []
        self.status = 0
        self.headers: dict[str, str] = {}
        self.received: list[Received] = []
        self.comments: list[str] = []
        self.last_id = ""
        self.retry = 0
        self.text = b""
        self.has_ended = False
        self.is_cut = False
        self.on_event: Callable[[Received], object] = lambda _: None

    @property
    def last_sequence(self) -> int:
        """The stream sequence in `last_id`; 0 before the first."""
        return int(self.last_id.partition("-")[0] or 0)

    async def open(self) -> Self:
        """Send the request; returns with the answer's head, and for a stream its opening lines."""
        self._socket = socket.socket()
        if self._receive_buffer is not None:
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, self._receive_buffer)
        self._socket.setblocking(False)
        await asyncio.get_running_loop().sock_connect(self._socket, ("127.0.0.1", self._port))
        self._reader, self._writer = await asyncio.open_connection(sock=self._socket, limit=2**16)
        self._writer.write(self._request)
        async with asyncio.timeout(PATIENCE_SECONDS):
            head = (await self._reader.readuntil(b"\r\n\r\n")).decode()
        lines = head.split("\r\n")
        self.status = int(lines[0].split()[1])
        self.headers = {
            name.lower(): value for name, _, value in (line.partition(": ") for line in lines[1:] if line)
        }
        if self._reads:
            self._reading = asyncio.create_task(self._read())
            if self.status == 200:
                await self.until(lambda: bool(self.last_id))
        return self

    def start_reading(self) -> None:
        """From now on it reads."""
        self._reading = asyncio.create_task(self._read())

    async def close(self) -> None:
        """Go away."""
        if self._reading is not None:
            self._reading.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._reading
        self._writer.close()

    async def until(self, condition: Any, seconds: float = PATIENCE_SECONDS) -> None:
        """Until the condition holds of what was received."""
        async with asyncio.timeout(seconds), self._changed:
            await self._changed.wait_for(condition)

    async def events(self, count: int, seconds: float = PATIENCE_SECONDS) -> list[Received]:
        """The first `count` events, once they are there."""
        await self.until(lambda: len(self.received) >= count or self.has_ended or self.is_cut, seconds)
        return self.received[:count]

    async def __aenter__(self) -> Self:
        return await self.open()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def _read(self) -> None:
        rest = b""
        try:
            while True:
                size = int((await self._reader.readuntil(b"\r\n")).strip(), 16)
                chunk = (await self._reader.readexactly(size + 2))[:-2]
                if size == 0:
                    break
                self.text += chunk if len(self.text) < 100_000 else b""
                lines = (rest + chunk).split(b"\n")
                rest = lines.pop()
                for line in lines:
                    self._take(line.decode())
                async with self._changed:
                    self._changed.notify_all()
            self.has_ended = True
        except (asyncio.IncompleteReadError, ConnectionError):
            self.is_cut = True
        async with self._changed:
            self._changed.notify_all()

    def _take(self, line: str) -> None:
        if not line:
            if self._data:
                data = json.loads("\n".join(self._data))
                event = Received(self.last_id, self._event or "message", data)
                self.received.append(event)
                self.on_event(event)
            self._event, self._data = "", []
            return
        name, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if not name:
            self.comments.append(value)
        elif name == "id":
            self.last_id = value
        elif name == "event":
            self._event = value
        elif name == "data":
            self._data.append(value)
        elif name == "retry":
            self.retry = int(value)
