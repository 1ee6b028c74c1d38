-- Billing's own schema. Nobody else reads it.
--
-- One transaction holds everything an event leads to: the row of its subscription, its facts (which are the
-- outbox), what it teaches about customers, and that it was applied. Rows that decide what happens once have a
-- primary key for it; Redis decides nothing.

-- What became of each Stripe event. `outcome` is applied, ignored or dead.
create table billing.applied (
    event_id text primary key,
    type text not null,
    outcome text not null,
    at timestamptz not null default now()
);
create index applied_at on billing.applied (at);

create table billing.subscription (
    id text primary key,
    tenant text not null,
    customer text,
    livemode boolean not null,
    status text not null,
    -- What matters of the object, and what is remembered of the last seconds (see model/order.py).
    state jsonb not null,
    recent jsonb not null,
    has_started boolean not null,
    observed_via text not null,
    needs_refetch boolean not null,
    last_access text not null,
    last_event text,
    -- Raised by every write; a write names the version it was made from.
    version bigint not null,
    updated_at timestamptz not null default now()
);
create index subscription_tenant on billing.subscription (tenant);
create index subscription_customer on billing.subscription (customer);
create index subscription_refetch on billing.subscription (updated_at) where needs_refetch;

-- Facts under their semantic keys, for ever; those without `published_at` are owed to the bus.
create table billing.fact (
    key text primary key,
    n bigint generated always as identity,
    tenant text not null,
    type text not null,
    subject text not null,
    body bytea not null,
    traceparent text,
    made_at timestamptz not null default now(),
    published_at timestamptz
);
create index fact_owed on billing.fact (n) where published_at is null;

-- Whose a customer is. A higher trust replaces a lower one, a later word an earlier one, whatever their order
-- of arrival.
create table billing.customer (
    id text primary key,
    tenant text,
    trust smallint not null,
    second bigint not null,
    is_deleted boolean not null default false,
    updated_at timestamptz not null default now()
);

-- Charges and payment intents, by which a refund or a dispute finds its customer.
create table billing.reference (
    id text primary key,
    customer text not null
);

-- Events nobody could say the tenant of (yet), whole.
create table billing.quarantine (
    event_id text primary key,
    type text not null,
    customer text,
    subject text not null,
    body bytea not null,
    epoch timestamptz not null,
    seq bigint not null,
    reason text not null,
    first_at timestamptz not null default now(),
    tries integer not null default 0,
    next_at timestamptz not null default now()
);
create index quarantine_next on billing.quarantine (next_at);
create index quarantine_customer on billing.quarantine (customer);

-- Events set aside for an operator, whole; none is ever deleted.
create table billing.dead (
    id bigint generated always as identity primary key,
    event_id text,
    type text not null,
    subject text not null,
    body bytea not null,
    epoch timestamptz not null,
    seq bigint not null,
    code text not null,
    detail text not null,
    at timestamptz not null default now(),
    state text not null default 'open' check (state in ('open', 'replayed', 'discarded')),
    settled_at timestamptz,
    reason text,
    mirrored boolean not null default false,
    unique (epoch, seq)
);
create index dead_mirror on billing.dead (id) where not mirrored;

-- How far each poll has come: `events` up to this second of Stripe's clock, `subscriptions` last looked at.
create table billing.cursor (
    name text primary key,
    second bigint not null,
    updated_at timestamptz not null default now()
);
