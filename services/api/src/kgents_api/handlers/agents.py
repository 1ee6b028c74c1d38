"""Agents that connect to NATS themselves: let in with the credentials of the door, cut off when these end.

The server asks about everybody it does not know (auth callout); we answer with a user of the agents' account.
While no process answers, nobody new is let in and nobody is cut off.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections import defaultdict
from datetime import datetime, timedelta
from typing import Any, Protocol

import nkeys
import structlog
from nats.aio.msg import Msg
from nats.errors import Error as NatsError
from prometheus_client import CollectorRegistry, Counter, Gauge

from kgents_api.handlers.authentication import Authentication
from kgents_api.handlers.refusal import Refused
from kgents_api.model import sessions
from kgents_api.model.agent_user import SCOPE, agent_user
from kgents_api.model.caller import Caller
from kgents_api.model.sessions import Sessions
from kgents_common.access import AGENTS, tokens
from kgents_common.clock import Clock
from kgents_common.connection import Connection
from kgents_common.errors import KgentsError, PermanentError
from kgents_common.keyring import KeyRecord
from kgents_common.retry import Patience

ASKED = "$SYS.REQ.USER.AUTH"
QUEUE = "kgents-agents"
LIST = "$SYS.REQ.SERVER.PING.CONNZ"
PAGE = 1024
# How long servers have to list their connections.
LISTING_SECONDS = 1.0

_log = structlog.get_logger()


class AgentMetrics:
    """What happens to agents' connections."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.asked = Counter(
            "kgents_agents_connects_total",
            "Agents that wanted to connect to NATS, by what was answered",
            ["outcome"],
            registry=registry,
        )
        for outcome in ("admitted", "refused", "unavailable"):
            self.asked.labels(outcome)
        self.cut = Counter(
            "kgents_agents_cut_total", "Connections ended as their credentials had", registry=registry
        )
        self.connected = Gauge(
            "kgents_agents_connected", "Agents connected to NATS at the last look", registry=registry
        )


class FindsKeysById(Protocol):
    """The keyring, as the cutter needs it."""

    def by_id(self, key_id: str) -> KeyRecord | None:
        """The record of a key that is in force."""


class Responder:
    """Answers the servers' questions, as a part; several processes share the work.

    Args:
        issuer: The account key that the servers believe.
    """

    def __init__(
        self,
        connection: Connection,
        authentication: Authentication,
        kept: Sessions | None,
        *,
        issuer: nkeys.KeyPair,
        clock: Clock,
        metrics: AgentMetrics,
    ) -> None:
        self._connection = connection
        self._authentication = authentication
        self._sessions = kept
        self._issuer = issuer
        self._clock = clock
        self._metrics = metrics
        self._subscribing: asyncio.Task[None] | None = None
        self.is_listening = False

    async def start(self) -> None:
        """Begin; returns at once, whether NATS is there or not."""
        self._subscribing = asyncio.create_task(self._subscribe(), name="agents.responder")

    async def stop(self) -> None:
        """Answer no more."""
        if self._subscribing is not None:
            self._subscribing.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._subscribing

    async def answer(self, asked: tokens.Question) -> str:
        """The signed answer to a question."""
        now = self._clock.now()
        try:
            caller = await self._authentication.caller(
                {"authorization": f"Bearer {asked.shown}"} if asked.shown else {},
                SCOPE,
                address=asked.address,
            )
            _check_fits(caller)
            user = agent_user(caller, expires_at=await self._ends(asked.shown))
        except Refused as refused:
            outcome = "unavailable" if refused.response.status_code == 503 else "refused"
            self._metrics.asked.labels(outcome).inc()
            return tokens.refusal(self._issuer, asked, outcome, now=now)
        self._metrics.asked.labels("admitted").inc()
        return tokens.user(
            self._issuer,
            asked,
            name=user.name,
            account=AGENTS,
            publish=user.publish,
            subscribe=user.subscribe,
            now=now,
            expires_at=user.expires_at,
        )

    async def _ends(self, shown: str) -> datetime | None:
        session_id = sessions.id_of(shown) if shown.startswith(sessions.PREFIX) else None
        if session_id is None or self._sessions is None:
            return None
        session = await self._sessions.find(session_id)
        # One that ended between two looks: its connection ends at once.
        return session.expires_at if session is not None else self._clock.now() + timedelta(seconds=1)

    async def _subscribe(self) -> None:
        patience = Patience("agents.responder", longest=timedelta(seconds=2))
        while not self.is_listening:
            await self._connection.wait()
            try:  # the client subscribes again by itself when it reconnects
                await self._connection.client.subscribe(ASKED, queue=QUEUE, cb=self._hear)
                self.is_listening = True
            except (KgentsError, NatsError, OSError) as error:
                await patience.wait(error)

    async def _hear(self, message: Msg) -> None:
        try:
            answer = await self.answer(tokens.question(message.data))
            await self._connection.client.publish(message.reply, answer.encode())
        except PermanentError:
            _log.warning("agents.question_unreadable")
        except (KgentsError, NatsError, OSError) as error:  # not answered: the server refuses the client
            self._metrics.asked.labels("unavailable").inc()
            _log.warning("agents.not_answered", error=type(error).__name__)


def _check_fits(caller: Caller) -> None:
    """A server knows subjects: neither whose an event of a key of several tenants is, nor any source.

    Raises:
        Refused: 403 for credentials that send over HTTP alone.
    """
    if caller.tenants is not None or caller.sources:
        raise Refused(403, "these credentials send over HTTP alone", reason="forbidden")


class Cutter:
    """Ends connections of agents whose key was revoked or whose session is over.

    Args:
        connection: As the user `cutter` of the system account.
    """

    def __init__(
        self,
        connection: Connection,
        keyring: FindsKeysById,
        kept: Sessions | None,
        *,
        metrics: AgentMetrics,
    ) -> None:
        self._connection = connection
        self._keyring = keyring
        self._sessions = kept
        self._metrics = metrics

    async def look(self) -> bool:
        """Look at every agent's connection once; never more to do at once.

        Raises:
            KgentsError: No server is connected.
        """
        by_name: dict[str, list[tuple[str, int]]] = defaultdict(list)
        for server, one in await self._connections():
            by_name[str(one.get("authorized_user") or "")].append((server, int(one["cid"])))
        self._metrics.connected.set(sum(map(len, by_name.values())))
        for name, where in by_name.items():
            if await self._is_good(name):
                continue
            for server, number in where:
                body = json.dumps({"cid": number}).encode()
                client = self._connection.client
                # A server does nothing for a request that has no reply to answer to.
                reply = client.new_inbox()
                await client.publish(f"$SYS.REQ.SERVER.{server}.KICK", body, reply=reply)
                self._metrics.cut.inc()
                _log.info("agents.cut", credential=name)
        return False

    async def _is_good(self, name: str) -> bool:
        if not sessions.is_id(name):
            return self._keyring.by_id(name) is not None
        if self._sessions is None:
            return False
        try:
            session = await self._sessions.find(name)
        except KgentsError:  # not knowing, nobody is cut off: the connection ends with the session anyway
            return True
        return session is not None and self._keyring.by_id(session.key_id) is not None

    async def _connections(self) -> list[tuple[str, dict[str, Any]]]:
        """Every agent's connection on every server, with the server's id."""
        found: list[tuple[str, dict[str, Any]]] = []
        offset, is_whole = 0, False
        while not is_whole:
            is_whole = True
            for answer in await self._ask({"acc": AGENTS, "auth": True, "limit": PAGE, "offset": offset}):
                data = answer.get("data") or {}
                listed = data.get("connections") or []
                found += [(str(data["server_id"]), one) for one in listed]
                is_whole = is_whole and len(listed) < PAGE
            offset += PAGE
        return found

    async def _ask(self, wanted: dict[str, object]) -> list[dict[str, Any]]:
        """What each server answers: how many there are is not known."""
        client = self._connection.client
        answers: list[dict[str, Any]] = []

        async def hear(message: Msg) -> None:
            with contextlib.suppress(ValueError):
                answers.append(json.loads(message.data))

        inbox = client.new_inbox()
        subscription = await client.subscribe(inbox, cb=hear)
        try:
            await client.publish(LIST, json.dumps(wanted).encode(), reply=inbox)
            await asyncio.sleep(LISTING_SECONDS)
        finally:
            with contextlib.suppress(NatsError, OSError):
                await subscription.unsubscribe()
        return answers
