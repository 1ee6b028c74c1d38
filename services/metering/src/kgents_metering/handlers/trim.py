"""Raw events leave the stream once the ledger has them, a verified backup has them, and they are old enough.

None of the three alone is enough: what is not applied, not archived or younger than an operator wants stays.
"""

from __future__ import annotations

import base64
from datetime import datetime, timedelta

import msgspec
import structlog
from psycopg import AsyncConnection
from psycopg_pool import AsyncConnectionPool

from kgents_common import rfc3339, streams, subjects
from kgents_common.clock import Clock
from kgents_common.connection import Connection
from kgents_common.streams import JetStreamApiError
from kgents_metering.handlers.positions import Positions
from kgents_metering.metrics import Metrics

_NO_MESSAGE = 404
_log = structlog.get_logger()


class Kept(msgspec.Struct):
    """What backup says after a run in which everything went well.

    Attributes:
        created: When the stream was created that `last_sequence` counts in.
        last_sequence: Up to it, everything is in a snapshot that was read back, in every store there is.
    """

    created: str
    last_sequence: int


class _Fact(msgspec.Struct):
    data: Kept


_FACT = msgspec.json.Decoder(_Fact)


class Trimmer:
    """Purges AGENTESE up to where it may, as a round's work.

    Args:
        keep: How long an event stays at the least.
    """

    def __init__(
        self,
        pool: AsyncConnectionPool[AsyncConnection],
        connection: Connection,
        *,
        keep: timedelta,
        clock: Clock,
        metrics: Metrics,
    ) -> None:
        self._pool = pool
        self._connection = connection
        self._keep = keep
        self._clock = clock
        self._metrics = metrics

    async def run(self) -> bool:
        """Trim once; False, as there is no more to do at once.

        Raises:
            KgentsError: Postgres or JetStream does not answer; nothing was purged.
        """
        client = self._connection.client
        info = await streams.request(client, f"STREAM.INFO.{subjects.AGENTESE}")
        first, last = int(info["state"]["first_seq"]), int(info["state"]["last_seq"])
        kept, said_at = await self._kept(rfc3339.moment(info["created"]))
        # What was stored after it was said is not meant, also where a restore gave its sequence away again.
        moment = min(self._clock.now() - self._keep, said_at)
        old = await self._stored_before(moment, first, min(kept, last))
        if old < first:
            return False
        upto = await Positions(self._pool, client).applied_to(streams.METERING, old)
        if upto < first:
            return False
        answer = await streams.request(
            client, f"STREAM.PURGE.{subjects.AGENTESE}", {"seq": upto + 1}, timeout_seconds=60
        )
        self._metrics.trimmed.inc(int(answer["purged"]))
        _log.info("stream.trimmed", upto=upto, messages=answer["purged"], archived=kept)
        return False

    async def _kept(self, epoch: datetime) -> tuple[int, datetime]:
        """Up to where backups have this very stream, and when that was said; 0 where nothing is known."""
        try:
            found = await streams.request(
                self._connection.client,
                f"STREAM.MSG.GET.{subjects.EVENTS}",
                {"last_by_subj": subjects.backup(f"kept.{subjects.AGENTESE}")},
            )
        except JetStreamApiError as error:
            if error.code == _NO_MESSAGE:
                return 0, epoch
            raise
        try:
            said = _FACT.decode(base64.b64decode(found["message"]["data"])).data
            is_of_this = rfc3339.moment(said.created) == epoch
            return said.last_sequence if is_of_this else 0, rfc3339.moment(found["message"]["time"])
        except (ValueError, KeyError) as error:  # msgspec's errors are ValueErrors
            _log.error("stream.kept_unreadable", error=type(error).__name__)
            return 0, epoch

    async def _stored_before(self, moment: datetime, first: int, last: int) -> int:
        """The highest sequence up to `last` that was stored before the moment; below `first` for none."""
        low, high = first - 1, last
        while low < high:
            middle = (low + high + 1) // 2
            found = await streams.request(
                self._connection.client,
                f"STREAM.MSG.GET.{subjects.AGENTESE}",
                {"seq": middle, "next_by_subj": streams.METERING.filter_subject},
            )
            if rfc3339.moment(found["message"]["time"]) < moment:
                low = max(middle, min(int(found["message"]["seq"]), high))
            else:
                high = middle - 1
        return low
