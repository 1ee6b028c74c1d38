"""Who changes the streams of a NATS server: a lease in that server, where every run against it meets.

The lock of a store keeps apart who shares the store; two hosts, directories or buckets do not. Here a message
of a small stream says who it is; whoever writes it names the sequence that it replaces, so that the server
decides between two, and the server lets it expire by its own clock where it is not renewed.
"""

from __future__ import annotations

import asyncio
import base64
import secrets
from datetime import datetime, timedelta
from types import TracebackType
from typing import Self

import msgspec
import structlog
from nats.errors import Error as NatsError

from kgents_backup.model.faults import LockedError, ProtocolError
from kgents_backup.sinks.store.process import Process
from kgents_backup.sources.stream import NOT_FOUND, stream_info
from kgents_backup.sources.verbatim import VerbatimClient
from kgents_common.cancelling import cancelled
from kgents_common.clock import Clock
from kgents_common.errors import KgentsError, TransientError
from kgents_common.publisher import EXPECTED_LAST_SUBJECT_SEQUENCE, Ack, AlreadyThereError, acknowledgement
from kgents_common.streams import JetStreamApiError, request

STREAM = "kgents-restoring"
LEASE = timedelta(seconds=20)
# All streams that are live in a server have one owner; a look at one beside them has another.
LIVE = "live"
EXPECTED_LAST_SEQUENCE = "Nats-Expected-Last-Sequence"
_ASK_SECONDS = 5.0

_log = structlog.get_logger()


class _Holder(msgspec.Struct, frozen=True):
    token: str
    owner: str
    what: str
    since: datetime
    process: Process | None = None


class Ownership:
    """An asynchronous context manager: held inside, also where it is entered again.

    Args:
        owner: Who we are, for the one who is refused.
        what: What we do, for the same: `restore`.
        place: What is owned: the live streams, or the name of one beside them.
    """

    def __init__(
        self, client: VerbatimClient, owner: str, clock: Clock, *, what: str = "restore", place: str = LIVE
    ) -> None:
        self._client = client
        self._clock = clock
        self._place = place
        self._mine = _Holder(secrets.token_hex(8), owner, what, clock.now(), Process.own())
        self._subject = ""
        self._sequence = 0
        self._held_until = 0.0
        self._depth = 0
        self._renewing: asyncio.Task[None] | None = None

    @property
    def is_held(self) -> bool:
        """Whether it surely is ours now."""
        return self._clock.monotonic() < self._held_until

    def check(self) -> None:
        """Raise unless it surely still is ours.

        Raises:
            LockedError: It could not be renewed in time, or another has it.
        """
        if not self.is_held:
            raise LockedError(
                f"the lease of this {self._mine.what} on the server was lost",
                hint="run the same command again: it goes on, unless another run is at work",
            )

    async def __aenter__(self) -> Self:
        if self._depth == 0:
            await self._acquire()
        self._depth += 1
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._depth -= 1
        if self._depth == 0:
            await self._release()

    async def _acquire(self) -> None:
        self._subject = f"{await _prefix(self._client)}.{self._place}"
        started = self._clock.monotonic()
        found = await self._last()
        if found is not None:
            holder = found[0]
            if holder is not None and not (holder.process and holder.process.is_surely_dead()):
                raise self._refused(holder)
            _log.info("ownership.taken_over", from_owner=holder.owner if holder else "?")
        sequence = await self._publish(found[1] if found else 0)
        if sequence is None:
            raise LockedError(f"another began to {self._mine.what} here at the same moment", hint="try again")
        self._sequence = sequence
        self._held_until = started + LEASE.total_seconds()
        self._renewing = asyncio.create_task(self._renew(), name="ownership.renew")

    def _refused(self, holder: _Holder) -> LockedError:
        return LockedError(
            f"a {holder.what} of this server's streams is under way since {holder.since:%F %T} UTC,"
            f" by {holder.owner}",
            hint="wait for it; where it died, the server forgets it within"
            f" {LEASE.total_seconds():.0f} s: then run this again",
        )

    async def _release(self) -> None:
        await cancelled(self._renewing)
        is_mine = self.is_held
        self._held_until = 0.0
        if is_mine:
            try:
                await request(
                    self._client,
                    f"STREAM.MSG.DELETE.{STREAM}",
                    {"seq": self._sequence, "no_erase": True},
                    timeout_seconds=_ASK_SECONDS,
                )
            except (KgentsError, NatsError) as error:
                _log.warning("ownership.not_released", error=str(error))

    async def _renew(self) -> None:
        pause = LEASE.total_seconds() / 4
        while True:
            await asyncio.sleep(pause)
            started, pause = self._clock.monotonic(), LEASE.total_seconds() / 20
            try:
                sequence = await self._publish(self._sequence)
                if sequence is None:  # it was lost, or the answer to the last renewal was
                    sequence = await self._again()
                    if sequence is None:
                        self._held_until = 0.0
                        _log.error("ownership.lost")
                        return
                self._sequence, self._held_until = sequence, started + LEASE.total_seconds()
                pause = LEASE.total_seconds() / 4
            except KgentsError as error:
                _log.warning("ownership.not_renewed", error=str(error))

    async def _again(self) -> int | None:
        """Renew what is ours all the same; None where another came, or may have come and gone."""
        found = await self._last()
        if found is None:
            # Expired while the server stood still, e.g. to read a large stream: ours if nobody wrote since.
            return await self._publish(self._sequence, EXPECTED_LAST_SEQUENCE)
        if found[0] is None or found[0].token != self._mine.token:
            return None
        return await self._publish(found[1])

    async def _publish(self, expected: int, header: str = EXPECTED_LAST_SUBJECT_SEQUENCE) -> int | None:
        """Say that it is ours, where the last message is the expected one; the sequence, or None."""
        try:
            answer = await self._client.request(
                self._subject,
                msgspec.json.encode(self._mine),
                timeout=_ASK_SECONDS,
                headers={header: str(expected)},
            )
        except (NatsError, OSError, TimeoutError) as error:
            raise TransientError(f"jetstream: {type(error).__name__} on {STREAM}") from error
        outcome = acknowledgement.read(answer.data)
        if isinstance(outcome, Ack):
            return outcome.seq
        if isinstance(outcome, AlreadyThereError):
            return None
        raise outcome

    async def _last(self) -> tuple[_Holder | None, int] | None:
        """Who holds it, and in which sequence; None where nobody does."""
        try:
            answer = await request(self._client, f"STREAM.MSG.GET.{STREAM}", {"last_by_subj": self._subject})
        except JetStreamApiError as error:
            if error.code == NOT_FOUND:
                return None
            raise
        message = answer["message"]
        try:
            holder = msgspec.json.decode(base64.b64decode(message.get("data", "")), type=_Holder)
        except (msgspec.MsgspecError, ValueError):
            holder = None
        return holder, int(message["seq"])


async def _prefix(client: VerbatimClient) -> str:
    """Where owners say so: a subject of this server's own, as another region's may be joined to it."""
    refused = ""
    info = await stream_info(client, STREAM)
    if info is None:
        for replicas in (3, 1) if client.is_clustered else (1,):
            config = {
                "name": STREAM,
                "description": "Who restores, takes back or promotes streams of this server now",
                "subjects": [f"kgents.restoring.{secrets.token_hex(4)}.*"],
                "storage": "file",
                "retention": "limits",
                "discard": "old",
                "max_msgs_per_subject": 1,
                "max_age": int(LEASE.total_seconds() * 10**9),
                "num_replicas": replicas,
            }
            try:
                await request(client, f"STREAM.CREATE.{STREAM}", config, timeout_seconds=30)
            except JetStreamApiError as error:  # too few servers; or another run made it meanwhile
                refused = str(error)
            info = await stream_info(client, STREAM)
            if info is not None:
                break
    if info is None:
        raise ProtocolError(f"the server does not take the stream {STREAM}: {refused}")
    return str(info.config["subjects"][0]).removesuffix(".*")
