"""An HTTP connection that a request can cut, which ASGI has no word for; all else is uvicorn's."""

from __future__ import annotations

import asyncio
import socket
import struct

from starlette.responses import Response
from starlette.types import Receive, Scope, Send
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

_TRANSPORT = "kgents.transport"
_RESET_ON_CLOSE = struct.pack("ii", 1, 0)  # SO_LINGER: on, for no time at all
_CLOSING_STEPS = 100


class CuttableProtocol(HttpToolsProtocol):
    """uvicorn's, with the transport within the request's reach."""

    def on_message_begin(self) -> None:
        """A request starts."""
        super().on_message_begin()
        self.scope["extensions"] = {_TRANSPORT: {"transport": self.transport}}


class CutConnection(Response):
    """No answer: the connection is reset."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002 ASGI's signature
        """Reset it, and wait until uvicorn has noticed."""
        transport: asyncio.Transport = scope["extensions"][_TRANSPORT]["transport"]
        with socket.socket(fileno=socket.dup(transport.get_extra_info("socket").fileno())) as connection:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
        transport.abort()
        for _ in range(_CLOSING_STEPS):
            if (await receive())["type"] == "http.disconnect":
                return
