"""Facts put where the bus takes them from, each once: the semantic key decides; it publishes nothing."""

from __future__ import annotations

from collections.abc import Sequence

from psycopg import AsyncConnection

from kgents_billing.model.facts import Fact
from kgents_billing.sinks.store.tenants import note_open

_FACTS = """
insert into billing.fact (key, tenant, type, subject, body, traceparent)
select t.key, t.tenant, t.type, t.subject, t.body, %(traceparent)s
from unnest(%(keys)s::text[], %(formerly)s::text[], %(of_tenants)s::text[], %(of_times)s::text[],
    %(tenants)s::text[], %(types)s::text[], %(subjects)s::text[], %(bodies)s::bytea[])
    with ordinality as t (key, formerly, of_tenant, of_time, tenant, type, subject, body, place)
where not exists (
    select 1 from billing.fact as told
    where told.key = any(string_to_array(t.formerly, ' '))
        -- A checkout's failure and its success had one key.
        and (told.type = t.type or told.key not like 'pay:%%')
        and told.tenant = coalesce(t.of_tenant, told.tenant)
        and (t.of_time is null or convert_from(told.body, 'UTF8')::jsonb ->> 'time' = t.of_time)
)
order by t.place
on conflict (key) do nothing returning key
"""


async def tell(
    connection: AsyncConnection, tenant: str | None, facts: Sequence[Fact], traceparent: str | None
) -> int:
    """Tell facts, those that say no tenant of their own to `tenant`; how many are new."""
    owned = [(fact, fact.tenant or tenant or "") for fact in facts]
    if not facts:
        return 0
    assert all(owner for _, owner in owned)  # noqa: S101 a decision with facts says whose they are
    await note_open(connection, {owner for _, owner in owned})
    told = await connection.execute(
        _FACTS,
        {
            "traceparent": traceparent,
            "keys": [fact.key for fact in facts],
            "formerly": [" ".join(fact.formerly) for fact in facts],
            "of_tenants": [fact.tenant for fact in facts],
            "of_times": [fact.time if fact.formerly_is_of_its_second else None for fact in facts],
            "tenants": [owner for _, owner in owned],
            "types": [fact.type for fact in facts],
            "subjects": [fact.subject(owner) for fact, owner in owned],
            "bodies": [fact.body(owner) for fact, owner in owned],
        },
    )
    return len(await told.fetchall())
