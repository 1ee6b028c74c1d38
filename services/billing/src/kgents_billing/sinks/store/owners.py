"""Whose events are, by what earlier events taught; it learns nothing itself."""

from __future__ import annotations

from psycopg import AsyncConnection
from psycopg_pool import AsyncConnectionPool

from kgents_billing.model.tenant import Hints, Owner
from kgents_common.database import transient_errors

_CUSTOMER = """
select coalesce(
    %(customer)s,
    (select customer from billing.reference where id = any(%(references)s) order by id limit 1),
    (select customer from billing.subscription where id = %(subscription)s)
)
"""
_TENANT = """
select coalesce(
    (select tenant from billing.subscription where id = %(subscription)s),
    (select tenant from billing.customer where id = %(customer)s)
)
"""


class Owners:
    """Reads of `billing.customer`, `billing.reference` and `billing.subscription`."""

    def __init__(self, pool: AsyncConnectionPool[AsyncConnection]) -> None:
        self._pool = pool

    async def of(self, said: Hints) -> Owner:
        """The customer and the tenant of an event that says this; its own words first, as a decision has it.

        Raises:
            TransientError: Postgres is away.
        """
        values: dict[str, object] = {
            "customer": said.customer,
            "references": list(said.references),
            "subscription": said.subscription,
        }
        with transient_errors():
            async with self._pool.connection() as connection:
                customer = await (await connection.execute(_CUSTOMER, values)).fetchone()
                values["customer"] = customer[0] if customer else None
                tenant = await (await connection.execute(_TENANT, values)).fetchone()
        return Owner(customer[0] if customer else None, said.tenant or (tenant[0] if tenant else None))
