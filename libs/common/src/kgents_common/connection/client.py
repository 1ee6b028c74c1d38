"""nats-py's client with a read loop that no message, and no server out of step, can end for good.

What nats-py 2.16 does and we do not want, with what is done instead:

- a header block without a line end, or a subject that is not UTF-8, ends the read loop, and after the
  reconnect the same message ends it again: `wire` reads whatever a server delivers;
- an exception nobody thought of ends the read loop and leaves the client "connected": it reconnects at once;
- a late PONG, whose flush has given up, is such an exception: it is ignored;
- an exception other than its own ends the reconnecting for good: it goes on;
- a socket that dies while the client is closed leaves it closed, and nobody is told: they are;
- nobody holds the task in which a client is closed, and asyncio holds tasks weakly: this one is held;
- any `-ERR` but two closes the client for good, though the server closes nothing over a bad subject: those
  are only told;
- a `tls://` server that says it speaks no TLS is answered in the clear, credentials first: it is left.

The header block is kept as its bytes, in and out: a name given twice, spacing and bytes that are not text
would be lost otherwise, and what an archive gives back must be what was stored.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

import structlog
from nats import errors
from nats.aio import client as nats_client
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription
from nats.protocol.parser import AUTHORIZATION_VIOLATION, STALE_CONNECTION

from kgents_common.connection.wire import VERSION, Headers, WireParser, read_headers, readable

READ_BYTES = 64 * 1024
# The server goes on after these (nats-server `client.go`); after every other it closes the connection.
_ONLY_TOLD = ("permissions violation", "invalid publish subject", "invalid subject", "invalid subscription")

# What a server says of a publish that the connection's user may not make, in lower case as nats-py gives it.
_REFUSED_PUBLISH = re.compile(r'permissions violation for publish to "([^"]+)"')

_log = structlog.get_logger()


@dataclass
class Message(Msg):
    """A message; its subject and headers are text that may be stored anywhere, beside the bytes they were.

    Attributes:
        raw_subject: The subject as it was published.
        raw_headers: The header block as it was published; empty for none.
    """

    raw_subject: bytes = b""
    raw_headers: bytes = b""


class Client(nats_client.Client):
    """A NATS client for everything of ours; it stands on private methods of nats-py, which is pinned.

    Attributes:
        restarts: How often the read loop ended by something unexpected and was begun anew.
    """

    def __init__(self) -> None:
        super().__init__()
        self._ps = WireParser(self)
        self.restarts = 0
        self._closing: asyncio.Task[None] | None = None
        self._refusals: dict[str, list[asyncio.Future[None]]] = {}
        self._takers: dict[int, Callable[[bytes, bytes], None]] = {}

    @contextlib.contextmanager
    def refusal(self, subject: str) -> Iterator[asyncio.Future[None]]:
        """What is done once the server says that this user may not publish to the subject.

        A server answers such a request nothing: without this it is waited for in vain.
        """
        refused = asyncio.get_running_loop().create_future()
        waiting = self._refusals.setdefault(subject.lower(), [])
        waiting.append(refused)
        try:
            yield refused
        finally:
            refused.cancel()
            waiting.remove(refused)
            if not waiting:
                self._refusals.pop(subject.lower(), None)

    @property
    def is_reading(self) -> bool:
        """Whether the loop lives that reads what the server sends."""
        task = self._reading_task
        return self.is_connected and task is not None and not task.done()

    async def publish_verbatim(
        self, subject: str | bytes, reply: str, headers: bytes, payload: bytes
    ) -> None:
        """Publish with a header block as it stands; empty for none.

        Args:
            subject: Bytes, or text in which bytes that are not UTF-8 stand as lone surrogates (PEP 383).

        Raises:
            nats.errors.Error: The connection is closed or away, or headers and payload are too large.
        """
        if self.is_closed:
            raise errors.ConnectionClosedError
        if not self.is_connected and self._max_pending_size <= 0:
            raise errors.OutboundBufferLimitError
        if len(headers) + len(payload) > self.max_payload:
            raise errors.MaxPayloadError
        where = subject.encode("utf-8", "surrogateescape") if isinstance(subject, str) else subject
        operation, sizes = b"PUB", b"%d" % len(payload)
        if headers:
            operation, sizes = b"HPUB", b"%d %d" % (len(headers), len(headers) + len(payload))
        line = b"%s %s %s %s\r\n" % (operation, where, reply.encode(), sizes)
        self.stats["out_msgs"] += 1
        self.stats["out_bytes"] += len(payload)
        await self._send_command(b"".join((line, headers, payload, b"\r\n")))
        if self._flush_queue is not None and self._flush_queue.empty():
            await self._flush_pending()

    async def take(self, subject: str, taker: Callable[[bytes, bytes], None]) -> Subscription:
        """Subscribe to short answers, each taken as it is read: its subject and its payload, no headers.

        nats-py makes a message of each and hands it to a task through a queue, which for an acknowledgement
        is most of its cost. `taker` is called in the read loop, so it must be quick.

        Raises:
            nats.errors.Error: The connection is closed or away.
        """
        subscription = await self.subscribe(subject)
        self._takers[subscription._id] = taker
        return subscription

    async def _process_msg(self, sid: int, subject: bytes, reply: bytes, data: bytes, headers: bytes) -> None:
        taker = self._takers.get(sid)
        if taker is None:
            await super()._process_msg(sid, subject, reply, data, headers)
        else:
            taker(subject, data)

    def _remove_sub(self, sid: int, max_msgs: int = 0) -> None:
        self._takers.pop(sid, None)
        super()._remove_sub(sid, max_msgs)

    async def _send_publish(
        self, subject: str, reply: str, payload: bytes, payload_size: int, headers: dict[str, Any] | None
    ) -> None:
        # The server counts headers, too, and closes a client that sends more: for good, as nats-py has it.
        if headers:
            lines = sum(len(k) + len(v.encode()) + 4 for k, v in headers.items())
            if payload_size + lines + len(VERSION) + 4 > self._max_payload:
                raise errors.MaxPayloadError
        await super()._send_publish(subject, reply, payload, payload_size, headers)

    async def _process_headers(self, headers: bytes | None) -> Headers | None:
        return read_headers(headers) if headers else None

    def _build_message(
        self, sid: int, subject: bytes, reply: bytes, data: bytes, headers: dict[str, str] | None
    ) -> Message:
        return Message(
            _client=self,
            subject=readable(subject),
            reply=readable(reply),
            data=data,
            headers=headers,
            _sid=sid,
            raw_subject=subject,
            raw_headers=headers.raw if isinstance(headers, Headers) else b"",
        )

    async def _process_info(self, info: dict[str, Any], initial_connection: bool = False) -> None:
        # What a server says first is not yet protected: whoever sits between could take the word out.
        server = self._current_server
        is_promised = server is not None and server.uri.scheme == "tls"
        if initial_connection and is_promised and not info.get("tls_required"):
            raise errors.SecureConnRequiredError
        await super()._process_info(info, initial_connection)

    async def _process_pong(self) -> None:
        if self._pongs:
            waiting = self._pongs.pop(0)
            if not waiting.done():
                waiting.set_result(True)
        self._pongs_received += 1
        self._pings_outstanding = 0

    async def _process_err(self, err_msg: str) -> None:
        refused = _REFUSED_PUBLISH.search(err_msg.lower())
        for waiting in self._refusals.get(refused.group(1), ()) if refused else ():
            if not waiting.done():
                waiting.set_result(None)
        if any(told in err_msg for told in _ONLY_TOLD):
            self._err = errors.Error(f"nats: {err_msg}")
            await self._error_cb(self._err)
            return
        if STALE_CONNECTION in err_msg:
            await super()._process_err(err_msg)
            return
        if AUTHORIZATION_VIOLATION in err_msg:
            self._err = errors.AuthorizationError()
        else:
            self._err = errors.Error(f"nats: {err_msg.strip(chr(39))}")
        self._closing = asyncio.create_task(self._close(Client.CLOSED, not self.is_connecting))

    async def _close(self, status: int, do_cbs: bool = True) -> None:
        was_closed = self.is_closed
        try:
            await super()._close(status, do_cbs)
        except (Exception, asyncio.CancelledError) as error:
            # The socket died under it, perhaps as a cancellation; who waits for the end is told all the same.
            task = asyncio.current_task()
            if isinstance(error, asyncio.CancelledError) and (task is None or task.cancelling()):
                raise
            _log.warning("nats.close_cut_short", error=type(error).__name__)
            if self._transport is not None:
                self._transport.close()  # type: ignore[no-untyped-call]
            self._subs.clear()
            if do_cbs and not was_closed:
                for told in (self._disconnected_cb, self._closed_cb):
                    if told is not None:
                        await told()

    async def _read_loop(self) -> None:
        try:
            while self._transport is not None and not (self.is_closed or self.is_reconnecting):
                if self._transport.at_eof():
                    raise errors.UnexpectedEOF
                await self._ps.parse(await self._transport.read(READ_BYTES))
        except asyncio.CancelledError:
            return
        except Exception as error:
            if not isinstance(error, OSError | errors.UnexpectedEOF):
                _log.error(
                    "nats.read_loop_restarts", error=type(error).__name__, detail=str(error.args)[:200]
                )
            self.restarts += 1
            await self._error_cb(error)
            await self._process_op_err(error)

    async def _attempt_reconnect(self) -> None:
        while True:
            try:
                await super()._attempt_reconnect()
                return
            except Exception as error:
                _log.error("nats.reconnect_failed", error=type(error).__name__, detail=str(error)[:200])
                if self.is_closed:
                    return
                self._status = nats_client.Client.RECONNECTING
                await asyncio.sleep(self.options["reconnect_time_wait"])

    async def _process_connect_init(self) -> None:
        # A reconnect that failed half-way leaves loops of the connection before, which would read on.
        for task in (self._reading_task, self._ping_interval_task, self._flusher_task):
            if task is not None and not task.done() and task is not asyncio.current_task():
                task.cancel()
        self._ps.reset()
        await super()._process_connect_init()


_C = TypeVar("_C", bound=Client)


async def connect(options: dict[str, Any], kind: type[_C], *, timeout_seconds: float = 30) -> _C:
    """A connected client of this kind; `options` as `nats.connect` takes them.

    Raises:
        nats.errors.Error, OSError, TimeoutError: No server answers.
    """
    client = kind()
    try:
        await asyncio.wait_for(client.connect(**options), timeout_seconds)
    except BaseException:
        await discard(client)
        raise
    return client


async def discard(client: Client) -> None:
    """Close a client that never got to be connected, its socket with it; nothing is told."""
    if client._transport is not None:
        client._transport.close()  # type: ignore[no-untyped-call]
    client._status = nats_client.Client.CLOSED
    for task in (client._reading_task, client._ping_interval_task, client._flusher_task):
        if task is not None:
            task.cancel()
