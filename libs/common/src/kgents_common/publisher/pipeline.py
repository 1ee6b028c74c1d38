"""Publishing to JetStream with many acknowledgements under way at once; every call ends, stored or not.

nats-py's own `publish_async` leaves futures pending for ever when a server dies between the send and the
acknowledgement. Here every publish has a deadline. A message whose fate is unknown may still be stored: send
it again under the same `message_id`.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Self

import msgspec
from nats.aio.subscription import Subscription
from nats.errors import BadHeaderError, MaxPayloadError
from nats.errors import Error as NatsError

from kgents_common.cancelling import cancelled
from kgents_common.connection import Connection, header_block, header_line
from kgents_common.envelope import Envelope
from kgents_common.errors import KgentsError, NotDurableError, PermanentError, TransientError
from kgents_common.publisher.acknowledgement import Ack, AlreadyThereError, read
from kgents_common.publisher.message_id import MessageIds
from kgents_common.resilience import CircuitBreaker

MESSAGE_ID = "Nats-Msg-Id"
EXPECTED_LAST_SUBJECT_SEQUENCE = "Nats-Expected-Last-Subject-Sequence"
SWEEP_SECONDS = 0.1


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
        self._loop: asyncio.AbstractEventLoop
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
        await cancelled(self._sweeper)
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
            one = messages[0]
            try:
                return [await (await self._send(one, _lines(one.headers)))]
            except KgentsError as error:
                return [error]
        sent: list[asyncio.Future[Ack] | KgentsError] = []
        headers, lines = None, b""
        for message in messages:
            try:
                if message.headers is not headers:  # the messages of a batch have theirs in common
                    headers, lines = message.headers, _lines(message.headers)
                sent.append(await self._send(message, lines))
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
        headers = headers or {}
        return await self._send(Message(subject, payload, message_id, headers), _lines(headers))

    async def _send(self, message: Message, lines: bytes) -> asyncio.Future[Ack]:
        """Send a message whose headers are these lines, as far as the circuit lets it."""
        is_probe = self.breaker.admit()
        try:
            return await self._put(message, lines, is_probe)
        except asyncio.CancelledError:
            self.breaker.release(is_probe)
            raise
        except NotDurableError:
            self.breaker.failed(is_probe)
            raise
        except PermanentError:
            self.breaker.release(is_probe)
            raise

    async def _put(self, message: Message, lines: bytes, is_probe: bool) -> asyncio.Future[Ack]:
        client = self._connection.client
        if self._subscription is None:
            await self._subscribe()
        if len(self._pending) >= self._max_in_flight:
            raise NotDurableError("nats: too many messages await their acknowledgement")
        self._sent += 1
        token = str(self._sent)
        future: asyncio.Future[Ack] = self._loop.create_future()
        self._pending[token] = (future, self._loop.time() + self._timeout, is_probe)
        try:
            # Of a name given twice the server reads the first.
            headers = header_block(header_line(MESSAGE_ID, message.message_id), lines)
            await client.publish_verbatim(message.subject, self._inbox + token, headers, message.body)
        except MaxPayloadError as error:
            self._pending.pop(token, None)
            raise PermanentError(
                f"headers and payload are more than the {client.max_payload} bytes that the server takes"
            ) from error
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
                # Once, as CPython 3.11 asks the kernel each time.
                self._loop = asyncio.get_running_loop()
                inbox = client.new_inbox() + "."
                try:
                    self._subscription = await client.take(inbox + "*", self._answered)
                except (NatsError, OSError) as error:
                    raise NotDurableError(f"nats: {type(error).__name__}") from error
                self._inbox = inbox

    def _answered(self, subject: bytes, payload: bytes) -> None:
        entry = self._pending.pop(subject.rpartition(b".")[2].decode(), None)
        if entry is not None:
            self._settle(entry, read(payload))

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


def _lines(headers: Mapping[str, str]) -> bytes:
    """The headers as lines of a block.

    Raises:
        PermanentError: They can never be sent.
    """
    try:
        return b"".join(header_line(name, value) for name, value in headers.items())
    except (BadHeaderError, UnicodeEncodeError) as error:
        raise PermanentError(f"nats: these headers cannot be sent: {error}") from error
