"""uvicorn's HTTP/1.1 server, bounded against clients and drained so that no request it read goes unanswered.

It decides when a connection is closed and what a request may cost before it is whole; what is answered is the
application's matter.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import socket
import struct
import termios
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import structlog
import uvicorn
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol
from uvicorn.server import ServerState

from kgents_common.errors import ConfigurationError
from kgents_common.problems import problem

BACKLOG = 2048
KEEP_ALIVE_SECONDS = 75
# A connection that is idle when the drain begins may have its next request on the way already.
LINGER_SECONDS = 0.5
MAX_HEAD_BYTES = 64 * 1024

_log = structlog.get_logger()


class LastHandler:
    """Answers 500 as a problem document where nothing else answered, and closes where it says that it does.

    What fails after its answer began cannot be answered any more: the server cuts the connection, so that no
    client takes half an answer for a whole one.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        is_begun = is_whole = False

        async def watching(message: Message) -> None:
            nonlocal is_begun, is_whole
            is_begun = True
            is_whole = message["type"] == "http.response.body" and not message.get("more_body", False)
            await send(message)

        try:
            await self._app(scope, receive, watching)
        except Exception:
            _log.exception("request.failed", method=scope.get("method"), path=scope.get("path"))
            if is_whole:
                return
            if is_begun:
                raise
            answer = problem(
                500,
                "this is our fault; nothing was stored unless a receipt says so",
                headers={"connection": "close"},
            )
            await answer(scope, receive, send)


class _State(ServerState):
    """uvicorn's, and how far a stop has come.

    Attributes:
        is_draining: Connections end with the answer they wait for.
        is_closed: No connection is taken any more, and idle ones end.
    """

    def __init__(self) -> None:
        super().__init__()
        self.is_draining = False
        self.is_closed = False


class Protocol(HttpToolsProtocol):
    """uvicorn's HTTP/1.1 with an end to waiting for a client, in either direction.

    uvicorn waits for ever for a request to come whole, takes a head of any size, and when it shuts down it
    closes connections whose next request is half read. It also waits for ever while a client takes nothing,
    and a connection closed with unsent bytes lingers as long: here it is cut when the bytes above the
    transport's high-water mark are not taken in time.
    """

    server_state: _State
    stalled_seconds = 30.0
    request_seconds = 60.0
    unsent_bytes = 128 * 1024

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self._cut: asyncio.TimerHandle | None = None
        # Since when the client owes bytes: from the connection, or from a request's first byte to its last.
        self._owed_since: float | None = None
        self._is_begun = False
        self._is_in_head = True
        self._head_bytes = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._owed_since = self.loop.time()
        # Else the kernel takes megabytes for a client before this process notices that it does not read.
        # It bounds what waits to be sent, not what is under way, so it costs a fast client nothing.
        connection: socket.socket | None = transport.get_extra_info("socket")
        if connection is not None and hasattr(socket, "TCP_NOTSENT_LOWAT"):
            with contextlib.suppress(OSError):  # a kernel without it
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, self.unsent_bytes)
        if self.server_state.is_closed:
            self.shutdown()

    def data_received(self, data: bytes) -> None:
        was_begun = self._is_begun
        super().data_received(data)
        if was_begun and self._is_begun:
            self._head_bytes += len(data)
            if self._head_bytes > MAX_HEAD_BYTES and not self.transport.is_closing():
                self._refuse(431, f"the head of a request must be at most {MAX_HEAD_BYTES} bytes")
        elif self._owed_since is None and not self._is_busy():  # line feeds, which are no request
            self._owed_since = self.loop.time()

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._owed_since = self.loop.time()
        self._is_begun = self._is_in_head = True
        self._head_bytes = 0

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._is_in_head:  # what follows a body is nobody's header, and has no end
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        before = self.cycle
        super().on_headers_complete()
        self._is_begun = self._is_in_head = False
        if self.server_state.is_draining:
            if before is not None and not before.response_started:
                before.keep_alive = True  # the connection ends with the last request that was read
            self.cycle.keep_alive = False

    def on_message_complete(self) -> None:
        super().on_message_complete()
        self._owed_since = None
        self._is_in_head = True

    def send_400_response(self, msg: str) -> None:
        self._refuse(400, msg)

    def shutdown(self) -> None:
        """End with what is being answered or read; an idle connection ends after a moment."""
        if self.cycle is not None and not self.cycle.response_complete:
            self.cycle.keep_alive = False
        self.loop.call_later(LINGER_SECONDS, self._close_if_idle)

    def cut_if_overdue(self, now: float) -> None:
        """Refuse a request that does not come whole in time, and close a connection that never had one."""
        owed_since = self._owed_since
        if owed_since is None or now - owed_since < self.request_seconds or self.flow.read_paused:
            return
        if self._is_in_head and not self._is_begun:
            self.transport.close()
        elif not self.transport.is_closing():
            self._refuse(408, f"a request must come whole within {self.request_seconds:g} s")

    def pause_writing(self) -> None:
        super().pause_writing()
        self._cut = self.loop.call_later(self.stalled_seconds, self.transport.abort)

    def resume_writing(self) -> None:
        self._keep()
        super().resume_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        self._keep()
        super().connection_lost(exc)

    def _keep(self) -> None:
        if self._cut is not None:
            self._cut.cancel()
            self._cut = None

    def _is_busy(self) -> bool:
        return self._is_begun or (self.cycle is not None and not self.cycle.response_complete)

    def _close_if_idle(self) -> None:
        if not self._is_busy() and not self.transport.is_closing() and not self._has_unread():
            self.transport.close()

    def _has_unread(self) -> bool:
        """Whether the kernel holds bytes of the client's: they are read next, and answered."""
        connection = self.transport.get_extra_info("socket")
        if connection is None:
            return False
        with contextlib.suppress(OSError):
            waiting = fcntl.ioctl(connection.fileno(), termios.FIONREAD, bytes(4))
            return bool(struct.unpack("i", waiting)[0])
        return False

    def _refuse(self, status: int, detail: str) -> None:
        """Answer in the application's place, unless its own answer is under way, and close."""
        cycle = self.cycle
        is_under_way = cycle is not None and not cycle.response_complete
        if is_under_way:
            cycle.disconnected = True
            cycle.message_event.set()
        if not (is_under_way and cycle.response_started):
            answer = problem(status, detail, headers={"connection": "close"})
            head = [STATUS_LINE[status]]
            for name, value in (*self.server_state.default_headers, *answer.raw_headers):
                head += [name, b": ", value, b"\r\n"]
            self.transport.write(b"".join([*head, b"\r\n", bytes(answer.body)]))
        self.transport.close()


class HttpServer(uvicorn.Server):
    """uvicorn without its signal handlers: the service owns the order of a stop.

    Args:
        stalled_seconds: How long a client may take nothing of its answer before its connection is cut.
        request_seconds: How long a request may take to come whole.
        drain_seconds: How long requests may take to end once it stops.
    """

    server_state: _State

    def __init__(
        self,
        app: ASGIApp,
        *,
        stalled_seconds: float,
        request_seconds: float,
        drain_seconds: float,
    ) -> None:
        limits = {"stalled_seconds": stalled_seconds, "request_seconds": request_seconds}
        super().__init__(
            uvicorn.Config(
                LastHandler(app),
                loop="none",
                http=type("Protocol", (Protocol,), limits),
                ws="none",
                lifespan="off",
                access_log=False,
                log_config=None,
                server_header=False,
                date_header=True,
                timeout_keep_alive=KEEP_ALIVE_SECONDS,
                timeout_graceful_shutdown=max(1, int(drain_seconds)),
                backlog=BACKLOG,
            )
        )
        self.server_state = _State()
        self._listening: socket.socket | None = None

    async def serve_at(self, host: str, port: int) -> None:
        """Serve until told to exit.

        Raises:
            ConfigurationError: The port cannot be had.
        """
        try:
            family = socket.AF_INET6 if ":" in host else socket.AF_INET
            listening = socket.create_server((host, port), family=family, backlog=BACKLOG)
        except OSError as error:
            raise ConfigurationError(
                f"the port {port} cannot be served: {error.strerror}", hint="set KGENTS_PORT to a free one"
            ) from error
        listening.setblocking(False)
        # A second handle: the server closes its own while the kernel may still hold connections for it.
        self._listening = listening.dup()
        await self.serve([listening])

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    def begin_drain(self) -> None:
        """From now on every answer ends its connection; new connections are still taken."""
        self.server_state.is_draining = True

    async def stop_listening(self) -> None:
        """Take no new connections, but serve those that the kernel has taken already."""
        self.server_state.is_draining = self.server_state.is_closed = True
        for server in getattr(self, "servers", ()):
            server.close()
        listening, self._listening = self._listening, None
        if listening is None:
            return
        listening.setblocking(False)
        taken: list[socket.socket] = []
        with contextlib.suppress(OSError):
            while True:
                taken.append(listening.accept()[0])
        listening.close()
        loop = asyncio.get_running_loop()
        for connection in taken:
            connection.setblocking(False)
            await loop.connect_accepted_socket(self._protocol, connection)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """See `uvicorn.Server.shutdown`."""
        await self.stop_listening()
        await super().shutdown(sockets)

    async def on_tick(self, counter: int) -> bool:
        """See `uvicorn.Server.on_tick`: ten times a second."""
        if counter % 10 == 0:
            now = asyncio.get_running_loop().time()
            for connection in list(self.server_state.connections):
                if isinstance(connection, Protocol):
                    connection.cut_if_overdue(now)
        return await super().on_tick(counter)

    def _protocol(self) -> asyncio.Protocol:
        made: asyncio.Protocol = self.config.http_protocol_class(  # type: ignore[call-arg]
            config=self.config, server_state=self.server_state, app_state=self.lifespan.state
        )
        return made
