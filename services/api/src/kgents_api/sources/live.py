"""AGENTESE read in order for one tenant, through outages; what is done with the events is not decided here.

This is an ordered consumer made of an ephemeral pull consumer. nats-py's own (2.16, a push consumer) notices
a restarted server only by two missed heartbeats, tries to put its consumer back once and then waits for two
more, and pushes as fast as the server can. Here a pull asks for no more than a bound, the next is sent once
the last is consumed, and a reader whose consumer is gone, or that missed a delivery, makes a new one right
after the last event it gave out.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import structlog
from nats.aio.msg import Msg
from nats.errors import Error as NatsError

from kgents_api.model.live import Bounds, Frame, Place, PositionLostError, frame
from kgents_common import subjects
from kgents_common.connection import Connection
from kgents_common.errors import KgentsError, TransientError
from kgents_common.pull import Delivered, Forward, Lost
from kgents_common.retry import Patience
from kgents_common.rfc3339 import moment
from kgents_common.streams import JetStreamApiError, request

BATCH_EVENTS = 128
# Or twice the largest message a server takes: one that is larger would end every pull before it came.
BATCH_BYTES = 2 * 1024 * 1024
PULL = timedelta(seconds=30)
IDLE_HEARTBEAT = timedelta(seconds=5)
FIRST_WAIT = timedelta(seconds=0.2)
LONGEST_WAIT = timedelta(seconds=2)
ANSWER_SECONDS = 3
NO_MESSAGE = 404

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_log = structlog.get_logger()


class AgenteseLog:
    """The stream behind one connection: what it holds, and readers of it.

    Args:
        tells_times: Whether clients are told when messages were stored; a version before refuses such ids.
    """

    def __init__(
        self, connection: Connection, stream: str = subjects.AGENTESE, *, tells_times: bool = True
    ) -> None:
        self._connection = connection
        self._stream = stream
        self._tells_times = tells_times

    async def bounds(self, tenant: str) -> Bounds:
        """See `EventLog.bounds`. Both answers are the stream leader's, the tenant's newest the later one."""
        try:
            client = self._connection.client
            info = await request(client, f"STREAM.INFO.{self._stream}", timeout_seconds=ANSWER_SECONDS)
            state, created = info["state"], microseconds(info["created"])
            first, last = max(1, int(state["first_seq"])), int(state["last_seq"])
            newest = await self._newest(tenant)
            if not self._tells_times:
                return Bounds(first, last, newest, info["created"])
            # Of a stream that never held a message the server says the year 1.
            last_time = microseconds(state["last_ts"])
            last_time = last_time if last_time > 0 else created
            return Bounds(first, last, newest, info["created"], last_time, created)
        except JetStreamApiError as error:
            raise TransientError(str(error)) from error

    def reader(self, tenant: str, after: int, stream: str) -> OrderedReader:
        """See `EventLog.reader`."""
        return OrderedReader(
            self._connection, self._stream, tenant, after, created=stream, tells_times=self._tells_times
        )

    async def knows(self, place: Place) -> bool:
        """See `EventLog.knows`."""
        client = self._connection.client
        try:
            answer = await request(
                client,
                f"STREAM.MSG.GET.{self._stream}",
                {"seq": max(1, place.sequence)},
                timeout_seconds=ANSWER_SECONDS,
            )
            if place.sequence:
                return microseconds(answer["message"]["time"]) == place.time
        except JetStreamApiError as error:
            if error.code != NO_MESSAGE:
                raise TransientError(str(error)) from error
        try:
            info = await request(client, f"STREAM.INFO.{self._stream}", timeout_seconds=ANSWER_SECONDS)
        except JetStreamApiError as error:
            raise TransientError(str(error)) from error
        return microseconds(info["created"]) <= place.time

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


def microseconds(text: str) -> int:
    """A server's time (RFC 3339, nanoseconds) as Unix microseconds, the rest cut off."""
    return (moment(text) - _EPOCH) // timedelta(microseconds=1)


class OrderedReader:
    """See `EventReader`. Not for concurrent use.

    Args:
        created: The stream's, as the server says it; one of the name that was created at another time counts
            from 1 again, and is not read on.

    Attributes:
        position: The sequence of the last message seen, given out or not.
    """

    def __init__(
        self, connection: Connection, stream: str, tenant: str, after: int, *, created: str, tells_times: bool
    ) -> None:
        self.position = after
        self._tells_times = tells_times
        self._connection = connection
        self._stream = stream
        self._filter = f"agentese.{tenant}.>"
        self._created = created
        self._consumer: Forward | None = None
        self._patience = Patience("api.live", first=FIRST_WAIT, longest=LONGEST_WAIT)

    async def next(self) -> list[Frame]:
        """See `EventReader.next`."""
        while True:
            try:
                if self._consumer is None:
                    self._consumer = await self._open()
                arrived = await self._consumer.next(
                    batch=BATCH_EVENTS,
                    max_bytes=max(BATCH_BYTES, 2 * self._connection.client.max_payload),
                    expires=PULL,
                    heartbeat=IDLE_HEARTBEAT,
                )
                frames = [f for f in map(self._accept, arrived) if f is not None]
            except Lost as lost:
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

    def _accept(self, arrived: tuple[Msg, Delivered]) -> Frame | None:
        message, sequence = arrived[0], arrived[1].sequence
        # A replica that lags starts a consumer where it stands itself, before what was asked for.
        if sequence <= self.position:
            return None
        self.position = sequence
        parsed = subjects.parse_agentese(message.subject)
        place = Place(sequence, arrived[1].time // 1000 if self._tells_times else 0)
        return frame(place, parsed.type, message.data) if parsed is not None else None

    async def _open(self) -> Forward:
        client = self._connection.client
        info = await request(client, f"STREAM.INFO.{self._stream}", timeout_seconds=ANSWER_SECONDS)
        if info["created"] != self._created:
            raise PositionLostError("the stream was made anew")
        state = info["state"]
        if int(state["last_seq"]) < self.position:
            raise PositionLostError("the stream ends before the position")
        if int(state["first_seq"]) > self.position + 1:
            raise PositionLostError("the stream begins after the position")
        return await Forward.opened(
            client,
            self._stream,
            start=self.position + 1,
            filter_subject=self._filter,
            description="A live stream's reader",
            timeout_seconds=ANSWER_SECONDS,
        )
