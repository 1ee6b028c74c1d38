"""One connection: uvicorn's HTTP/1.1 with an end to whatever a client may hold or send.

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
from collections.abc import Callable, Sized
from typing import Any

from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol
from uvicorn.server import ServerState

from kgents_common.http_server.answer import Answer
from kgents_common.http_server.bounds import Bounds
from kgents_common.problems import problem

# A connection that is idle when the drain begins may have its next request on the way already.
LINGER_SECONDS = 0.5
MAX_HEAD_BYTES = 64 * 1024
# A head of 64 KiB may be 16,000 headers, which are megabytes of objects.
MAX_HEADERS = 256
# What may come in a body beside it (chunk sizes and their extensions, trailers): so much, and twice the body.
MAX_FRAMING_BYTES = 16 * 1024
# What may still come of a request that was answered before it was whole.
MAX_UNWANTED_BYTES = 256 * 1024
MAX_PIPELINED = 64
# One turn of the parser: a connection that sends as fast as it can must not hold the others up.
TURN_BYTES = 16 * 1024


class State(ServerState):
    """uvicorn's, and how far a stop has come.

    Attributes:
        is_draining: Connections end with the answer they wait for.
        is_closed: No connection is taken any more, and idle ones end.
        bounds: What all connections hold.
    """

    def __init__(self, bounds: Bounds) -> None:
        super().__init__()
        self.bounds = bounds
        self.is_draining = False
        self.is_closed = False


class _Flow(FlowControl):
    """uvicorn's, which resumes at every answer of a pipeline: here once the pipeline is empty.

    Args:
        has_rest: Whether something was read that is not parsed; it is parsed before more is read.
    """

    def __init__(self, transport: asyncio.Transport, pipeline: Sized, has_rest: Callable[[], bool]) -> None:
        super().__init__(transport)
        self._pipeline = pipeline
        self._has_rest = has_rest

    def resume_reading(self) -> None:
        if not self.read_paused or self._pipeline:
            return
        if self._has_rest():
            self.read_paused = False  # the transport stays paused until the rest is parsed
            return
        super().resume_reading()


class Protocol(HttpToolsProtocol):
    """uvicorn's HTTP/1.1 with an end to waiting for a client, in either direction.

    uvicorn waits for ever for a request to come whole, takes a head, a trailer and a chunk's extension of
    any size, and when it shuts down it closes connections whose next request is half read. It also waits for
    ever while a client takes nothing, and a connection closed with unsent bytes lingers as long: here it is
    cut when the bytes above the transport's high-water mark are not taken in time.
    """

    server_state: State
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
        self._body_bytes = 0
        self._framing_bytes = 0
        self._unwanted_bytes = 0
        self._unparsed = b""
        self._refusal: tuple[int, str] | None = None
        self.address = ""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.flow = _Flow(transport, self.pipeline, self._has_rest)
        self.address = self.client[0] if self.client else ""
        self._owed_since = self.loop.time()
        # Else the kernel takes megabytes for a client before this process notices that it does not read.
        # It bounds what waits to be sent, not what is under way, so it costs a fast client nothing.
        connection: socket.socket | None = transport.get_extra_info("socket")
        if connection is not None and hasattr(socket, "TCP_NOTSENT_LOWAT"):
            with contextlib.suppress(OSError):  # a kernel without it
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, self.unsent_bytes)
        if self.server_state.is_closed:
            self.shutdown()
        self.server_state.bounds.opened(self)

    def data_received(self, data: bytes) -> None:
        if self._unparsed:
            self._unparsed += data
        else:
            self._parse(data)

    def _parse(self, data: bytes) -> None:
        """Parse in turns, as far as what was read is asked for."""
        for at in range(0, len(data), TURN_BYTES):
            if self.transport.is_closing() or self.parser is None:
                return
            if self.flow.read_paused:
                self._unparsed = data[at:]
                return
            self._take_turn(data[at : at + TURN_BYTES])

    def _take_turn(self, data: bytes) -> None:
        was_begun, was_in_head, body_before = self._is_begun, self._is_in_head, self._body_bytes
        super().data_received(data)
        if self.transport.is_closing():
            return
        if not was_in_head and not self._is_in_head:
            self._in_body(len(data), self._body_bytes - body_before)
        elif was_begun and self._is_begun:
            self._head_bytes += len(data)
            self.server_state.bounds.holds(self, self._head_bytes)
            if self._head_bytes > MAX_HEAD_BYTES and not self.transport.is_closing():
                self._refuse(431, f"the head of a request must be at most {MAX_HEAD_BYTES} bytes")
        elif self._is_begun:
            self._head_bytes = len(data)
            self.server_state.bounds.holds(self, self._head_bytes)
        elif self._is_busy():
            return
        elif self._owed_since is None:  # line feeds, which are no request
            self._owed_since = self.loop.time()
            self._unwanted_bytes = len(data)
        else:
            self._unwanted(len(data))

    def _in_body(self, read_bytes: int, body_bytes: int) -> None:
        """Whether what comes is a body still, and anybody wants it."""
        if self.cycle.response_complete:
            self._unwanted(read_bytes)
            return
        self._framing_bytes += read_bytes - body_bytes
        if self._framing_bytes > MAX_FRAMING_BYTES + 2 * self._body_bytes:
            self._refuse(400, "what comes beside the body (trailers, chunks' extensions) is too much")

    def _unwanted(self, read_bytes: int) -> None:
        self._unwanted_bytes += read_bytes
        if self._unwanted_bytes > MAX_UNWANTED_BYTES:
            self.transport.close()

    def _has_rest(self) -> bool:
        """Whether something was read that is not parsed; it will be, soon."""
        if not self._unparsed:
            return False
        self.loop.call_soon(self._parse_rest)
        return True

    def _parse_rest(self) -> None:
        if self.flow.read_paused or self.transport.is_closing():
            return
        data, self._unparsed = self._unparsed, b""
        self._parse(data)
        if not (self._unparsed or self.flow.read_paused or self.transport.is_closing()):
            self.transport.resume_reading()

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._owed_since = self.loop.time()
        self._is_begun = self._is_in_head = True
        self._head_bytes = self._body_bytes = self._framing_bytes = self._unwanted_bytes = 0

    def on_header(self, name: bytes, value: bytes) -> None:
        if not self._is_in_head:  # what follows a body is nobody's header
            return
        if len(self.headers) >= MAX_HEADERS:
            self._refusal = (431, f"a request must have at most {MAX_HEADERS} headers")
            raise ValueError  # the parser stops, and calls for an answer
        super().on_header(name, value)

    def on_body(self, body: bytes) -> None:
        self._body_bytes += len(body)
        super().on_body(body)

    def on_headers_complete(self) -> None:
        if len(self.pipeline) >= MAX_PIPELINED:
            self._refusal = (400, f"at most {MAX_PIPELINED} requests may wait on a connection")
            raise ValueError  # the parser stops, and calls for an answer
        before = self.cycle
        super().on_headers_complete()
        self.cycle.transport = Answer(self.transport, self.loop)
        self._is_begun = self._is_in_head = False
        self.server_state.bounds.has_whole_head(self)
        if self.server_state.is_draining:
            if before is not None and not before.response_started:
                before.keep_alive = True  # the connection ends with the last request that was read
            self.cycle.keep_alive = False

    def on_message_complete(self) -> None:
        super().on_message_complete()
        self._owed_since = None
        self._is_in_head = True

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self.cycle.response_complete and not self._is_begun:
            # An idle connection keeps nothing of the request that it had.
            self.headers = []
            self.cycle.scope = self.scope = {}  # type: ignore[typeddict-item]
            if not self.transport.is_closing():
                self.server_state.bounds.waits(self)

    def send_400_response(self, msg: str) -> None:
        self._refuse(*(self._refusal or (400, msg)))

    def end(self, reason: str) -> None:
        """See `bounds.Client`."""
        if self._is_begun or reason == "address":
            self._refuse(503, "too many connections or unfinished requests at once", retry_after="1")
        else:
            self.transport.close()

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
        is_answered = self.cycle is not None and self.cycle.response_complete
        if not self._is_begun and (self._is_in_head or is_answered):
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
        self._unparsed = b""
        self.server_state.bounds.closed(self)
        super().connection_lost(exc)

    def _keep(self) -> None:
        if self._cut is not None:
            self._cut.cancel()
            self._cut = None

    def _is_busy(self) -> bool:
        return self._is_begun or (self.cycle is not None and not self.cycle.response_complete)

    def _close_if_idle(self) -> None:
        if not (self._is_busy() or self.transport.is_closing() or self._unparsed or self._has_unread()):
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

    def _refuse(self, status: int, detail: str, *, retry_after: str | None = None) -> None:
        """Answer in the application's place, unless its own answer is under way, and close."""
        cycle = self.cycle
        is_under_way = cycle is not None and not cycle.response_complete
        if is_under_way:
            cycle.disconnected = True
            cycle.message_event.set()
        if not (is_under_way and cycle.response_started):
            headers = {"connection": "close", **({"retry-after": retry_after} if retry_after else {})}
            answer = problem(status, detail, headers=headers)
            head = [STATUS_LINE[status]]
            for name, value in (*self.server_state.default_headers, *answer.raw_headers):
                head += [name, b": ", value, b"\r\n"]
            self.transport.write(b"".join([*head, b"\r\n", bytes(answer.body)]))
        self.transport.close()
