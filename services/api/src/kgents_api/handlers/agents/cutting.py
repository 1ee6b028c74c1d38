"""Connections of agents that must end: looked for among all that the servers list, and told to the pace."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Mapping
from datetime import datetime
from typing import Any, Protocol

import structlog
from nats.aio.msg import Msg
from nats.errors import Error as NatsError

from kgents_api.handlers.agents.metrics import AgentMetrics
from kgents_api.model import sessions
from kgents_api.model.agent_pace import AgentPace, Look, Sent
from kgents_api.model.sessions import Sessions
from kgents_common.access import AGENTS
from kgents_common.access.users import AGENTS_CLOSED
from kgents_common.clock import Clock
from kgents_common.connection import Client, Connection
from kgents_common.errors import KgentsError
from kgents_common.keyring import KeyRecord

LIST = "$SYS.REQ.SERVER.PING.CONNZ"
PAGE = 1024
# Between two looks; of more than these what they sent is not counted.
MAX_CLOSED = 100_000
# How long servers have to list their connections.
LISTING_SECONDS = 1.0

_log = structlog.get_logger()


class FindsKeysById(Protocol):
    """The keyring, as the cutter needs it."""

    def by_id(self, key_id: str) -> KeyRecord | None:
        """The record of a key that is in force."""


class Cutter:
    """Ends connections of agents whose key was revoked, whose session is over, whose tenant sends too fast.

    Args:
        connection: As the user `cutter` of the system account.
    """

    def __init__(
        self,
        connection: Connection,
        keyring: FindsKeysById,
        kept: Sessions | None,
        *,
        pace: AgentPace,
        clock: Clock,
        metrics: AgentMetrics,
    ) -> None:
        self._connection = connection
        self._keyring = keyring
        self._sessions = kept
        self._pace = pace
        self._clock = clock
        self._metrics = metrics
        self._closed: list[tuple[str, dict[str, Any]]] = []
        self._heard_by: Client | None = None

    async def look(self) -> bool:
        """Look at every agent's connection once; never more to do at once.

        Raises:
            KgentsError: No server is connected.
        """
        await self._hear_of_closed()
        there = await self._connections()
        closed, self._closed = self._closed, []
        owners = {name: await self._owner(name) for name in {_name(one) for _, one in [*there, *closed]}}
        looks = [_look(server, one, owners[_name(one)] or _name(one)) for server, one in [*there, *closed]]
        for tenant in self._pace.look(looks, self._clock.monotonic()):
            self._metrics.paused.inc()
            pause = self._pace.pause(tenant, self._clock.monotonic())
            _log.warning("agents.paused", tenant=tenant, seconds=round(pause))
        self._metrics.connected.set(len(there))
        for server, one in there:
            owner = owners[_name(one)]
            is_out = owner is None or self._pace.pause(owner or _name(one), self._clock.monotonic()) > 0
            if is_out:
                await self._end(server, one)
        return False

    async def _end(self, server: str, one: Mapping[str, Any]) -> None:
        client = self._connection.client
        # A server does nothing for a request that has no reply to answer to.
        reply = client.new_inbox()
        body = json.dumps({"cid": int(one["cid"])}).encode()
        await client.publish(f"$SYS.REQ.SERVER.{server}.KICK", body, reply=reply)
        self._metrics.cut.inc()
        _log.info("agents.cut", credential=_name(one))

    async def _owner(self, name: str) -> str | None:
        """Whose a connection is; None for one that must end, empty where that cannot be known now."""
        if not sessions.is_id(name):
            record = self._keyring.by_id(name)
            return None if record is None else record.tenant
        if self._sessions is None:
            return None
        try:
            session = await self._sessions.find(name)
        except KgentsError:  # not knowing, nobody is cut off: the connection ends with the session anyway
            return ""
        if session is None or self._keyring.by_id(session.key_id) is None:
            return None
        return session.tenant

    async def _hear_of_closed(self) -> None:
        """What came and went between two looks is told by the server as it ends."""
        client = self._connection.client
        if self._heard_by is client:  # it subscribes again by itself when it reconnects
            return

        async def hear(message: Msg) -> None:
            with contextlib.suppress(ValueError, KeyError, TypeError):
                told = json.loads(message.data)
                about, sent = told["client"], told["sent"]
                one = {
                    "cid": about["id"],
                    "authorized_user": about.get("user"),
                    "in_msgs": sent["msgs"],
                    "in_bytes": sent["bytes"],
                    "start": about["start"],
                    "now": about["stop"],
                }
                if len(self._closed) < MAX_CLOSED:
                    self._closed.append((str(told["server"]["id"]), one))

        await client.subscribe(AGENTS_CLOSED, cb=hear)
        self._heard_by = client

    async def _connections(self) -> list[tuple[str, dict[str, Any]]]:
        """Every agent's connection on every server, with the server's id."""
        found: list[tuple[str, dict[str, Any]]] = []
        offset, is_whole = 0, False
        while not is_whole:
            is_whole = True
            for answer in await self._ask({"acc": AGENTS, "auth": True, "limit": PAGE, "offset": offset}):
                data = answer.get("data") or {}
                listed = data.get("connections") or []
                found += [(str(data["server_id"]), {**one, "now": data.get("now")}) for one in listed]
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


def _name(one: Mapping[str, Any]) -> str:
    """The credentials that opened a connection."""
    return str(one.get("authorized_user") or "")


def _look(server: str, one: Mapping[str, Any], tenant: str) -> Look:
    sent = Sent(int(one.get("in_msgs") or 0), int(one.get("in_bytes") or 0))
    return Look(server, int(one["cid"]), tenant, sent, _age_seconds(one))


def _age_seconds(one: Mapping[str, Any]) -> float:
    """By the server's own clock; for ever where it does not say."""
    try:
        now, start = (datetime.fromisoformat(str(one[name])) for name in ("now", "start"))
        return (now - start).total_seconds()
    except (ValueError, KeyError, TypeError):
        return float("inf")
