"""FastStream on NATS with the guard rails that its defaults lack; it handles no message itself.

What FastStream 0.7 does by default and we do not want, with what is done instead:

- an exception terminates the whole batch: acknowledgement is manual, and handlers get raw messages;
- a batch is collected for up to 5 s: 0.05 s;
- its fetch, nats-py's, takes a message with a header named `Status` for a status: `pull` does it;
- streams and consumers are declared, and existing ones changed, by a subscriber: declared by their one owner;
- a stop of the handlers' part leaves it pulling what nobody takes any more: `Intake` ends first;
- a consumer deleted behind its back leaves a worker that spins and handles nothing: a watchdog puts it back;
- a client closed for good leaves a process that ignores SIGTERM: the process exits.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import os
from collections.abc import Awaitable, Callable, Iterator
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

from kgents_common.connection import EXIT_CLOSED_FOR_GOOD, Client, connect_options
from kgents_common.pull import End, Pull
from kgents_common.settings import ServiceSettings
from kgents_common.streams import ConsumerSpec

BatchHandler = Callable[[list[Msg]], Awaitable[None]]

COLLECT_SECONDS = 0.05
# How long one request waits for a message; a consumer that was deleted meanwhile is noticed after it.
LINGER = timedelta(seconds=2)
# How long a stop waits for the answer to a request of what is there: it is on its way.
LAST_ANSWER_SECONDS = 1.0
# How long after a request that could not be answered the next is sent.
PAUSE_SECONDS = 0.2
# What one batch may hold; never less than two of the largest messages a server takes.
BATCH_BYTES = 16 * 1024 * 1024

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
        self._subscriptions: list[Subscription] = []

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

    def subscribe(
        self, consumer: ConsumerSpec, handler: BatchHandler, *, batch_size: int = 500
    ) -> Subscription:
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

        made = Subscription(subscriber)
        self._subscriptions.append(made)

        async def handle(message: NatsMessage) -> None:
            with made.holding():
                await handler(message.raw_message)  # type: ignore[arg-type]  # a batch's raw message is the list

        subscriber(handle)
        return made

    async def start(self) -> None:
        """Connect and consume.

        Raises:
            nats.js.errors.NotFoundError: A consumer does not exist.
        """
        await self._faststream.start()

    async def take_no_more(self) -> None:
        """Pull nothing any more; what handlers have in hand can still be acknowledged. A stop follows."""
        for subscription in self._subscriptions:
            await subscription.take_no_more()

    async def stop(self) -> None:
        """Let the running handlers end, within the drain time, then close."""
        self._stopping = True
        try:
            await self._faststream.stop()
        except (NatsError, OSError) as error:  # a server that is away cannot be told goodbye
            _log.info("broker.stopped_alone", error=type(error).__name__)


class Intake:
    """A part that starts after the handlers' and so stops before them.

    While they finish, a broker that went on would fetch and give back the same messages again and again, each
    time a delivery more, and how often a message was delivered decides when it is set aside.
    """

    def __init__(self, broker: Broker) -> None:
        self._broker = broker

    async def start(self) -> None:
        """Nothing: the broker began by itself."""

    async def stop(self) -> None:
        """Take no more."""
        await self._broker.take_no_more()


class Subscription:
    """One consumer's pulling in this process: whether it goes on, and how it is begun anew."""

    def __init__(self, subscriber: Any) -> None:
        self._subscriber = subscriber
        self._held = 0
        self._is_over = False

    @property
    def quiet_seconds(self) -> float:
        """How long ago JetStream last answered, with messages or with none; 0 while a batch is in hand."""
        fetching: _Fetching | None = self._subscriber.subscription
        return fetching.quiet_seconds if fetching is not None and not self._held else 0.0

    @contextlib.contextmanager
    def holding(self) -> Iterator[None]:
        """While the body runs, a batch is in the handler's hands."""
        self._held += 1
        try:
            yield
        finally:
            self._held -= 1
            if self._subscriber.subscription is not None:
                self._subscriber.subscription.note_turn()

    async def restart(self) -> None:
        """Pull anew, through another inbox; where FastStream's loop is gone, that is begun anew, too.

        A batch that the handler has in hand is left to it.

        Raises:
            nats.errors.Error, OSError: The server does not answer.
        """
        if self._held or self._is_over or not self._subscriber.running:
            return
        fetching: _Fetching | None = self._subscriber.subscription
        if fetching is not None and any(not task.done() for task in self._subscriber.tasks):
            await fetching.renew()
            return
        await self._subscriber.stop()
        await self._subscriber.start()

    async def take_no_more(self) -> None:
        """Give back what no handler has yet, and pull nothing any more."""
        self._is_over = True
        if self._subscriber.subscription is not None:
            await self._subscriber.subscription.unsubscribe()


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
        fetching = _Fetching(self._client, stream, durable)
        await fetching.renew()
        return fetching


class _Fetching:
    """A pull subscription as FastStream's batch subscriber uses it.

    No request outlasts a fetch, so that nothing waits here, unacknowledged, while the handler is busy: one
    asks for what is there; where nothing is, one waits for a single message; what came after it is then
    collected for a moment.
    """

    def __init__(self, client: Client, stream: str, consumer: str) -> None:
        self._client = client
        self._make = functools.partial(Pull, client, stream, consumer)
        self._pull = self._make()
        self._over = asyncio.Event()
        self._fetched: list[Msg] = []
        self._is_prompt = False
        self._now = asyncio.get_running_loop().time
        self._turned_at = self._now()

    @property
    def quiet_seconds(self) -> float:
        """How long ago JetStream last answered."""
        return self._now() - self._turned_at

    def note_turn(self) -> None:
        """It answered, or there was no need to ask."""
        self._turned_at = self._now()

    async def renew(self) -> None:
        """Pull through a new inbox."""
        old, self._pull = self._pull, self._make()
        await _give_back([message for message, _ in old.take()])
        await old.stop()
        await self._pull.start()

    async def fetch(self, batch: int = 1, timeout: float | None = None) -> list[Msg]:  # noqa: ARG002 see LINGER
        """The next messages, in order.

        Raises:
            nats.errors.TimeoutError: There is none, or JetStream did not answer.
        """
        if self._over.is_set():
            await asyncio.sleep(PAUSE_SECONDS)  # FastStream goes on asking until it is stopped, too
            raise NatsTimeoutError
        found = self._fetched = []
        is_answered = False
        try:
            await self._request(found, batch, None)
            if not found:
                await self._request(found, 1, LINGER)
            if found and len(found) < batch and not self._over.is_set():
                await asyncio.sleep(COLLECT_SECONDS)
                await self._request(found, batch - len(found), None)
            is_answered = self._pull.end is not End.LOST
            if is_answered or found:
                self.note_turn()
        except (NatsError, OSError) as error:
            _log.debug("broker.not_pulling", error=type(error).__name__)
        if self._over.is_set():  # FastStream drops what comes now; let another have it at once
            await _give_back(found)
            raise NatsTimeoutError
        if not found:
            if not is_answered:
                await asyncio.sleep(PAUSE_SECONDS)
            raise NatsTimeoutError
        self._fetched = []
        return found

    async def unsubscribe(self) -> None:
        """End; what was not handed on is given back: else it would wait for `ack_wait`."""
        if self._over.is_set():
            return
        self._over.set()
        if self._is_prompt:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(LAST_ANSWER_SECONDS):
                    await self._pull.whole()
        # FastStream cancels a fetch that lasts, and never hears what it had.
        await _give_back([*self._fetched, *(message for message, _ in self._pull.take())])
        await self._pull.stop()

    async def _request(self, found: list[Msg], batch: int, expires: timedelta | None) -> None:
        self._is_prompt = expires is None
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
