-- Connected accounts, and objects that Stripe does not find.

-- The connected account a subscription is of; null for our own.
alter table billing.subscription add column account text;
-- One that Stripe did not find is looked for again later: "not found" is not "known".
alter table billing.subscription add column refetch_after timestamptz not null default now();
alter table billing.subscription add column not_found boolean not null default false;
