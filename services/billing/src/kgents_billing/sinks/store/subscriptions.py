"""Rows of subscriptions, read and written as the model has them; it decides nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import msgspec
from psycopg import AsyncConnection
from psycopg_pool import AsyncConnectionPool

from kgents_billing.model.access import Access
from kgents_billing.model.order import Window
from kgents_billing.model.projection import State
from kgents_billing.model.subscription import Subscription
from kgents_common.database import transient_errors
from kgents_common.errors import TransientError

COLUMNS = (
    "id, tenant, livemode, state::text, recent::text, has_started, observed_via, needs_refetch, last_access,"
    " last_event, version, updated_at, account, not_found,"
    " past_due_entered, past_due_left"
)

# Its trial or period is over, or it was to end, for an hour; and it was not looked at within the last one.
_OVERDUE = """
update billing.subscription set needs_refetch = true, version = version + 1
where not needs_refetch and status in ('trialing', 'active', 'past_due', 'unpaid', 'paused')
    and updated_at < now() - interval '1 hour'
    and extract(epoch from now()) - 3600 > least(
        case when status = 'trialing' then (state ->> 'trial_end')::bigint end,
        case when status = 'active' then (state ->> 'period_end')::bigint end,
        (state ->> 'cancel_at')::bigint
    )
"""

_INSERT = """
insert into billing.subscription (id, tenant, customer, livemode, account, status, state, recent, has_started,
    observed_via, needs_refetch, last_access, last_event, past_due_entered, past_due_left, version)
values (%(id)s, %(tenant)s, %(customer)s, %(livemode)s, %(account)s, %(status)s, %(state)s, %(recent)s,
    %(has_started)s, %(observed_via)s, %(needs_refetch)s, %(last_access)s, %(last_event)s,
    %(past_due_entered)s, %(past_due_left)s, 1)
on conflict (id) do nothing returning version
"""
_UPDATE = """
update billing.subscription set tenant = %(tenant)s, customer = %(customer)s, status = %(status)s,
    state = %(state)s, recent = %(recent)s, has_started = %(has_started)s, observed_via = %(observed_via)s,
    needs_refetch = %(needs_refetch)s, last_access = %(last_access)s, last_event = %(last_event)s,
    past_due_entered = %(past_due_entered)s, past_due_left = %(past_due_left)s,
    version = version + 1, updated_at = now(), not_found = false
where id = %(id)s and version = %(version)s returning version
"""


class OvertakenError(TransientError):
    """The subscription was written meanwhile: decide again with what is there now."""


@dataclass(frozen=True, slots=True)
class Stored:
    """A subscription as it is stored."""

    row: Subscription
    livemode: bool
    updated_at: datetime
    account: str | None = None
    not_found: bool = False


class Subscriptions:
    """Reads of `billing.subscription`."""

    def __init__(self, pool: AsyncConnectionPool[AsyncConnection]) -> None:
        self._pool = pool

    async def of_tenant(self, tenant: str) -> list[Stored]:
        """Every subscription of a tenant.

        Raises:
            TransientError: Postgres is away.
        """
        return await self._select("where tenant = %s", [tenant])

    async def of_customer(self, customer: str) -> list[Stored]:
        """Every subscription of a customer.

        Raises:
            TransientError: Postgres is away.
        """
        return await self._select("where customer = %s order by id", [customer])

    async def get(self, subscription_id: str) -> Stored | None:
        """One subscription.

        Raises:
            TransientError: Postgres is away.
        """
        found = await self._select("where id = %s", [subscription_id])
        return found[0] if found else None

    async def to_refetch(self, limit: int) -> list[Stored]:
        """Those whose last state only Stripe can tell, the longest waiting first.

        Raises:
            TransientError: Postgres is away.
        """
        return await self._select(
            "where needs_refetch and refetch_after <= now() order by updated_at limit %s", [limit]
        )

    async def mark_overdue(self) -> int:
        """Mark for a look at Stripe what should have said by now what became of it; how many.

        Raises:
            TransientError: Postgres is away.
        """
        with transient_errors():
            async with self._pool.connection() as connection:
                marked = await connection.execute(_OVERDUE)
                return marked.rowcount

    async def count_to_refetch(self) -> int:
        """How many of those there are."""
        with transient_errors():
            async with self._pool.connection() as connection:
                row = await (
                    await connection.execute("select count(*) from billing.subscription where needs_refetch")
                ).fetchone()
        return row[0] if row else 0

    async def _select(self, condition: str, values: Sequence[object]) -> list[Stored]:
        with transient_errors():
            async with self._pool.connection() as connection:
                cursor = await connection.execute(
                    f"select {COLUMNS} from billing.subscription {condition}".encode(), values
                )
                return [as_stored(row) for row in await cursor.fetchall()]


def as_stored(row: Sequence[Any]) -> Stored:
    """A row of `COLUMNS`."""
    return Stored(
        Subscription(
            id=row[0],
            tenant=row[1],
            state=msgspec.json.decode(row[3], type=State),
            window=msgspec.json.decode(row[4], type=Window),
            has_started=row[5],
            observed_via=row[6],
            needs_refetch=row[7],
            last_access=Access(row[8]),
            last_event=row[9],
            version=row[10],
            past_due_entered=row[14],
            past_due_left=row[15],
        ),
        livemode=row[2],
        updated_at=row[11],
        account=row[12],
        not_found=row[13],
    )


async def put_subscription(
    connection: AsyncConnection, row: Subscription, *, livemode: bool, account: str | None
) -> None:
    """Write a subscription's row in the caller's transaction.

    Raises:
        OvertakenError: It was written since this one was read.
    """
    values = {
        "id": row.id,
        "tenant": row.tenant,
        "customer": row.state.customer,
        "livemode": livemode,
        "account": account,
        "status": row.state.status,
        "state": msgspec.json.encode(row.state).decode(),
        "recent": msgspec.json.encode(row.window).decode(),
        "has_started": row.has_started,
        "observed_via": row.observed_via,
        "needs_refetch": row.needs_refetch,
        "last_access": row.last_access.value,
        "last_event": row.last_event,
        "past_due_entered": row.past_due_entered,
        "past_due_left": row.past_due_left,
        "version": row.version,
    }
    written = await connection.execute(_INSERT if row.version == 0 else _UPDATE, values)
    if await written.fetchone() is None:
        raise OvertakenError(f"subscription {row.id} was written meanwhile")
