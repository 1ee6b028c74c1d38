"""Entries kept: what moved, whose payment it was, and by which names a payment goes; sums are the model's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
from psycopg import AsyncConnection, AsyncCursor
from psycopg_pool import AsyncConnectionPool

from kgents_billing.model.decision import Payment
from kgents_billing.model.entries import Entry, EntryKind, Mark, merged
from kgents_billing.model.facts import Fact
from kgents_billing.model.money_facts import facts_of
from kgents_common.database import transient_errors

# What one payment intent or charge paid: an invoice's payment names it, or it has no other name.
_PAID_BY = """
select in_balance from billing.entry
where (kind = 'invoice_payment' and (seen #>> '{paid,data,payment_intent}' = any(%(names)s)
        or seen #>> '{paid,data,charge}' = any(%(names)s)))
    or (kind in ('checkout', 'invoice')
        and id in (select payment from billing.payment_name where id = any(%(names)s)))
order by kind = 'invoice_payment' desc limit 1
"""
COLUMNS = "id, kind, of, currency, seen::text, source, livemode, account, tenant"
# A state that was heard before is kept as it was.
_KEEP = """
insert into billing.entry as e (id, kind, of, tenant, currency, source, livemode, account, seen, state,
    in_balance, second)
values (%(id)s, %(kind)s, %(of)s, %(tenant)s, %(currency)s, %(source)s, %(livemode)s, %(account)s, %(seen)s,
    %(state)s, %(in_balance)s, %(second)s)
on conflict (kind, id) do update set seen = excluded.seen || e.seen, updated_at = now(),
    livemode = coalesce(e.livemode, excluded.livemode), account = coalesce(e.account, excluded.account)
returning e.id, e.kind, e.of, e.currency, e.seen::text, e.source, e.livemode, e.account, e.tenant
"""
_SUM = """
update billing.entry set state = %(state)s, in_balance = %(in_balance)s where kind = %(kind)s and id = %(id)s
"""
_PAYMENT = """
insert into billing.payment as p (id, tenant, customer, is_paid)
values (%(id)s, %(tenant)s, %(customer)s, %(is_paid)s)
on conflict (id) do update set tenant = excluded.tenant, is_paid = true
where excluded.is_paid and not p.is_paid
"""
_NAMES = """
insert into billing.payment_name (id, payment)
select id, payment from unnest(%(ids)s::text[], %(payments)s::text[]) as t (id, payment) order by id
on conflict (id) do nothing
"""
_PAYER = """
select tenant from billing.payment where id in (
    select %(payment)s::text union select payment from billing.payment_name where id = any(%(names)s)
) order by is_paid desc, id limit 1
"""


async def asked_payer(connection: AsyncConnection, payment: str | None, names: Sequence[str]) -> AsyncCursor:
    """The question who paid, by the payment's id or one of its names: no row where that is not known."""
    return await connection.execute(_PAYER, {"payment": payment, "names": list(names)})


async def keep_payment(
    connection: AsyncConnection, payment: Payment | None, tenant: str, names: Sequence[tuple[str, str]]
) -> None:
    """Note whose a payment is, and its names; what waited for that is tried again now."""
    if payment is not None:
        await connection.execute(
            _PAYMENT,
            {
                "id": payment.id,
                "tenant": tenant,
                "customer": payment.customer,
                "is_paid": payment.is_paid,
            },
        )
    if names:
        await connection.execute(
            _NAMES, {"ids": [name for name, _ in names], "payments": [of for _, of in names]}
        )
    known = {name for pair in names for name in pair} | ({payment.id} if payment else set())
    if known:
        await connection.execute(
            "update billing.quarantine set next_at = now() where waits_for && %s", [sorted(known)]
        )


async def keep_entry(connection: AsyncConnection, entry: Entry, tenant: str) -> tuple[str, list[Fact]]:
    """Add a state to an entry; whose it is, and every fact that it tells by now."""
    written = await connection.execute(_KEEP, {**_row(entry), "tenant": tenant})
    row = await written.fetchone()
    assert row is not None  # noqa: S101 an upsert returns its row
    whole = as_entry(row)
    if whole.seen != entry.seen:
        await connection.execute(_SUM, _row(whole))
    return row[8], facts_of(merged(whole, entry))


def as_entry(row: Sequence[Any]) -> Entry:
    """A row of `COLUMNS`."""
    return Entry(
        id=row[0],
        kind=EntryKind(row[1]),
        of=row[2],
        currency=row[3],
        seen=msgspec.json.decode(row[4], type=dict[str, Mark]),
        source=row[5],
        livemode=row[6],
        account=row[7],
    )


def _row(entry: Entry) -> dict[str, object]:
    return {
        "id": entry.id,
        "kind": entry.kind.value,
        "of": entry.of,
        "currency": entry.currency,
        "source": entry.source,
        "livemode": entry.livemode,
        "account": entry.account,
        "seen": msgspec.json.encode(entry.seen).decode(),
        "state": entry.state,
        "in_balance": entry.in_balance,
        "second": min(mark.second for mark in entry.seen.values()),
    }


class Entries:
    """Reads of `billing.entry`."""

    def __init__(self, pool: AsyncConnectionPool[AsyncConnection]) -> None:
        self._pool = pool

    async def get(self, kind: EntryKind, name: str) -> Entry | None:
        """One entry.

        Raises:
            TransientError: Postgres is away.
        """
        found = await self._select("where kind = %s and id = %s", [kind.value, name])
        return found[0] if found else None

    async def like(self, kind: EntryKind, prefix: str) -> list[Entry]:
        """Entries whose id begins so: the movements of a dispute."""
        return await self._select("where kind = %s and starts_with(id, %s) order by id", [kind.value, prefix])

    async def of_payment(self, name: str) -> list[Entry]:
        """Everything that moved by a payment, known by any of its names."""
        return await self._select(
            "where of in (select %(name)s::text union select id from billing.payment_name where payment in"
            " (select %(name)s::text union select payment from billing.payment_name where id = %(name)s)"
            " union select payment from billing.payment_name where id = %(name)s)"
            " order by second, kind, id",
            {"name": name},
        )

    async def of_tenant(self, tenant: str, limit: int) -> list[Entry]:
        """A tenant's entries, the latest first."""
        return await self._select("where tenant = %s order by second desc, id limit %s", [tenant, limit])

    async def paid_by(self, names: Sequence[str]) -> int | None:
        """What a payment intent or charge brought in through Stripe; None where no entry stands for it.

        An invoice's own payments say it; an invoice without any says all that was paid of it.
        """
        with transient_errors():
            async with self._pool.connection() as connection:
                found = await connection.execute(_PAID_BY, {"names": list(names)})
                row = await found.fetchone()
        return None if row is None else row[0]

    async def _select(self, condition: str, values: Sequence[object] | Mapping[str, object]) -> list[Entry]:
        with transient_errors():
            async with self._pool.connection() as connection:
                found = await connection.execute(
                    f"select {COLUMNS} from billing.entry {condition}".encode(), values
                )
                return [as_entry(row) for row in await found.fetchall()]
