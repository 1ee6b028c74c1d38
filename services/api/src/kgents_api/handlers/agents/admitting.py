"""Whom the servers do not know they ask about (auth callout): a user of the agents' account, or a refusal."""

from __future__ import annotations

import asyncio
from datetime import datetime, timedelta

import nkeys
import structlog
from nats.aio.msg import Msg
from nats.errors import Error as NatsError

from kgents_api.handlers.agents.metrics import AgentMetrics
from kgents_api.handlers.authentication import Authentication
from kgents_api.handlers.refusal import Refused
from kgents_api.model import sessions
from kgents_api.model.agent_pace import AgentPace
from kgents_api.model.agent_user import SCOPE, agent_user
from kgents_api.model.caller import Caller
from kgents_api.model.sessions import Sessions
from kgents_common.access import AGENTS, tokens
from kgents_common.cancelling import cancelled
from kgents_common.clock import Clock
from kgents_common.connection import Connection
from kgents_common.errors import KgentsError, PermanentError
from kgents_common.retry import Patience

ASKED = "$SYS.REQ.USER.AUTH"
QUEUE = "kgents-agents"

_log = structlog.get_logger()


class Responder:
    """Answers the servers' questions, as a part; several processes share the work.

    Args:
        issuer: The account key that the servers believe.
        pace: Who is kept out for a while.
    """

    def __init__(
        self,
        connection: Connection,
        authentication: Authentication,
        kept: Sessions | None,
        *,
        issuer: nkeys.KeyPair,
        pace: AgentPace,
        clock: Clock,
        metrics: AgentMetrics,
    ) -> None:
        self._connection = connection
        self._pace = pace
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
        await cancelled(self._subscribing)

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
            if self._pace.pause(caller.tenant, self._clock.monotonic()):
                self._metrics.asked.labels("paused").inc()
                return tokens.refusal(self._issuer, asked, "paused: it sent faster than it may", now=now)
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
