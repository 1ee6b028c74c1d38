-- Meters are put in force by whoever applies them, not by every process that starts: which version was, and what changed.
alter table metering.meter_set
    add column applied_version bigint not null default 0,
    add column applied_at      timestamptz;
update metering.meter_set set applied_at = now() where exists (select from metering.meter);

create table metering.meter_change (
    id         bigint      generated always as identity primary key,
    at         timestamptz not null default now(),
    actor      text        not null,
    action     text        not null,    -- created, returned, described, ended
    slug       text        not null,
    definition jsonb       not null
);
