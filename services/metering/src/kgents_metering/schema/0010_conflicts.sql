-- Conflicts have a number of their own, by which they are listed and shown.

alter table metering.conflict add column id bigint generated always as identity;
create unique index conflict_by_id on metering.conflict (id);
create index conflict_by_n on metering.conflict (n);
