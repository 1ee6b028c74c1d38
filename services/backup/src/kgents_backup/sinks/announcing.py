"""Facts about backups published to `events.backup.<kind>` as CloudEvents; a fact that cannot be is logged."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Protocol
from uuid import uuid4

import msgspec
import structlog
from nats.errors import Error as NatsError
from nats.js.errors import Error as JetStreamError

from kgents_backup.sources.verbatim import VerbatimClient
from kgents_common import subjects
from kgents_common.clock import Clock
from kgents_common.errors import KgentsError

_log = structlog.get_logger()


class Announcer(Protocol):
    """Who is told of facts."""

    async def announce(self, kind: str, facts: Mapping[str, Any]) -> None:
        """A fact of a kind such as `drill.passed`; never raises."""


class Silence:
    """Nobody is told."""

    async def announce(self, kind: str, facts: Mapping[str, Any]) -> None:
        """Nothing."""


class EventAnnouncer:
    """Publishes to EVENTS and waits for the acknowledgement."""

    def __init__(
        self, client: Callable[[], Awaitable[VerbatimClient]], clock: Clock, *, instance: str
    ) -> None:
        self._client = client
        self._clock = clock
        self._instance = instance

    async def announce(self, kind: str, facts: Mapping[str, Any]) -> None:
        """See `Announcer.announce`."""
        identity = uuid4().hex
        event = {
            "specversion": "1.0",
            "id": identity,
            "source": f"kgents/backup/{self._instance}",
            "type": f"backup.{kind}",
            "time": self._clock.now(),
            "datacontenttype": "application/json",
            "data": facts,
        }
        try:
            stream = (await self._client()).jetstream(timeout=5)
            await stream.publish(
                subjects.backup(kind), msgspec.json.encode(event), headers={"Nats-Msg-Id": identity}
            )
        except (KgentsError, NatsError, JetStreamError, OSError, TimeoutError) as error:
            _log.warning("backup.fact_not_published", kind=kind, error=type(error).__name__)
