-- A message is the one it is by stream, sequence and time of storage, all of its own delivery. A stream that is
-- made anew counts from 1 again: what it holds at a sequence used before is another message.
--
-- Rows of before have no time of storage and are known by their epoch.

alter table billing.dead
    add column stream       text not null default 'EVENTS',
    add column stored_at    timestamptz,
    add column headers      text not null default '{}', -- a JSON object, names to values
    add column raw_subject  bytea,            -- as it was published; null where not kept
    add column raw_headers  bytea,            -- the header block as it was published; null for none
    add column replay_seq   bigint,
    add column mirror_tries integer not null default 0;
alter table billing.dead drop constraint dead_epoch_seq_key;
create unique index dead_identity on billing.dead (stream, seq, (coalesce(stored_at, epoch)));
drop index billing.dead_mirror;
create index dead_to_mirror on billing.dead (mirror_tries, id) where not mirrored;
create index dead_open on billing.dead (id) where state = 'open';

alter table billing.quarantine add column stored_at timestamptz;
