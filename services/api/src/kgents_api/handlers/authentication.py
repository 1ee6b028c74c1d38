"""From request headers to a caller: an API key, as a bearer token or in `X-API-Key`."""

from __future__ import annotations

from collections.abc import Mapping

from kgents_api.handlers.refusal import Refused
from kgents_api.model.caller import Caller, FindsKeys
from kgents_api.model.failures import FailureCounts
from kgents_common.clock import Clock
from kgents_common.keyring import KeyRecord, presented

FAILURES_A_MINUTE = 100

_CHALLENGE = {"www-authenticate": 'Bearer realm="kgents"'}


class Authentication:
    """Knows callers by their API keys."""

    def __init__(self, keyring: FindsKeys, clock: Clock) -> None:
        self._keyring = keyring
        self._clock = clock
        self._failures = FailureCounts(FAILURES_A_MINUTE)
        self._callers: dict[KeyRecord, Caller] = {}

    async def caller(self, headers: Mapping[str, str], scope: str, *, address: str = "") -> Caller:
        """Who calls, having `scope`. `headers` has lower-case names.

        Unknown credentials count against the address, where one is given; good ones always pass.

        Raises:
            Refused: 401 without good credentials, 403 without the scope, 429 after too many unknown ones.
        """
        key = presented(headers)
        if not key:
            raise Refused(
                401,
                "send an API key: Authorization: Bearer kg_… or X-API-Key: kg_…",
                reason="unauthenticated",
                headers=_CHALLENGE,
            )
        record = self._keyring.find(key)
        if record is None:
            if address and self._failures.failed(address, self._clock.monotonic()):
                raise Refused(
                    429,
                    "too many unknown credentials from this address",
                    reason="too_many_failures",
                    headers={"retry-after": "60"},
                )
            raise Refused(
                401, "these credentials are not known", reason="unauthenticated", headers=_CHALLENGE
            )
        found = self._callers.get(record)
        if found is None:
            found = self._callers[record] = Caller(record.tenant, frozenset(record.scopes), record.id)
        if not found.may(scope):
            raise Refused(403, f"these credentials lack the scope {scope}", reason="forbidden")
        return found
