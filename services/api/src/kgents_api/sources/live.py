"""AGENTESE read in order for one tenant, through outages; what is done with the events is not decided here.

This is an ordered consumer made of an ephemeral pull consumer. nats-py's own (2.16, a push consumer) notices
a restarted server only by two missed heartbeats, tries to put its consumer back once and then waits for two
more, and pushes as fast as the server can. Here a pull asks for no more than a bound, the next is sent once
the last is consumed, and a reader whose consumer is gone, or that missed a delivery, makes a new one right
after the last event it gave out.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections import deque
from datetime import timedelta

import structlog
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription
from nats.errors import Error as NatsError

from kgents_api.model.live import Bounds, Frame, PositionLostError, frame
from kgents_common import subjects
from kgents_common.connection import Connection
from kgents_common.errors import KgentsError, TransientError
from kgents_common.retry import Patience
from kgents_common.streams import JetStreamApiError, request

BATCH_EVENTS = 128
# More than the largest message a server takes, else that message would end every pull before it came.
BATCH_BYTES = 2 * 1024 * 1024
PULL_SECONDS = 30
IDLE_HEARTBEAT_SECONDS = 5
SILENCE_SECONDS = 2 * IDLE_HEARTBEAT_SECONDS + 1
INACTIVE_SECONDS = 60
LOOK_SECONDS = 1.0
FIRST_WAIT = timedelta(seconds=0.2)
LONGEST_WAIT = timedelta(seconds=2)
ANSWER_SECONDS = 3
NO_MESSAGE = 404
_NANO = 1_000_000_000

_log = structlog.get_logger()


class AgenteseLog:
    """The stream behind one connection: what it holds, and readers of it."""

    def __init__(self, connection: Connection, stream: str = subjects.AGENTESE) -> None:
        self._connection = connection
        self._stream = stream

    async def bounds(self, tenant: str) -> Bounds:
        """See `EventLog.bounds`. Both answers are the stream leader's, the tenant's newest the later one."""
        try:
            client = self._connection.client
            state = (await request(client, f"STREAM.INFO.{self._stream}", timeout_seconds=ANSWER_SECONDS))[
                "state"
            ]
            last = int(state["last_seq"])
            return Bounds(max(1, int(state["first_seq"])), last, await self._newest(tenant))
        except JetStreamApiError as error:
            raise TransientError(str(error)) from error

    def reader(self, tenant: str, after: int) -> OrderedReader:
        """A reader of what comes after a sequence."""
        return OrderedReader(self._connection, self._stream, tenant, after)

    async def _newest(self, tenant: str) -> int:
        wanted = {"last_by_subj": f"agentese.{tenant}.>"}
        try:
            answer = await request(
                self._connection.client,
                f"STREAM.MSG.GET.{self._stream}",
                wanted,
                timeout_seconds=ANSWER_SECONDS,
            )
        except JetStreamApiError as error:
            if error.code == NO_MESSAGE:
                return 0
            raise
        return int(answer["message"]["seq"])


class _Lost(Exception):  # noqa: N818 not an error of anybody's: the consumer is made anew
    """This consumer will give nothing more that can be trusted."""


class OrderedReader:
    """See `EventReader`. Not for concurrent use.

    Attributes:
        position: The sequence of the last message seen, given out or not.
    """

    def __init__(self, connection: Connection, stream: str, tenant: str, after: int) -> None:
        self.position = after
        self._connection = connection
        self._stream = stream
        self._filter = f"agentese.{tenant}.>"
        self._created: str | None = None
        self._consumer: _Consumer | None = None
        self._patience = Patience("api.live", first=FIRST_WAIT, longest=LONGEST_WAIT)

    async def next(self) -> list[Frame]:
        """See `EventReader.next`."""
        while True:
            try:
                if self._consumer is None:
                    self._consumer = await self._open()
                frames = [f for f in map(self._accept, await self._consumer.receive()) if f is not None]
            except _Lost as lost:
                _log.info("live.consumer_lost", reason=str(lost))
                await self.close()
            except (KgentsError, NatsError, OSError) as error:
                if isinstance(error, PositionLostError):
                    raise
                await self.close()
                await self._patience.wait(error)
            else:
                self._patience.progressed()
                if frames:
                    return frames

    async def close(self) -> None:
        """See `EventReader.close`."""
        consumer, self._consumer = self._consumer, None
        if consumer is not None:
            await consumer.close()

    def _accept(self, message: Msg) -> Frame | None:
        sequence = message.metadata.sequence.stream
        # A replica that lags starts a consumer where it stands itself, before what was asked for.
        if sequence <= self.position:
            return None
        self.position = sequence
        parsed = subjects.parse_agentese(message.subject)
        return frame(sequence, parsed.type, message.data) if parsed is not None else None

    async def _open(self) -> _Consumer:
        client = self._connection.client
        info = await request(client, f"STREAM.INFO.{self._stream}", timeout_seconds=ANSWER_SECONDS)
        if self._created not in (None, info["created"]):
            raise PositionLostError("the stream was made anew")
        self._created = info["created"]
        state = info["state"]
        if int(state["last_seq"]) < self.position:
            raise PositionLostError("the stream ends before the position")
        if int(state["first_seq"]) > self.position + 1:
            raise PositionLostError("the stream begins after the position")
        answer = await request(
            client,
            f"CONSUMER.CREATE.{self._stream}",
            {
                "stream_name": self._stream,
                "config": {
                    "description": "A live stream's reader",
                    "deliver_policy": "by_start_sequence",
                    "opt_start_seq": self.position + 1,
                    "filter_subject": self._filter,
                    "ack_policy": "none",
                    "replay_policy": "instant",
                    "inactive_threshold": INACTIVE_SECONDS * _NANO,
                    "mem_storage": True,
                    "num_replicas": 1,
                },
            },
            timeout_seconds=ANSWER_SECONDS,
        )
        return await _Consumer.subscribed(self._connection, self._stream, str(answer["name"]))


class _Consumer:
    """One ephemeral consumer until it is lost: pulls, and checks that no delivery is missing."""

    def __init__(self, connection: Connection, stream: str, name: str) -> None:
        self._client = connection.client
        self._stream = stream
        self._name = name
        self._inbox = self._client.new_inbox()
        self._subscription: Subscription | None = None
        self._reconnects = self._client.stats["reconnects"]
        self._arrived: deque[Msg] = deque()
        self._arrival = asyncio.Event()
        self._delivered = 0
        self._owed = 0
        loop = asyncio.get_running_loop()
        self._now = loop.time
        self._heard_at = loop.time()

    @classmethod
    async def subscribed(cls, connection: Connection, stream: str, name: str) -> _Consumer:
        """A consumer that has an inbox."""
        made = cls(connection, stream, name)
        made._subscription = await made._client.subscribe(
            made._inbox, cb=made._take, pending_msgs_limit=-1, pending_bytes_limit=-1
        )
        return made

    async def receive(self) -> list[Msg]:
        """What has arrived since the last call; waits, and pulls when the last pull is used up.

        Raises:
            _Lost: The consumer, the connection or a delivery is gone.
        """
        if self._owed <= 0 and not self._arrived:
            await self._pull()
        while not self._arrived:
            self._arrival.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(LOOK_SECONDS):
                    await self._arrival.wait()
            if not self._arrived:
                self._check_alive()
        messages: list[Msg] = []
        while self._arrived:
            message = self._arrived.popleft()
            if message.reply:
                self._check_order(message)
                self._owed -= 1
                messages.append(message)
            else:
                self._note_status(message)
        return messages

    async def close(self) -> None:
        """Give the inbox and the consumer back; what does not arrive, the server does by itself."""
        with contextlib.suppress(NatsError, OSError):
            if self._subscription is not None:
                await self._subscription.unsubscribe()
            await self._client.publish(f"$JS.API.CONSUMER.DELETE.{self._stream}.{self._name}")

    async def _take(self, message: Msg) -> None:
        self._arrived.append(message)
        self._arrival.set()

    async def _pull(self) -> None:
        wanted = {
            "batch": BATCH_EVENTS,
            "max_bytes": BATCH_BYTES,
            "expires": PULL_SECONDS * _NANO,
            "idle_heartbeat": IDLE_HEARTBEAT_SECONDS * _NANO,
        }
        self._owed = BATCH_EVENTS
        self._heard_at = self._now()
        await self._client.publish(
            f"$JS.API.CONSUMER.MSG.NEXT.{self._stream}.{self._name}",
            json.dumps(wanted).encode(),
            reply=self._inbox,
        )

    def _check_alive(self) -> None:
        if not self._client.is_connected or self._client.stats["reconnects"] != self._reconnects:
            raise _Lost("reconnected")
        if self._now() - self._heard_at > SILENCE_SECONDS:
            raise _Lost("silence")

    def _check_order(self, message: Msg) -> None:
        self._heard_at = self._now()
        delivered = message.metadata.sequence.consumer
        if delivered != self._delivered + 1:
            raise _Lost("a delivery is missing")
        self._delivered = delivered

    def _note_status(self, message: Msg) -> None:
        """Statuses of a pull (ADR-13 of the NATS architecture): 100 lives, 408 and the 409 of a full batch
        end this pull, anything else ends the consumer."""
        self._heard_at = self._now()
        headers = message.headers or {}
        status, description = headers.get("Status", ""), headers.get("Description", "")
        if status == "100":
            return
        self._owed = 0
        if status == "408" or (status == "409" and "MaxBytes" in description):
            return
        raise _Lost(f"status {status}")
