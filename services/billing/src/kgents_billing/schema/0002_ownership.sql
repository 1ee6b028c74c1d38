-- Whose a subscription or a customer is, with a validity in time, and which tenants are open.

-- Tenants that somebody opened: a key names them, an operator said so, or the version before told them facts.
-- A name in metadata opens none.
create table billing.tenant (
    name text primary key,
    opened_by text not null,
    opened_at timestamptz not null default now()
);
insert into billing.tenant (name, opened_by)
select tenant, 'before' from billing.fact
union select tenant, 'before' from billing.subscription
union select tenant, 'before' from billing.customer where tenant is not null;

-- Words about ownership, only ever added to: from this second of Stripe's clock on it is `after`'s; until then
-- it was `before`'s, where that is not empty. Who owned it when is read off all of them, in no order
-- (model/ownership.py).
create table billing.owner (
    kind text not null check (kind in ('subscription', 'customer')),
    id text not null,
    second bigint not null,
    before text not null default '',
    after text not null default '',
    said_by text not null check (said_by in ('event', 'operator', 'before')),
    event_id text,
    at timestamptz not null default now(),
    primary key (kind, id, second, before, after, said_by)
);
insert into billing.owner (kind, id, second, after, said_by)
select 'subscription', id, coalesce((state ->> 'created')::bigint, (recent ->> 'first')::bigint, 0), tenant,
    'before'
from billing.subscription;
insert into billing.owner (kind, id, second, after, said_by)
select 'customer', id, second, tenant, 'before' from billing.customer where tenant is not null and trust = 3;

-- The name an event gave that is no open tenant's.
alter table billing.quarantine add column named text;
alter table billing.quarantine add column subscription text;
create index quarantine_named on billing.quarantine (named) where named is not null;
