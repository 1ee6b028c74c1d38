-- A ledger that came back from a dump begins a new generation: what it owes from before was perhaps delivered
-- after the dump, so the target is asked before it is sent.
create table metering.generation (
    n           bigint      generated always as identity primary key,
    at          timestamptz not null default now(),
    asked_until timestamptz not null, -- events that happened or were stored before this are asked for before they are sent
    reason      text        not null
);

-- Of a stream of which only some messages are the ledger's, ranges would be one for each message. There, the
-- position is the consumer's acknowledgement floor: all up to it was committed before it was acknowledged.
alter table metering.cursor add column floor bigint not null default 0;
update metering.cursor set applied = '{}' where stream = 'EVENTS';
