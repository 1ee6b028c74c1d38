"""What is known of an event's surroundings before it is decided: rows, words about owners, who paid; it
writes nothing."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import msgspec
from psycopg import AsyncConnection
from psycopg_pool import AsyncConnectionPool

from kgents_billing.model.entries import Entry
from kgents_billing.model.known import Known
from kgents_billing.model.ownership import NOW, Kind
from kgents_billing.model.projection import State
from kgents_billing.model.subscription import Ownership, Subscription
from kgents_billing.model.tenant import Hints
from kgents_billing.sinks.store.entries import asked_payer
from kgents_billing.sinks.store.owners import WHO, asked_about, words_of
from kgents_billing.sinks.store.subscriptions import COLUMNS, as_stored
from kgents_billing.sinks.store.tenants import unknown_of
from kgents_common.database import transient_errors

_CUSTOMER = f"""
select who.id, customer.tenant from (select {WHO} as id) as who left join billing.customer using (id)
"""


_DAY = 86_400
_OF_BEFORE = """
select id from billing.entry
where tenant = %(tenant)s and second between %(since)s and %(until)s and kind = 'checkout'
    and currency = %(currency)s and (seen #>> '{paid,amount}')::bigint = %(amount)s
    and exists (select from billing.fact where key = 'pay:' || entry.id and type = 'payment.success')
order by second, id
"""


class Surroundings:
    """Reads what a decision needs.

    Args:
        knows: Whether a key names this tenant; None where every name is a tenant's.
    """

    def __init__(
        self, pool: AsyncConnectionPool[AsyncConnection], knows: Callable[[str], bool] | None = None
    ) -> None:
        self._pool = pool
        self._knows = knows

    async def known(self, event_ids: Sequence[str], said: Hints) -> Known:
        """What is known about an event's surroundings.

        Args:
            event_ids: Its id, and its twin's.

        Raises:
            TransientError: Postgres is away.
        """
        with transient_errors():
            # Asked together, answered together: a round trip for each was a third of an event's work.
            async with self._pool.connection() as connection, connection.pipeline():
                applied = await connection.execute(
                    "select 1 from billing.applied where event_id = any(%s)", [list(event_ids)]
                )
                subscription = await connection.execute(
                    f"select {COLUMNS} from billing.subscription where id = %s".encode(), [said.subscription]
                )
                customer = await connection.execute(
                    _CUSTOMER, {"customer": said.customer, "references": list(said.references)}
                )
                asked = await asked_about(connection, said.subscription, said.customer, said.references)
                payer = await asked_payer(connection, said.payment, said.references)
                await connection.commit()  # sent with the questions: else a round trip of its own
                if await applied.fetchone() is not None:
                    return Known(is_applied=True)
                row = await subscription.fetchone()
                _, tenant = await customer.fetchone() or (None, None)
                words = await words_of(asked)
                paid_by = await payer.fetchone()
                named = [name for name in (said.tenant, said.before) if name is not None]
                unknown = await unknown_of(connection, named, self._knows)
        return Known(
            subscription=as_stored(row).row if row else None,
            customer_tenant=tenant,
            subscription_words=tuple(word for word in words if word.kind is Kind.SUBSCRIPTION),
            customer_words=tuple(word for word in words if word.kind is Kind.CUSTOMER),
            unknown=unknown,
            payment_tenant=paid_by[0] if paid_by else None,
        )

    async def checkouts_of_before(self, paid: Entry, tenant: str) -> list[str]:
        """Checkouts that the first version told as payments, over as much, about when this invoice was paid.

        It told of a checkout also where that had an invoice, which tells by itself since.

        Raises:
            TransientError: Postgres is away.
        """
        mark = paid.seen["paid"]
        with transient_errors():
            async with self._pool.connection() as connection:
                found = await connection.execute(
                    _OF_BEFORE,
                    {
                        "tenant": tenant,
                        "currency": paid.currency,
                        "amount": mark.amount,
                        "since": mark.second - _DAY,
                        "until": mark.second + _DAY,
                    },
                )
                return [row[0] for row in await found.fetchall()]

    async def only_open(self, state: State) -> State:
        """The state, naming no tenant where it names one that nobody opened.

        Raises:
            TransientError: Postgres is away.
        """
        if state.tenant is None:
            return state
        with transient_errors():
            async with self._pool.connection() as connection:
                unknown = await unknown_of(connection, [state.tenant], self._knows)
        return msgspec.structs.replace(state, tenant=None) if unknown else state

    async def ownership(
        self, name: str, row: Subscription | None, state: State, looked_up: str | None = None
    ) -> Ownership | None:
        """Whose a subscription is that was looked at; None where nobody knows.

        Args:
            looked_up: Whose Stripe's customer object says it is.

        Raises:
            TransientError: Postgres is away.
        """
        known = await self.known([], Hints(subscription=name, customer=state.customer))
        assigned = known.assigned(NOW)
        now = state.tenant or known.owner(NOW) or (row.tenant if row else None) or looked_up or assigned
        return None if now is None else Ownership(now, now, assigned=assigned)
