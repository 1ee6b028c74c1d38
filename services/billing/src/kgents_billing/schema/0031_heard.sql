-- What each event was about, by every id it names, and when Stripe made it: so that everything heard of one thing
-- can be listed in its order. Events of before say nothing of it; they are forgotten after ninety days.
alter table billing.applied add column about text[];
alter table billing.applied add column second bigint;
create index applied_about on billing.applied using gin (about);
