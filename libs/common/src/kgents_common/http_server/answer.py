"""What an answer is written to, so that a short one leaves as one piece; it knows no HTTP."""

from __future__ import annotations

import asyncio


class Answer(asyncio.Transport):
    """A connection as one answer sees it: its head waits for what follows within the same turn of the loop.

    uvicorn writes head and body apart, and uvloop sends at once what it is given: that would be two calls of
    the kernel, two segments, and a client that wakes twice.
    """

    def __init__(self, connection: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__()
        self._connection = connection
        self._loop = loop
        self._is_begun = False
        self._head = b""

    def write(self, data: bytes | bytearray | memoryview) -> None:
        if not self._is_begun:
            self._is_begun = True
            self._head = bytes(data)
            self._loop.call_soon(self._send_head)
        elif self._head:
            self._connection.writelines((self._head, data))
            self._head = b""
        else:
            self._connection.write(data)

    def close(self) -> None:
        self._send_head()
        self._connection.close()

    def is_closing(self) -> bool:
        return self._connection.is_closing()

    def _send_head(self) -> None:
        if self._head and not self._connection.is_closing():
            self._connection.write(self._head)
        self._head = b""
