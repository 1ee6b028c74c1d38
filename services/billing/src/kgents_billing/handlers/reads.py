"""The way in for questions: the caller's own subscription, entitlements and entries, from the read model
alone."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Protocol

import msgspec
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from kgents_billing.model.access import Reading
from kgents_billing.model.entitlement import best_first, entitlements
from kgents_billing.model.entries import Entry
from kgents_billing.model.subscription import Subscription
from kgents_billing.sinks.store.subscriptions import Stored
from kgents_common.clock import Clock
from kgents_common.errors import TransientError
from kgents_common.keyring.reading import FindsKeys, tenant_of
from kgents_common.problems import problem

SCOPE = "billing:read"
DEFAULT_ENTRIES = 100
MAX_ENTRIES = 1000


class ReadsSubscriptions(Protocol):
    """The read model, as this door needs it."""

    async def of_tenant(self, tenant: str) -> list[Stored]:
        """Every subscription of a tenant."""


class ReadsEntries(Protocol):
    """What moved, as this door needs it."""

    async def of_tenant(self, tenant: str, limit: int) -> list[Entry]:
        """A tenant's entries, the latest first."""


class Reads:
    """The handlers.

    Args:
        grace: How long a past-due subscription stays usable; to its period's end where None.
    """

    def __init__(
        self,
        subscriptions: ReadsSubscriptions,
        entries: ReadsEntries,
        keyring: FindsKeys,
        clock: Clock,
        grace: timedelta | None,
        *,
        livemode: bool,
    ) -> None:
        self._subscriptions = subscriptions
        self._entries = entries
        self._keyring = keyring
        self._clock = clock
        self._grace = grace
        self._livemode = livemode

    async def subscription(self, request: Request) -> Response:
        """The tenant's best subscription (best access, then newest), and the others after it."""
        tenant = self._tenant(request)
        rows = await self._rows(tenant)
        if not rows:
            raise HTTPException(404, "this tenant has no subscription")
        found = best_first(rows, self._grace, self._clock.now())
        first, *others = [_shown(reading, row) for reading, row in found]
        return _json({"tenant": tenant, "livemode": self._livemode, **first, "others": others})

    async def entitlements(self, request: Request) -> Response:
        """What the tenant may use now; `none` where it never subscribed."""
        tenant = self._tenant(request)
        found = entitlements(tenant, await self._rows(tenant), self._grace, self._clock.now())
        return _json({**msgspec.structs.asdict(found), "livemode": self._livemode})

    async def entries(self, request: Request) -> Response:
        """What moved, the latest first: each entry with every state it was seen in, and what it comes to."""
        tenant = self._tenant(request)
        text = request.query_params.get("limit", str(DEFAULT_ENTRIES))
        if not text.isascii() or not text.isdecimal() or not 1 <= int(text[:9]) <= MAX_ENTRIES:
            raise HTTPException(400, f"limit must be a number from 1 to {MAX_ENTRIES}")
        found = await self._entries.of_tenant(tenant, int(text[:9]))
        ours = [entry for entry in found if entry.livemode in (None, self._livemode)]
        shown = [
            {**msgspec.to_builtins(entry), "state": entry.state, "in_balance": entry.in_balance}
            for entry in ours
        ]
        return _json({"tenant": tenant, "livemode": self._livemode, "entries": shown})

    async def _rows(self, tenant: str) -> list[Subscription]:
        """The tenant's subscriptions of this system's mode: a test gives access to nothing real."""
        found = await self._subscriptions.of_tenant(tenant)
        return [stored.row for stored in found if stored.livemode is self._livemode]

    def _tenant(self, request: Request) -> str:
        return tenant_of(self._keyring, request, SCOPE)


def routes(reads: Reads) -> list[BaseRoute]:
    """`GET /v1/billing/subscription`, `/v1/billing/entitlements` and `/v1/billing/entries`."""
    return [
        Route("/v1/billing/subscription", reads.subscription),
        Route("/v1/billing/entitlements", reads.entitlements),
        Route("/v1/billing/entries", reads.entries),
    ]


async def _answer_problem(_: Request, error: Exception) -> Response:
    if isinstance(error, HTTPException):
        return problem(error.status_code, error.detail, headers=error.headers)
    return problem(503, str(error), headers={"retry-after": "2"})


EXCEPTION_HANDLERS = {HTTPException: _answer_problem, TransientError: _answer_problem}


def _shown(reading: Reading, row: Subscription) -> dict[str, object]:
    state = row.state
    return {
        "access": reading.access.value,
        "why": reading.why,
        "until": reading.until,
        "subscription": row.id,
        "customer": state.customer,
        "status": state.status,
        "items": [msgspec.to_builtins(item) for item in state.items],
        "currency": state.currency,
        "current_period_start": _moment(state.period_start),
        "current_period_end": _moment(state.period_end),
        "trial_end": _moment(state.trial_end),
        "cancel_at": _moment(state.cancel_at),
        "cancel_at_period_end": state.cancel_at_period_end,
        "pause_reason": state.pause_reason,
        "latest_invoice": state.latest_invoice,
        "started_at": _moment(state.started),
        "ended_at": _moment(state.ended),
        "is_settled": reading.is_sure and not row.needs_refetch,
    }


def _moment(second: int | None) -> datetime | None:
    return None if second is None else datetime.fromtimestamp(second, UTC)


def _json(value: object) -> Response:
    return Response(msgspec.json.encode(value), media_type="application/json")
