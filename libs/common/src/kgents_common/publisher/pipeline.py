"""Publishing to JetStream with many acknowledgements under way at once; every call ends, stored or not.

nats-py's own `publish_async` leaves futures pending for ever when a server dies between the send and the
acknowledgement. Here every publish has a deadline. A message whose fate is unknown may still be stored: send
it again under the same `message_id`.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Mapping, Sequence
from datetime import timedelta
from typing import Self

import msgspec
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription
from nats.errors import Error as NatsError
from nats.errors import MaxPayloadError

from kgents_common.connection import Connection
from kgents_common.envelope import Envelope
from kgents_common.errors import KgentsError, NotDurableError, PermanentError, TransientError
from kgents_common.publisher.message_id import MessageIds
from kgents_common.resilience import CircuitBreaker

MESSAGE_ID = "Nats-Msg-Id"
EXPECTED_LAST_SUBJECT_SEQUENCE = "Nats-Expected-Last-Subject-Sequence"
# JetStream's err_code for "wrong last sequence" (nats-server server/errors.json).
WRONG_LAST_SEQUENCE = 10071
# Those for a message, or its headers (64 KiB), larger than the stream ever takes.
TOO_LARGE = (10054, 10097)
# Headers are cut off from the 1 MiB a server takes for headers and payload together; a client that sends
# more is closed by the server for good.
MAX_HEADER_BYTES = 64 * 1024
SWEEP_SECONDS = 0.1


class AlreadyThereError(PermanentError):
    """The subject already holds a message although none was expected."""


class Ack(msgspec.Struct, frozen=True, gc=False):
    """JetStream's word that a message is stored.

    Attributes:
        duplicate: The stream already held this `Nats-Msg-Id`; `seq` is the first one's.
    """

    stream: str
    seq: int
    duplicate: bool


class Message(msgspec.Struct, frozen=True, gc=False):
    """What is published: where, what, under which identity, and with which headers beside it."""

    subject: str
    body: bytes
    message_id: str
    headers: Mapping[str, str]

    @classmethod
    def of(cls, event: Envelope, headers: Mapping[str, str], ids: MessageIds) -> Self:
        """An event of AGENTESE under an id that only its publisher can make."""
        return cls(event.subject, event.body, ids.of(event), headers)


class _Reply(msgspec.Struct):
    stream: str = ""
    seq: int = 0
    duplicate: bool = False
    error: _Error | None = None


class _Error(msgspec.Struct):
    code: int = 0
    err_code: int = 0
    description: str = ""


_REPLY = msgspec.json.Decoder(_Reply)


class Publisher:
    """Pipelines publishes over one connection.

    Args:
        connection: Where to; may be down.
        timeout: How long to wait for an acknowledgement.
        max_in_flight: More than this many unacknowledged messages are refused at once.
        breaker: Told of every outcome; open, it refuses at once.
    """

    def __init__(
        self,
        connection: Connection,
        *,
        timeout: timedelta = timedelta(seconds=4),
        max_in_flight: int = 8192,
        breaker: CircuitBreaker | None = None,
    ) -> None:
        self._connection = connection
        self._timeout = timeout.total_seconds()
        self._max_in_flight = max_in_flight
        self.breaker = breaker or CircuitBreaker("nats", threshold=10, window=20)
        # The future, its deadline, and whether it is the circuit's probe; in the order of deadlines.
        self._pending: dict[str, tuple[asyncio.Future[Ack], float, bool]] = {}
        self._sent = 0
        self._inbox = ""
        self._subscription: Subscription | None = None
        self._sweeper: asyncio.Task[None] | None = None
        self._subscribing = asyncio.Lock()

    @property
    def in_flight(self) -> int:
        """Messages sent and not yet acknowledged."""
        return len(self._pending)

    async def start(self) -> None:
        """Begin to sweep; the inbox is subscribed with the first publish."""
        self._sweeper = asyncio.create_task(self._sweep(), name="publisher.sweep")

    async def stop(self) -> None:
        """Wait for what is in flight, within the publish timeout, then let go of the inbox."""
        if self._pending:
            await asyncio.wait({entry[0] for entry in self._pending.values()}, timeout=self._timeout + 1)
        if self._sweeper is not None:
            self._sweeper.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._sweeper
        if self._subscription is not None:
            with contextlib.suppress(Exception):
                await self._subscription.unsubscribe()

    async def publish(
        self,
        subject: str,
        payload: bytes,
        *,
        message_id: str,
        headers: Mapping[str, str] | None = None,
    ) -> Ack:
        """Store one message and wait until JetStream says it is.

        Raises:
            NotDurableError: Not acknowledged: no server, no stream, a full stream, or no answer in time.
            AlreadyThereError: The headers expected an empty subject and it is not.
            PermanentError: Headers and payload together are more than the server takes.
            CircuitOpenError: A NotDurableError's cause happened too often lately.
        """
        future = await self.send(subject, payload, message_id=message_id, headers=headers)
        ack = await future
        # A server up to 2.10 knows the message's id before it looks at the subject.
        if ack.duplicate and headers is not None and headers.get(EXPECTED_LAST_SUBJECT_SEQUENCE) == "0":
            raise AlreadyThereError("the subject already holds a message")
        return ack

    async def publish_all(self, messages: Sequence[Message]) -> list[Ack | KgentsError]:
        """Send all, then await all: for each, in order, its acknowledgement or one of `publish`'s errors.

        After one that could not be sent for a while, the rest are not tried: they would meet the same.
        """
        if len(messages) == 1:
            try:
                return [await (await self._send_message(messages[0]))]
            except KgentsError as error:
                return [error]
        sent: list[asyncio.Future[Ack] | KgentsError] = []
        for message in messages:
            try:
                sent.append(await self._send_message(message))
            except PermanentError as error:
                sent.append(error)
            except TransientError as error:
                sent += [error] * (len(messages) - len(sent))
                break
        waiting = [future for future in sent if isinstance(future, asyncio.Future)]
        acks = iter(await asyncio.gather(*waiting, return_exceptions=True))
        outcomes: list[Ack | KgentsError] = []
        for future in sent:
            outcome = next(acks) if isinstance(future, asyncio.Future) else future
            if not isinstance(outcome, Ack | KgentsError):
                raise outcome
            outcomes.append(outcome)
        return outcomes

    def _send_message(self, message: Message) -> Awaitable[asyncio.Future[Ack]]:
        return self.send(
            message.subject, message.body, message_id=message.message_id, headers=message.headers
        )

    async def send(
        self,
        subject: str,
        payload: bytes,
        *,
        message_id: str,
        headers: Mapping[str, str] | None = None,
    ) -> asyncio.Future[Ack]:
        """Send one message; the future is its acknowledgement or one of `publish`'s errors.

        For batches: send them all, then await them all.

        Raises:
            NotDurableError: It could not be sent at all.
        """
        is_probe = self.breaker.admit()
        try:
            return await self._send(subject, payload, message_id, headers, is_probe)
        except asyncio.CancelledError:
            self.breaker.release(is_probe)
            raise
        except NotDurableError:
            self.breaker.failed(is_probe)
            raise
        except PermanentError:
            self.breaker.release(is_probe)
            raise

    async def _send(
        self, subject: str, payload: bytes, message_id: str, headers: Mapping[str, str] | None, is_probe: bool
    ) -> asyncio.Future[Ack]:
        client = self._connection.client
        if self._subscription is None:
            await self._subscribe()
        if len(self._pending) >= self._max_in_flight:
            raise NotDurableError("nats: too many messages await their acknowledgement")
        all_headers = {**headers, MESSAGE_ID: message_id} if headers else {MESSAGE_ID: message_id}
        if len(payload) > client.max_payload - MAX_HEADER_BYTES:  # else there is room for any headers of ours
            size = len(payload) + sum(len(k) + len(v) + 4 for k, v in all_headers.items()) + 12
            if size > client.max_payload:
                raise PermanentError(
                    f"headers and payload are {size} bytes; the server takes {client.max_payload}"
                )
        self._sent += 1
        token = str(self._sent)
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Ack] = loop.create_future()
        self._pending[token] = (future, loop.time() + self._timeout, is_probe)
        try:
            await client.publish(subject, payload, reply=self._inbox + token, headers=all_headers)
        except MaxPayloadError as error:
            self._pending.pop(token, None)
            raise PermanentError(f"headers and payload are more than {client.max_payload} bytes") from error
        except (NatsError, OSError, ValueError) as error:
            self._pending.pop(token, None)
            raise NotDurableError(f"nats: {type(error).__name__}") from error
        except asyncio.CancelledError:
            self._pending.pop(token, None)
            raise
        return future

    async def _subscribe(self) -> None:
        async with self._subscribing:
            if self._subscription is None:
                client = self._connection.client
                inbox = client.new_inbox() + "."
                try:
                    self._subscription = await client.subscribe(
                        inbox + "*", cb=self._answered, pending_msgs_limit=-1, pending_bytes_limit=-1
                    )
                except (NatsError, OSError) as error:
                    raise NotDurableError(f"nats: {type(error).__name__}") from error
                self._inbox = inbox

    async def _answered(self, message: Msg) -> None:
        entry = self._pending.pop(message.subject.rpartition(".")[2], None)
        if entry is not None:
            self._settle(entry, _read(message.data))

    def _settle(self, entry: tuple[asyncio.Future[Ack], float, bool], outcome: Ack | KgentsError) -> None:
        """Tell the circuit, and whoever still waits."""
        future, _, is_probe = entry
        if isinstance(outcome, NotDurableError):
            self.breaker.failed(is_probe)
        else:
            self.breaker.succeeded(is_probe)
        if future.done():  # nobody waits any more
            return
        if isinstance(outcome, Ack):
            future.set_result(outcome)
        else:
            future.set_exception(outcome)

    async def _sweep(self) -> None:
        """Fail what has waited too long; entries are in the order of their deadlines."""
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(SWEEP_SECONDS)
            now = loop.time()
            late: list[str] = []
            for token, (_, deadline, _) in self._pending.items():
                if deadline > now:
                    break
                late.append(token)
            for token in late:
                self._settle(
                    self._pending.pop(token),
                    NotDurableError("nats: no acknowledgement in time", may_be_stored=True),
                )


def _read(data: bytes) -> Ack | KgentsError:
    """What JetStream said."""
    if not data:  # a bare 503 status: nobody listens on this subject
        return NotDurableError("nats: no stream takes this subject")
    try:
        reply = _REPLY.decode(data)
    except msgspec.DecodeError:
        return NotDurableError("nats: an acknowledgement could not be read", may_be_stored=True)
    if reply.error is None:
        return Ack(reply.stream, reply.seq, reply.duplicate)
    if reply.error.err_code == WRONG_LAST_SEQUENCE:
        return AlreadyThereError("the subject already holds a message")
    if reply.error.err_code in TOO_LARGE:
        return PermanentError(f"jetstream: {reply.error.description} ({reply.error.err_code})")
    return NotDurableError(f"jetstream: {reply.error.description} ({reply.error.err_code})")
