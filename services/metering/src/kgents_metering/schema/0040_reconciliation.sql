-- How ledger and OpenMeter compared, each time somebody asked: proof for later, and what the alerts look at.
create table metering.reconciliation (
    id          bigint      generated always as identity primary key,
    at          timestamptz not null default now(),
    target      text        not null,
    start_hour  timestamptz not null,
    end_hour    timestamptz not null,
    compared    bigint      not null,   -- hours of a meter and a tenant
    waiting     bigint      not null,   -- left out, deliveries being under way
    differences bigint      not null,
    missing     bigint      not null,   -- events that the target does not have
    owed_again  bigint      not null,
    stuck       bigint      not null
);
create index reconciliation_target on metering.reconciliation (target, id);
