"""Sessions: a short-lived token for one agent of one tenant, minted from an API key."""

from __future__ import annotations

import hmac
import secrets
from datetime import datetime, timedelta
from typing import Protocol

import msgspec

from kgents_api.model.caller import Caller
from kgents_common.keyring import KeyRecord, digest

PREFIX = "ks_"
# What a session may carry; what is left of its key's.
SCOPES = frozenset({"events:write", "events:read"})
AGENT_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._:/@-]{0,127}$"

_ID_CHARACTERS = 32
_TOKEN_CHARACTERS = len(PREFIX) + _ID_CHARACTERS + 43


class Session(msgspec.Struct, frozen=True):
    """One session as it is kept: never the token itself.

    Attributes:
        key_id: The API key it was minted from; without that key there is no session.
        sources: The only sources its events may have; empty for any.
        sha256: The SHA-256 of the token, in hexadecimal.
    """

    id: str
    tenant: str
    agent: str
    scopes: tuple[str, ...]
    key_id: str
    expires_at: datetime
    sha256: str
    sources: tuple[str, ...] = ()

    def is_opened_by(self, token: str) -> bool:
        """Whether this is the token; takes as long for any wrong one."""
        return hmac.compare_digest(self.sha256, digest(token))

    def caller(self, key: KeyRecord | None, now: datetime) -> Caller | None:
        """Who calls with this session; None once it is over, or its key gone or another tenant's."""
        if self.expires_at <= now or key is None or not key.allows(self.tenant):
            return None
        return Caller(
            self.tenant,
            SCOPES & {*self.scopes} & {*key.scopes},
            self.id,
            agent=self.agent,
            sources=self.sources,
        )


def mint(
    caller: Caller,
    agent: str,
    scopes: frozenset[str],
    expires_at: datetime,
    *,
    tenant: str = "",
    sources: tuple[str, ...] = (),
) -> tuple[str, Session]:
    """A token, shown once and kept nowhere, and its session. The token begins with the session's id."""
    session_id = secrets.token_hex(_ID_CHARACTERS // 2)
    token = PREFIX + session_id + secrets.token_urlsafe(32)
    return token, Session(
        session_id,
        tenant or caller.tenant,
        agent,
        tuple(sorted(scopes)),
        caller.credential,
        expires_at,
        digest(token),
        sources,
    )


def id_of(token: str) -> str | None:
    """The id of the session that a token may open; None where it is not even shaped like one."""
    if len(token) != _TOKEN_CHARACTERS or not token.isascii():
        return None
    session_id = token[len(PREFIX) :][:_ID_CHARACTERS]
    return session_id if is_id(session_id) else None


def is_id(text: str) -> bool:
    """Whether this is shaped like a session's id."""
    return len(text) == _ID_CHARACTERS and all(c in "0123456789abcdef" for c in text)


class Sessions(Protocol):
    """Where sessions are kept until they end."""

    async def keep(self, session: Session, lifetime: timedelta) -> None:
        """Keep a session for so long.

        Raises:
            TransientError: It cannot be kept now.
        """

    async def find(self, session_id: str) -> Session | None:
        """A session by its id; None where there is none any more.

        Raises:
            TransientError: It cannot be known now.
        """

    async def end(self, session_id: str) -> None:
        """End a session.

        Raises:
            TransientError: It cannot be ended now.
        """
