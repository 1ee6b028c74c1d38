"""From request headers to a caller: an API key or a session's token, as a bearer token or in `X-API-Key`."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache

from kgents_api.handlers.refusal import Refused
from kgents_api.model import sessions
from kgents_api.model.caller import Caller, FindsKeys
from kgents_api.model.failures import FailureCounts
from kgents_api.model.sessions import Sessions
from kgents_common.clock import Clock
from kgents_common.errors import TransientError
from kgents_common.keyring import KeyRecord, KeysUnavailableError, presented

FAILURES_A_MINUTE = 100
MAX_CALLERS = 4096

_CHALLENGE = {"www-authenticate": 'Bearer realm="kgents"'}


class Authentication:
    """Knows callers by their API keys and session tokens.

    Args:
        kept: Where sessions are; None where this deployment has none.
    """

    def __init__(self, keyring: FindsKeys, clock: Clock, kept: Sessions | None = None) -> None:
        self._keyring = keyring
        self._clock = clock
        self._sessions = kept
        self._failures = FailureCounts(FAILURES_A_MINUTE)

    async def caller(self, headers: Mapping[str, str], scope: str, *, address: str = "") -> Caller:
        """Who calls, having `scope`. `headers` has lower-case names.

        Raises:
            Refused: As `identify`; 403 without the scope.
        """
        found = await self.identify(headers, address=address)
        if not found.may(scope):
            raise Refused(403, f"these credentials lack the scope {scope}", reason="forbidden")
        return found

    async def identify(self, headers: Mapping[str, str], *, address: str = "") -> Caller:
        """Who calls, whatever they may do.

        Unknown credentials count against the address, where one is given; good ones always pass.

        Raises:
            Refused: 401 without good credentials, 429 after too many unknown ones, 503 where a session cannot
                be looked up.
        """
        shown = presented(headers)
        if not shown:
            raise Refused(
                401,
                "send an API key: Authorization: Bearer kg_… or X-API-Key: kg_…",
                reason="unauthenticated",
                headers=_CHALLENGE,
            )
        is_session = shown.startswith(sessions.PREFIX)
        found = await self._by_session(shown) if is_session else self._by_key(shown)
        if found is None:
            if address and self._failures.failed(address, self._clock.monotonic()):
                raise Refused(
                    429,
                    "too many unknown credentials from this address",
                    reason="too_many_failures",
                    headers={"retry-after": "60"},
                )
            detail = "this session is over, or never was" if is_session else "these credentials are not known"
            raise Refused(401, detail, reason="unauthenticated", headers=_CHALLENGE)
        return found

    def _by_key(self, key: str) -> Caller | None:
        try:
            record = self._keyring.find(key)
        except KeysUnavailableError:
            raise _keys_unavailable() from None
        return None if record is None else _caller(record)

    async def _by_session(self, token: str) -> Caller | None:
        session_id = sessions.id_of(token)
        if self._sessions is None or session_id is None:
            return None
        try:
            session = await self._sessions.find(session_id)
        except TransientError:
            raise sessions_unavailable() from None
        if session is None or not session.is_opened_by(token):
            return None
        try:
            key = self._keyring.by_id(session.key_id)
        except KeysUnavailableError:
            raise _keys_unavailable() from None
        return session.caller(key, self._clock.now())


# Keys are revoked and made anew for as long as this process runs.
@lru_cache(maxsize=MAX_CALLERS)
def _caller(record: KeyRecord) -> Caller:
    several = record if record.is_wide else None
    return Caller(record.tenant, frozenset(record.scopes), record.id, tenants=several)


def _keys_unavailable() -> Refused:
    """503: what was known of keys is too old to be trusted."""
    return Refused(
        503,
        "no credentials can be looked up now",
        reason="keys_unavailable",
        headers={"retry-after": "5"},
    )


def sessions_unavailable() -> Refused:
    """503: nothing can be said about any session now."""
    return Refused(
        503,
        "sessions cannot be looked up now; API keys still work",
        reason="sessions_unavailable",
        headers={"retry-after": "2"},
    )
