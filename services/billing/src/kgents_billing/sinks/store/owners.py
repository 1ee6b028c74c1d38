"""Whose things are and were: words about ownership, kept and read; what they say together is the model's."""

from __future__ import annotations

from collections.abc import Sequence

from psycopg import AsyncConnection, AsyncCursor
from psycopg_pool import AsyncConnectionPool

from kgents_billing.model.ownership import NOW, Kind, SaidBy, Word, assigned_at, owner_at
from kgents_billing.model.tenant import Hints, Learned, Owner
from kgents_common.database import transient_errors

# The customer that is named, or the one of the references.
WHO = """coalesce(
    %(customer)s, (select customer from billing.reference where id = any(%(references)s) order by id limit 1)
)"""
_CUSTOMER = f"""
select coalesce({WHO}, (select customer from billing.subscription where id = %(subscription)s))
"""
_TENANT = """
select coalesce(
    (select tenant from billing.subscription where id = %(subscription)s),
    (select tenant from billing.customer where id = %(customer)s)
)
"""

_WORDS = f"""
select kind, id, second, after, before, said_by from billing.owner
where (kind = 'subscription' and id = %(subscription)s) or (kind = 'customer' and id = {WHO})
order by second, before, after
"""
# A word that only repeats an earlier one is left out: one that came before it may be repeated.
_SAY = """
insert into billing.owner (kind, id, second, before, after, said_by, event_id)
select %(kind)s, %(id)s, %(second)s, %(before)s, %(after)s, %(said_by)s, %(event)s
where %(before)s <> '' or %(said_by)s = 'operator' or not exists (
    select 1 from billing.owner
    where kind = %(kind)s and id = %(id)s and after = %(after)s and second <= %(second)s and said_by = 'event'
)
on conflict do nothing
"""
# Subscriptions that never said whose they are follow their customer.
_FOLLOW = """
update billing.subscription set tenant = %(tenant)s, version = version + 1, updated_at = now()
where customer = %(customer)s and tenant <> %(tenant)s and state ->> 'tenant' is null
    and not exists (select 1 from billing.owner where kind = 'subscription' and owner.id = subscription.id)
"""

# Which word stands does not depend on the order in which words arrive.
_LEARN = """
insert into billing.customer as c (id, tenant, trust, second, is_deleted)
values (%(customer)s, %(tenant)s, %(trust)s, %(second)s, %(is_deleted)s)
on conflict (id) do update set
    is_deleted = c.is_deleted or excluded.is_deleted,
    updated_at = now(),
    (tenant, trust, second) = (
        select tenant, trust, second
        from (values (c.tenant, c.trust, c.second), (excluded.tenant, excluded.trust, excluded.second))
            as word (tenant, trust, second)
        order by trust desc, second desc, tenant desc nulls last limit 1
    )
"""


async def words_about(
    connection: AsyncConnection, subscription: str | None, customer: str | None
) -> list[Word]:
    """Everything said of who owns a subscription, and a customer."""
    return await words_of(await asked_about(connection, subscription, customer))


async def asked_about(
    connection: AsyncConnection,
    subscription: str | None,
    customer: str | None,
    references: Sequence[str] = (),
) -> AsyncCursor:
    """The question for `words_of`; a customer that is not named is the one of these references."""
    return await connection.execute(
        _WORDS, {"subscription": subscription, "customer": customer, "references": list(references)}
    )


async def words_of(found: AsyncCursor) -> list[Word]:
    """What `asked_about` found."""
    return [
        Word(Kind(kind), name, second, after, before, SaidBy(said_by))
        for kind, name, second, after, before, said_by in await found.fetchall()
    ]


async def say(connection: AsyncConnection, words: Sequence[Word], event_id: str | None) -> None:
    """Keep words."""
    for word in words:
        await connection.execute(
            _SAY,
            {
                "kind": word.kind.value,
                "id": word.id,
                "second": word.second,
                "before": word.before,
                "after": word.after,
                "said_by": word.said_by.value,
                "event": event_id,
            },
        )


async def follow(connection: AsyncConnection, words: Sequence[Word]) -> None:
    """Subscriptions that never said whose they are go where their customer goes."""
    for word in words:
        if word.kind is Kind.CUSTOMER:
            known = await words_about(connection, None, word.id)
            now = assigned_at(known, NOW) or owner_at(known, NOW)
            await connection.execute(_FOLLOW, {"customer": word.id, "tenant": now})


async def learn(connection: AsyncConnection, learned: Learned, second: int) -> None:
    """Keep what an event teaches of a customer."""
    if learned.tenant is not None or learned.is_deleted:
        await connection.execute(
            _LEARN,
            {
                "customer": learned.customer,
                "tenant": learned.tenant,
                "trust": int(learned.trust) if learned.tenant is not None else 0,
                "second": second,
                "is_deleted": learned.is_deleted,
            },
        )
        # What waited to learn whose it is need wait no longer.
        await connection.execute(
            "update billing.quarantine set next_at = now() where customer = %s", [learned.customer]
        )
    if learned.references:
        await connection.execute(
            "insert into billing.reference (id, customer) select id, %s from unnest(%s::text[]) as id"
            " order by id on conflict (id) do nothing",
            [learned.customer, list(learned.references)],
        )


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
