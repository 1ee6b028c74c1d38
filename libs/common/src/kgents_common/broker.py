"""FastStream on NATS with the guard rails that its defaults lack; it handles no message itself.

What FastStream 0.7 does by default and we do not want, with what is done instead:

- an exception terminates the whole batch: acknowledgement is manual, and handlers get raw messages;
- a batch is collected for up to 5 s: 0.05 s;
- its fetch, nats-py's, takes a message with a header named `Status` for a status: `pull` does it;
- streams and consumers are declared, and existing ones changed, by a subscriber: declared by their one owner;
- a consumer deleted behind its back leaves a worker that spins and handles nothing: a watchdog puts it back;
- a client closed for good leaves a process that ignores SIGTERM: the process exits.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import Any

import structlog
from faststream import AckPolicy
from faststream.nats import JStream, NatsBroker, NatsMessage, PullSub
from nats.aio.msg import Msg
from nats.errors import Error as NatsError
from nats.errors import TimeoutError as NatsTimeoutError
from nats.js import JetStreamContext
from nats.js.api import ConsumerConfig

from kgents_common import streams
from kgents_common.clock import Clock, SystemClock
from kgents_common.connection import EXIT_CLOSED_FOR_GOOD, Client, Connection, connect_options
from kgents_common.errors import KgentsError
from kgents_common.pull import End, Pull
from kgents_common.settings import ServiceSettings
from kgents_common.streams import ConsumerSpec, JetStreamApiError

BatchHandler = Callable[[list[Msg]], Awaitable[None]]

COLLECT_SECONDS = 0.05
# How long one request waits for a message; a consumer that was deleted meanwhile is noticed after it.
LINGER = timedelta(seconds=2)
# How long after a request that could not be answered the next is sent.
PAUSE_SECONDS = 0.2
# What one batch may hold; never less than two of the largest messages a server takes.
BATCH_BYTES = 16 * 1024 * 1024
WATCH_SECONDS = 1.0

_log = structlog.get_logger()


class Broker:
    """A FastStream broker whose consumers stay alive; start it once the streams exist.

    Args:
        on_closed: Called when the client closed for good without being asked; ends the process.
    """

    def __init__(
        self,
        settings: ServiceSettings,
        *,
        name: str,
        on_closed: Callable[[], None] = lambda: os._exit(EXIT_CLOSED_FOR_GOOD),
    ) -> None:
        self._stopping = False
        self._subscribers: list[Any] = []

        async def closed() -> None:
            if not self._stopping:
                _log.critical("broker.closed_for_good", hint="the process exits and is started anew")
                on_closed()

        async def failed(error: Exception) -> None:
            _log.warning("broker.error", error=type(error).__name__)

        options = connect_options(settings, name, {"closed_cb": closed, "error_cb": failed})
        self._faststream = _Frame(
            **options,
            graceful_timeout=settings.drain_seconds,
            logger=logging.getLogger("faststream.broker"),
        )

    def subscribe(self, consumer: ConsumerSpec, handler: BatchHandler, *, batch_size: int = 500) -> None:
        """Bind a handler to a durable consumer; before `start`.

        The handler gets up to `batch_size` raw messages, in stream order, one batch at a time, and owns how
        each ends (see `delivery`). What it raises is logged; the unacknowledged come again after `ack_wait`.
        """
        subscriber = self._faststream.subscriber(
            consumer.filter_subject,
            stream=JStream(consumer.stream, declare=False),
            durable=consumer.name,
            config=ConsumerConfig(durable_name=consumer.name),
            pull_sub=PullSub(batch_size=batch_size, timeout=COLLECT_SECONDS, batch=True),
            ack_policy=AckPolicy.MANUAL,
            decoder=_undecoded,
            title=consumer.name,
        )

        async def handle(message: NatsMessage) -> None:
            await handler(message.raw_message)  # type: ignore[arg-type]  # a batch's raw message is the list

        subscriber(handle)
        self._subscribers.append(subscriber)

    async def start(self) -> None:
        """Connect and consume.

        Raises:
            nats.js.errors.NotFoundError: A consumer does not exist.
        """
        await self._faststream.start()

    async def stop(self) -> None:
        """Let the running handlers end, within the drain time, then close."""
        self._stopping = True
        try:
            await self._faststream.stop()
        except (NatsError, OSError) as error:  # a server that is away cannot be told goodbye
            _log.info("broker.stopped_alone", error=type(error).__name__)


class _Frame(NatsBroker):
    """FastStream's broker on our client."""

    async def _connect(self) -> Client:
        client = _WorkerClient()
        await client.connect(**self._connection_kwargs, skip_subject_validation=True)
        self.config.connect(client)
        return client


class _WorkerClient(Client):
    """Our client, whose pull subscriptions are `Pull`s."""

    def jetstream(self, **options: Any) -> JetStreamContext:
        """A context for FastStream's subscribers."""
        return _Context(self, **options)


class _Context(JetStreamContext):
    """Subscribes durable consumers that exist; it makes none."""

    def __init__(self, client: Client, **options: Any) -> None:
        super().__init__(client, **options)
        self._client = client

    async def pull_subscribe(  # type: ignore[override]
        self,
        subject: str,  # noqa: ARG002 the consumer has its filter
        durable: str | None = None,
        stream: str | None = None,
        **_: Any,
    ) -> _Fetching:
        """As nats-py's.

        Raises:
            nats.js.errors.NotFoundError: There is no such consumer.
        """
        assert durable is not None  # noqa: S101 `Broker.subscribe` names both
        assert stream is not None  # noqa: S101
        await self.consumer_info(stream, durable)
        pull = Pull(self._client, stream, durable)
        await pull.start()
        return _Fetching(pull, self._client)


class _Fetching:
    """A pull subscription as FastStream's batch subscriber uses it.

    No request outlasts a fetch, so that nothing waits here, unacknowledged, while the handler is busy: one
    asks for what is there; where nothing is, one waits for a single message; what came after it is then
    collected for a moment.
    """

    def __init__(self, pull: Pull, client: Client) -> None:
        self._pull = pull
        self._client = client
        self._is_over = False

    async def fetch(self, batch: int = 1, timeout: float | None = None) -> list[Msg]:  # noqa: ARG002 see LINGER
        """The next messages, in order.

        Raises:
            nats.errors.TimeoutError: There is none, or JetStream did not answer.
        """
        found: list[Msg] = []
        is_answered = False
        try:
            await self._request(found, batch, None)
            if not found:
                await self._request(found, 1, LINGER)
            if found and len(found) < batch and not self._is_over:
                await asyncio.sleep(COLLECT_SECONDS)
                await self._request(found, batch - len(found), None)
            is_answered = self._pull.end is not End.LOST
        except (NatsError, OSError) as error:
            _log.debug("broker.not_pulling", error=type(error).__name__)
        if self._is_over:  # FastStream drops what comes now; let another have it at once
            await _give_back(found)
            raise NatsTimeoutError
        if not found:
            if not is_answered:
                await asyncio.sleep(PAUSE_SECONDS)
            raise NatsTimeoutError
        return found

    async def unsubscribe(self) -> None:
        """End; what was not handed on is given back."""
        self._is_over = True
        await _give_back([message for message, _ in self._pull.take()])
        await self._pull.stop()

    async def _request(self, found: list[Msg], batch: int, expires: timedelta | None) -> None:
        await self._pull.ask(batch, expires=expires, max_bytes=max(BATCH_BYTES, 2 * self._client.max_payload))
        await self._pull.whole()
        found += [message for message, _ in self._pull.take(batch)]


async def _give_back(messages: list[Msg]) -> None:
    for message in messages:
        with contextlib.suppress(NatsError, OSError):
            await message.nak()


async def _undecoded(message: Any) -> Any:
    """Leave every payload as bytes: one undecodable message must not take its batch with it."""
    return message.raw_message


class Watchdog:
    """Puts back a durable consumer that was deleted, where it stood, and knows whether it is alive.

    Acknowledgements above the floor are not in the floor: such messages come again, and keys make that
    harmless.
    """

    def __init__(self, connection: Connection, consumer: ConsumerSpec, clock: Clock | None = None) -> None:
        self._connection = connection
        self._consumer = consumer
        self._clock = clock or SystemClock()
        self._seen_at: float | None = None
        self._first_seen = asyncio.Event()
        self._floor = 0
        self._epoch = ""
        self._created = ""
        self._pending = 0
        self._task: asyncio.Task[None] | None = None

    @property
    def pending(self) -> int:
        """Messages not yet delivered or not yet acknowledged, as last seen."""
        return self._pending

    @property
    def floor(self) -> int:
        """Up to which sequence of the stream everything was acknowledged, as last seen."""
        return self._floor

    @property
    def epoch(self) -> str:
        """When the stream was created, as the server says it (RFC 3339); empty before the first look.

        Sequences start again when a stream is made anew: they mean something only within an epoch.
        """
        return self._epoch

    @property
    def is_alive(self) -> bool:
        """Whether the consumer was seen in the last ten seconds."""
        return self._seen_at is not None and self._clock.monotonic() - self._seen_at < 10 * WATCH_SECONDS

    async def start(self) -> None:
        """Begin to watch."""
        self._task = asyncio.create_task(self._watch(), name=f"watchdog.{self._consumer.name}")

    async def stop(self) -> None:
        """Stop watching."""
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task

    async def wait(self, timeout: timedelta | None = None) -> None:
        """Until the consumer was seen for the first time.

        Raises:
            TimeoutError: Not within `timeout`.
        """
        async with asyncio.timeout(timeout.total_seconds() if timeout else None):
            await self._first_seen.wait()

    async def look(self) -> None:
        """One look; restores the consumer where its stream is there and it is not.

        Raises:
            KgentsError: JetStream does not answer, or the stream is missing.
        """
        client = self._connection.client
        spec = self._consumer
        try:
            info = await streams.request(client, f"CONSUMER.INFO.{spec.stream}.{spec.name}")
        except JetStreamApiError as error:
            if error.code != 404:
                raise
            stream = await streams.request(client, f"STREAM.INFO.{spec.stream}")
            # A stream that was made anew counts from 1 again: an old floor would skip its first messages.
            is_same = stream["created"] == self._epoch
            start = self._floor + 1 if is_same else 1
            await streams.recreate_consumer(client, spec, start_sequence=start)
            _log.warning("watchdog.consumer_recreated", consumer=spec.name, start_sequence=start)
            return
        if info["created"] != self._created or not self._epoch:
            self._epoch = (await streams.request(client, f"STREAM.INFO.{spec.stream}"))["created"]
            self._created = info["created"]
        self._floor = info["ack_floor"]["stream_seq"]
        self._pending = info["num_pending"] + info["num_ack_pending"]
        self._seen_at = self._clock.monotonic()
        self._first_seen.set()

    async def _watch(self) -> None:
        while True:
            try:
                await self.look()
            except KgentsError as error:
                _log.warning("watchdog.cannot_look", consumer=self._consumer.name, error=str(error))
            await asyncio.sleep(WATCH_SECONDS)


class Ready:
    """Waits, as a part, until NATS is there and the consumers are seen: nothing can be consumed before."""

    def __init__(self, connection: Connection, *watchdogs: Watchdog) -> None:
        self._connection = connection
        self._watchdogs = watchdogs

    async def start(self) -> None:
        """Wait."""
        await self._connection.wait()
        for watchdog in self._watchdogs:
            await watchdog.wait()

    async def stop(self) -> None:
        """Nothing to end."""
