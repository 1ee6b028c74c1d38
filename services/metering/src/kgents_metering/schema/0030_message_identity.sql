-- A message is the one it is by stream, sequence and time of storage, all of its own delivery. A stream that is
-- made anew counts from 1 again: what it holds at a sequence used before is another message.
--
-- Rows of before without a time of storage (null) are known by their epoch; dead letters always had the time.

alter table metering.dead
    add column stream       text not null default 'AGENTESE',
    add column raw_subject  bytea,            -- as it was published; null where not kept
    add column raw_headers  bytea,            -- the header block as it was published; null for none
    add column mirror_tries integer not null default 0;
update metering.dead set stream = 'EVENTS' where subject like 'events.%';
alter table metering.dead drop constraint dead_epoch_seq_key;
create unique index dead_identity on metering.dead (stream, seq, (coalesce(stored_at, epoch)));
drop index metering.dead_to_mirror;
create index dead_to_mirror on metering.dead (mirror_tries, id) where not mirrored;

alter table metering.duplicate
    add column stream    text not null default 'AGENTESE',
    add column stored_at timestamptz;
update metering.duplicate d set stream = 'EVENTS' from metering.event e where e.n = d.n and e.type like 'billing.%';
alter table metering.duplicate drop constraint duplicate_pkey;
create unique index duplicate_identity on metering.duplicate (stream, seq, (coalesce(stored_at, epoch)));

alter table metering.conflict
    add column stream    text not null default 'AGENTESE',
    add column stored_at timestamptz;
update metering.conflict c set stream = 'EVENTS' from metering.event e where e.n = c.n and e.type like 'billing.%';
alter table metering.conflict drop constraint conflict_pkey;
create unique index conflict_identity on metering.conflict (stream, seq, (coalesce(stored_at, epoch)));
