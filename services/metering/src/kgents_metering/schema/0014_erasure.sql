-- What was erased of whom, when, by whom and why; the erased itself is nowhere.
create table metering.erasure (
    id           bigint      generated always as identity primary key,
    at           timestamptz not null default now(),
    actor        text        not null,
    reason       text        not null,
    tenant       text        not null,
    source_hash  bytea,                   -- blake2b-128 of the source; null for all of the tenant's
    before       timestamptz not null,    -- events that happened before this
    events       bigint      not null,
    conflicts    bigint      not null,
    dead_letters bigint      not null,
    messages     bigint      not null     -- that left the stream
);
alter table metering.event add column erased boolean not null default false;
