-- Since when a subscription is past due: its grace counts from there.

-- The latest second at which an event says that it became past due, and at which one says that it no longer was.
alter table billing.subscription add column past_due_entered bigint;
alter table billing.subscription add column past_due_left bigint;
