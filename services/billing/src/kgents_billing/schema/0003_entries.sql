-- Movements of money. Facts of money are read off them (model/money_facts.py).

-- One row for each object that moves money. `seen` holds every state it was seen in, with its amount; none is
-- taken away. `of` is what was paid, as the object itself names it: an invoice, a checkout, a payment intent or a
-- charge; `billing.payment_name` says which of these names are one payment's.
create table billing.entry (
    id text not null,
    kind text not null,
    of text not null,
    tenant text not null,
    currency text not null,
    source text not null,
    livemode boolean,
    account text,
    seen jsonb not null,
    -- As the last state says: for people and sums.
    state text not null,
    in_balance bigint not null,
    second bigint not null,
    updated_at timestamptz not null default now(),
    primary key (kind, id)
);
create index entry_of on billing.entry (of);
create index entry_tenant on billing.entry (tenant, second);
create index entry_second on billing.entry (second);

-- Whose a payment (an invoice or a checkout) is. What says that it was paid knows best.
create table billing.payment (
    id text primary key,
    tenant text not null,
    customer text,
    is_paid boolean not null default false,
    at timestamptz not null default now()
);

-- Payment intents and charges, and the payment they made.
create table billing.payment_name (
    id text primary key,
    payment text not null
);
create index payment_name_payment on billing.payment_name (payment);

-- What the version before told is what its entries are made of.
create temporary table told on commit drop as
select key, tenant, type, convert_from(body, 'UTF8')::jsonb as body
from billing.fact where type like 'payment.%';

insert into billing.payment (id, tenant, customer, is_paid)
select distinct on (1) coalesce(body #>> '{data,invoice}', body #>> '{data,checkout_session}'), tenant,
    body #>> '{data,customer}', type = 'payment.success'
from told
where type in ('payment.success', 'payment.failed')
    and coalesce(body #>> '{data,invoice}', body #>> '{data,checkout_session}') is not null
order by 1, type = 'payment.success' desc;

-- What a quarantined event waits to learn the payer of.
alter table billing.quarantine add column waits_for text[] not null default '{}';

with movement as (
    select
        case when body #>> '{data,invoice}' is not null then 'invoice' else 'checkout' end as kind,
        coalesce(body #>> '{data,invoice}', body #>> '{data,checkout_session}') as id,
        coalesce(body #>> '{data,invoice}', body #>> '{data,checkout_session}') as of,
        case when type = 'payment.success' then 'paid' else 'failed' end as state,
        1 as sign, tenant, body
    from told
    where type = 'payment.success' or (type = 'payment.failed' and key like 'pay:%')
    union all
    select 'refund', body #>> '{data,refund}',
        coalesce(body #>> '{data,payment_intent}', body #>> '{data,charge}', body #>> '{data,refund}'),
        body #>> '{data,status}', -1, tenant, body
    from told where type = 'payment.refunded' and key like 'refund:%'
    union all
    select 'dispute', (body #>> '{data,dispute}') || '/1',
        coalesce(body #>> '{data,charge}', body #>> '{data,dispute}'),
        substring(body #>> '{data,happening}' from 7),
        case when body #>> '{data,happening}' = 'funds_withdrawn' then -1 else 1 end, tenant, body
    from told
    where type = 'payment.disputed' and body #>> '{data,happening}' in ('funds_withdrawn', 'funds_reinstated')
), marked as (
    select kind, id, of, state, tenant, body,
        sign * (body #>> '{data,amount_minor}')::bigint as amount,
        extract(epoch from (body ->> 'time')::timestamptz)::bigint as second
    from movement
    where body #>> '{data,amount_minor}' is not null and id is not null and state is not null
)
insert into billing.entry (id, kind, of, tenant, currency, source, seen, state, in_balance, second)
select id, kind, min(of), min(tenant), min(body #>> '{data,currency}'), min(body ->> 'source'),
    jsonb_object_agg(state, jsonb_build_object(
        'amount', amount,
        'second', second,
        'outside', case when body #>> '{data,out_of_band}' = 'true' then amount else 0 end,
        'data', (body -> 'data') - '{amount_minor,currency,exponent}'::text[]
    )),
    -- Put right below, and by the next event of the object.
    (array_agg(state order by second desc, state))[1],
    0,
    max(second)
from marked group by kind, id;

update billing.entry set in_balance = case
    when kind = 'dispute' then (select sum((mark.value ->> 'amount')::bigint) from jsonb_each(seen) as mark)
    when kind = 'refund' and seen ?| array['failed', 'canceled'] then 0
    when kind = 'refund' and seen ? 'requires_action' and not seen ?| array['pending', 'succeeded'] then 0
    when kind in ('refund', 'invoice', 'checkout') and seen ?| array['paid', 'succeeded', 'pending'] then (
        select (mark.value ->> 'amount')::bigint - (mark.value ->> 'outside')::bigint
        from jsonb_each(seen) as mark where mark.key in ('paid', 'succeeded', 'pending') limit 1
    )
    else 0
end;
