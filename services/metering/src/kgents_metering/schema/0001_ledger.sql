-- The ledger: what was counted, once and for ever, and what is still owed to OpenMeter.
-- Applied in name order by kgents_common.database.migrate; a file that has run is never edited.

create schema if not exists metering;

-- One row for each event that counts. Append only.
create sequence metering.event_n;
create table metering.event (
    n            bigint      primary key,
    key          bytea       not null,  -- the identity, as in `seen`
    tenant       text        not null,
    type         text        not null,
    source       text        not null,
    ce_id        text        not null,
    time         timestamptz not null,  -- when it happened, the producer's word
    stored_at    timestamptz not null,  -- when JetStream stored it
    epoch        timestamptz not null,  -- the stream's creation time: sequences restart with a stream
    seq          bigint      not null,
    data         text        not null   -- the JSON object as it was sent; text, as jsonb would refuse an escaped NUL
);
create index event_by_tenant_type_time on metering.event (tenant, type, time);
-- Backfills and listings walk one event type, or one stream, in order.
create index event_by_seq on metering.event (epoch, seq);

-- The permanent memory of what was counted: the key decides, not a time window.
create table metering.seen (
    key          bytea  primary key,    -- blake2b-128 of tenant, source, id
    n            bigint not null,
    payload_hash bytea  not null        -- blake2b-128 of the canonical type, time, subject, data
);

-- Messages that came again (same key, same payload) and messages that contradict what was counted.
create table metering.duplicate (
    epoch timestamptz not null,
    seq   bigint      not null,
    n     bigint      not null,         -- the event that was counted instead
    at    timestamptz not null default now(),
    primary key (epoch, seq)
);
create table metering.conflict (
    epoch        timestamptz not null,
    seq          bigint      not null,
    n            bigint      not null,
    payload_hash bytea       not null,
    body         bytea       not null,
    at           timestamptz not null default now(),
    primary key (epoch, seq)
);

-- Dead letters: whole, with the reason; replayed or discarded by an operator, never deleted.
create table metering.dead (
    id         bigint      generated always as identity primary key,
    epoch      timestamptz not null,
    seq        bigint      not null,
    subject    text        not null,
    headers    text        not null,    -- JSON object of string lists
    body       bytea       not null,
    code       text        not null,
    detail     text        not null,
    stored_at  timestamptz not null,
    at         timestamptz not null default now(),
    state      text        not null default 'open' check (state in ('open', 'replayed', 'discarded')),
    settled_at timestamptz,
    reason     text,                    -- the operator's, where discarded
    replay_seq bigint,                  -- the sequence its replay was stored under
    mirrored   boolean     not null default false,  -- published to events.deadletter.metering.<code>
    unique (epoch, seq)
);
create index dead_open on metering.dead (id) where state = 'open';
create index dead_to_mirror on metering.dead (id) where not mirrored;

-- Meters as applied: every metering process measures by these rows, not by its own file. A slug whose
-- groupBy changes gets a new row and a backfill; it answers queries once backfill_after = backfill_to.
create table metering.meter (
    id             integer     generated always as identity primary key,
    ulid           text        not null,
    slug           text        not null,
    fingerprint    bytea       not null, -- of event_type, event_from, aggregation, value_property, group_by
    definition     jsonb       not null,
    event_type     text        not null,
    created_at     timestamptz not null default now(),
    updated_at     timestamptz not null default now(),
    deleted_at     timestamptz,
    backfill_after bigint      not null default 0,  -- events n <= this are in the rollup by backfill
    backfill_to    bigint      not null default 0,  -- events n <= this are the backfill's, later ones the apply loop's
    unique (slug, fingerprint)
);

-- Raised with every change of the meters: an apply that sees another number reads them again.
create table metering.meter_set (
    one     boolean primary key default true check (one),
    version bigint  not null
);
insert into metering.meter_set (version) values (0);

-- One row for each meter, tenant, UTC minute and group. Sums are exact.
create table metering.rollup (
    meter      integer     not null,
    tenant     text        not null,
    minute     timestamptz not null,
    grp_key    bytea       not null,    -- blake2b-128 of the canonical group: a group value may be long, an index row may not
    grp        jsonb       not null,    -- {group_by key: value}
    cnt        bigint      not null,
    sum        numeric,
    min        numeric,
    max        numeric,
    last_time  timestamptz,
    last_n     bigint,
    last_value numeric,
    primary key (meter, tenant, minute, grp_key)
);
create table metering.distinct_value (
    meter   integer     not null,
    tenant  text        not null,
    minute  timestamptz not null,
    grp_key bytea       not null,
    vhash   bytea       not null,       -- blake2b-128 of the value as text
    primary key (meter, tenant, minute, grp_key, vhash)
);

-- Counted, but without a value this meter could use.
create table metering.invalid (
    n       bigint  not null,
    meter   integer not null,
    code    text    not null,
    message text    not null,
    primary key (n, meter)
);

-- What is owed to a target; a row exists exactly while it is undelivered.
create table metering.outbox (
    target     text        not null,
    n          bigint      not null,
    attempts   integer     not null default 0,
    first_at   timestamptz,             -- the first attempt: past the target's dedupe window we ask before we resend
    next_at    timestamptz not null default '-infinity',
    last_code  integer,
    last_detail text,
    traceparent text,                   -- of a sampled trace, to go on in the delivery
    poison     boolean     not null default false,  -- the target refused this very event; an operator's to replay or discard
    primary key (target, n)
);
create index outbox_due on metering.outbox (target, next_at, n) where not poison;
create table metering.delivered (
    target text        not null,
    n      bigint      not null,
    at     timestamptz not null default now(),
    primary key (target, n)
);
-- What an operator took out of the outbox without delivery, and why.
create table metering.forgone (
    target text        not null,
    n      bigint      not null,
    reason text        not null,
    at     timestamptz not null default now(),
    primary key (target, n)
);

-- Which sequences of a stream's epoch have been applied, as ranges: what is missing between them is a gap.
create table metering.cursor (
    stream  text           not null,
    epoch   timestamptz    not null,
    applied int8multirange not null default '{}',
    primary key (stream, epoch)
);

-- Singletons (deliver, backfill): the holder of the advisory lock raises the epoch; writes of an older one are refused.
create table metering.leader (
    name   text        primary key,
    epoch  bigint      not null,
    holder text        not null,
    at     timestamptz not null default now()
);
