"""For agents that publish straight to NATS from Python: the door's envelope and identity, without the door.

The credentials must be a NATS user that may publish `agentese.<tenant>.>`; the server sees to that.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import msgspec

from kgents_common import envelope
from kgents_common.access.users import agent_inbox
from kgents_common.clock import Clock, SystemClock
from kgents_common.connection import Connection
from kgents_common.envelope import STRUCTURED, Envelope
from kgents_common.errors import KgentsError
from kgents_common.publisher.acknowledgement import Ack
from kgents_common.publisher.message_id import MessageIds
from kgents_common.publisher.pipeline import Message, Publisher
from kgents_common.publisher.spool import Spool, Spooled
from kgents_common.publisher.spooling import Outcome, PublishesAll, SpoolingPublisher
from kgents_common.resilience import CircuitBreaker
from kgents_common.settings import ServiceSettings
from kgents_common.telemetry import inject_headers

SPOOL_BYTES = 256 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Event:
    """What an agent says it did.

    Attributes:
        type: Dotted, e.g. `llm.tokens`.
        data: A JSON object.
        id: Its identity within the agent; give your own where the same event may be published again.
        time: When it happened, aware; the moment of publishing where None.
    """

    type: str
    data: Mapping[str, Any]
    id: str = ""
    time: datetime | None = None


class AgentPublisher:
    """Publishes one agent's events; an async context manager.

    Args:
        servers: One or more `nats://…` or `tls://…`, separated by commas.
        tenant: Whose events they are.
        source: Which agent, e.g. `agents/a1`; with an event's id, its identity.
        token: The agent's API key or session token, where agents connect with what the door knows; or `user`
            with `password`, or `nkey_seed_file`. Else NATS_TOKEN and its like are read.
        ca_file: Who may have signed the certificate of a `tls://` server; else NATS_CA_FILE, else whom the
            machine trusts.
        spool: A directory of this process's own. Where NATS cannot take an event it is kept there, synced,
            and published later; without one, `publish` raises.
        timeout: How long an acknowledgement is waited for; also, after the start, the first connection (with
            a spool only until the first attempt failed).
    """

    def __init__(
        self,
        servers: str,
        *,
        tenant: str,
        source: str,
        token: str | None = None,
        user: str | None = None,
        password: str | None = None,
        nkey_seed_file: Path | None = None,
        ca_file: Path | None = None,
        spool: Path | None = None,
        spool_bytes: int = SPOOL_BYTES,
        timeout: timedelta = timedelta(seconds=4),
        clock: Clock | None = None,
    ) -> None:
        self._tenant = tenant
        self._source = source
        self._clock = clock or SystemClock()
        given = {
            "nats_token": token,
            "nats_user": user,
            "nats_password": password,
            "nats_nkey_seed_file": nkey_seed_file,
            "nats_ca_file": ca_file,
            # The inbox that an agent may hear; anybody's who may hear all of them, too.
            "nats_inbox_prefix": None if "NATS_INBOX_PREFIX" in os.environ else agent_inbox(tenant),
        }
        settings = ServiceSettings.from_environment(
            nats_servers=servers, **{name: value for name, value in given.items() if value is not None}
        )
        # A client closed for good ends a service; an agent's process is not ours to end.
        self._connection = Connection(settings, name=source, on_closed=lambda: None)
        self._publisher = Publisher(
            self._connection,
            timeout=timeout,
            breaker=CircuitBreaker("nats", threshold=20, window=40, longest_rest=timedelta(seconds=2)),
        )
        self._spooling = (
            None
            if spool is None
            else SpoolingPublisher(
                self._publisher,
                self._connection,
                Spool(spool, spool_bytes),
                self._clock,
                looks_up=False,  # that needs rights over the stream; the ledger counts a repeat once
            )
        )
        self._timeout = timeout.total_seconds()
        self._started_at = 0.0
        self._is_first_over = False
        self._ids = MessageIds()
        self._outlet: PublishesAll = self._spooling or self._publisher

    @property
    def is_connected(self) -> bool:
        """Whether a NATS server is on the other end right now."""
        return self._connection.is_connected

    @property
    def waiting(self) -> int:
        """Events in the spool."""
        return self._spooling.spool.depth if self._spooling else 0

    async def publish(
        self, event_type: str, data: Mapping[str, Any], *, event_id: str = "", time: datetime | None = None
    ) -> Ack | Spooled:
        """Publish one event and wait until it is durable.

        Returns:
            `Ack`: JetStream has it. `Spooled`: this machine's disk has it, and it will be published.

        Raises:
            EnvelopeError: It is not an event that is accepted; every violated rule is named.
            NotDurableError: It is neither in the stream nor in a spool; publish it again, with the same id.
            CircuitOpenError: The same, without having tried: it failed too often lately.
            PermanentError: It is larger than the server takes.
        """
        [outcome] = await self.publish_all([Event(event_type, data, event_id, time)])
        if isinstance(outcome, KgentsError):
            raise outcome
        return outcome

    async def publish_all(self, events: Sequence[Event]) -> Sequence[Outcome]:
        """Publish many at once: for each, in order, where it is durable or the error that says why not.

        Raises:
            EnvelopeError: One is not accepted; none is published.
        """
        headers = {"content-type": STRUCTURED}
        inject_headers(headers)
        messages = [
            Message.of(self._enveloped(event, place=f"[{i}]."), headers, self._ids)
            for i, event in enumerate(events)
        ]
        if not self._is_first_over:
            await self._wait_for_the_first()
        outcomes = await self._outlet.publish_all(messages)
        if any(isinstance(outcome, KgentsError) for outcome in outcomes):
            # What fails at once may be tried again at once, for ever: not even connecting would go on.
            await asyncio.sleep(0)
        return outcomes

    async def wait_until_connected(self) -> None:
        """Until NATS answers for the first time; publishing waits for that by itself, within `timeout`."""
        await self._connection.wait()

    async def _wait_for_the_first(self) -> None:
        """A process that has just started is not yet connected, though NATS is there."""
        over = self._connection.wait_for_a_try if self._spooling else self._connection.wait
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout_at(self._started_at + self._timeout):
                await over()
        self._is_first_over = True

    def _enveloped(self, event: Event, place: str) -> Envelope:
        now = self._clock.now()
        attributes: dict[str, Any] = {
            "specversion": "1.0",
            "id": event.id or uuid.uuid4().hex,
            "source": self._source,
            "type": event.type,
            "subject": self._tenant,
            "data": event.data,
        }
        if event.time is not None:  # one that is stamped is not part of what the agent said
            attributes["time"] = event.time
        body = msgspec.json.encode(attributes)
        return envelope.read(body, tenant=self._tenant, now=now, place=place)

    async def __aenter__(self) -> Self:
        self._started_at = asyncio.get_running_loop().time()
        await self._connection.start()
        await self._publisher.start()
        if self._spooling is not None:
            await self._spooling.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._spooling is not None:
            await self._spooling.stop()
        await self._publisher.stop()
        await self._connection.stop()
