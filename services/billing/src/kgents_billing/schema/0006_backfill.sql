-- How far a first look at everything Stripe has came: it may be interrupted and goes on.
create table billing.backfill (
    kind text primary key,
    since bigint not null,
    after text,
    is_done boolean not null default false,
    seen bigint not null default 0,
    told bigint not null default 0,
    skipped bigint not null default 0,
    updated_at timestamptz not null default now()
);
