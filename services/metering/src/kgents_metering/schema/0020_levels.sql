-- Hours and days above the minutes, of the same sums: a question over a year reads days, not half a million minutes.
-- A writer of this release keeps the levels itself, in the statement that adds the minutes, and says so with
-- the setting kgents.levels. For every other writer (one of the release before, in a rolling update) the
-- triggers below do: whoever writes a minute, the levels above it are right when the transaction commits.

create table metering.rollup_hour (
    meter        integer     not null,
    tenant       text        not null,
    hour         timestamptz not null,   -- of UTC
    grp_key      bytea       not null,
    grp          jsonb       not null,
    cnt          bigint      not null,
    sum          numeric,
    min          numeric,
    max          numeric,
    first_minute timestamptz not null,
    last_minute  timestamptz not null,
    last_time    timestamptz,
    last_n       bigint,
    last_value   numeric,
    primary key (meter, tenant, hour, grp_key)
);
create table metering.rollup_day (
    meter        integer     not null,
    tenant       text        not null,
    day          timestamptz not null,   -- of UTC
    grp_key      bytea       not null,
    grp          jsonb       not null,
    cnt          bigint      not null,
    sum          numeric,
    min          numeric,
    max          numeric,
    first_minute timestamptz not null,
    last_minute  timestamptz not null,
    last_time    timestamptz,
    last_n       bigint,
    last_value   numeric,
    primary key (meter, tenant, day, grp_key)
);
create table metering.distinct_hour (
    meter   integer     not null,
    tenant  text        not null,
    hour    timestamptz not null,
    grp_key bytea       not null,
    vhash   bytea       not null,
    primary key (meter, tenant, hour, grp_key, vhash)
);
create table metering.distinct_day (
    meter   integer     not null,
    tenant  text        not null,
    day     timestamptz not null,
    grp_key bytea       not null,
    vhash   bytea       not null,
    primary key (meter, tenant, day, grp_key, vhash)
);

-- The listing of a tenant's events, newest first.
create index event_by_tenant_time on metering.event (tenant, time, n);

-- What there is already; nobody writes meanwhile, and what comes waits in the stream.
lock table metering.rollup, metering.distinct_value in share row exclusive mode;

insert into metering.rollup_hour
    (meter, tenant, hour, grp_key, grp, cnt, sum, min, max, first_minute, last_minute, last_time, last_n,
     last_value)
select meter, tenant, date_bin('1 hour', minute, '2000-01-01 00:00:00+00') as at, grp_key, (array_agg(grp))[1],
       sum(cnt), sum(sum), min(min), max(max), min(minute), max(minute),
       (array_agg(last_time order by last_time desc, last_n desc) filter (where last_n is not null))[1],
       (array_agg(last_n order by last_time desc, last_n desc) filter (where last_n is not null))[1],
       (array_agg(last_value order by last_time desc, last_n desc) filter (where last_n is not null))[1]
from metering.rollup group by meter, tenant, at, grp_key;
insert into metering.rollup_day
    (meter, tenant, day, grp_key, grp, cnt, sum, min, max, first_minute, last_minute, last_time, last_n,
     last_value)
select meter, tenant, date_bin('1 day', hour, '2000-01-01 00:00:00+00') as at, grp_key, (array_agg(grp))[1],
       sum(cnt), sum(sum), min(min), max(max), min(first_minute), max(last_minute),
       (array_agg(last_time order by last_time desc, last_n desc) filter (where last_n is not null))[1],
       (array_agg(last_n order by last_time desc, last_n desc) filter (where last_n is not null))[1],
       (array_agg(last_value order by last_time desc, last_n desc) filter (where last_n is not null))[1]
from metering.rollup_hour group by meter, tenant, at, grp_key;
insert into metering.distinct_hour
select distinct meter, tenant, date_bin('1 hour', minute, '2000-01-01 00:00:00+00'), grp_key, vhash
from metering.distinct_value;
insert into metering.distinct_day
select distinct meter, tenant, date_bin('1 day', hour, '2000-01-01 00:00:00+00'), grp_key, vhash
from metering.distinct_hour;

-- For writers that know nothing of the levels: what they added to the minutes is added above. One at a time, as
-- theirs is no order of locks that two could share.
create function metering.level_rollup() returns trigger language plpgsql as $$
declare
    source text := 'select * from added';
    level text;
begin
    if tg_op = 'UPDATE' then
        source := 'select meter, tenant, minute, grp_key, a.grp, a.cnt - b.cnt as cnt,'
            ' case when a.sum is not null then a.sum - coalesce(b.sum, 0) end as sum,'
            ' a.min, a.max, a.last_time, a.last_n, a.last_value'
            ' from added a join before b using (meter, tenant, minute, grp_key)';
    end if;
    perform pg_advisory_xact_lock(hashtextextended('kgents.metering.levels', 0));
    foreach level in array array['hour', 'day'] loop
        execute format($f$
            insert into metering.rollup_%1$s as r
                (meter, tenant, %1$s, grp_key, grp, cnt, sum, min, max, first_minute, last_minute, last_time,
                 last_n, last_value)
            select meter, tenant, date_bin('1 %1$s', minute, '2000-01-01 00:00:00+00') as at, grp_key,
                   (array_agg(grp))[1], sum(cnt), sum(sum), min(min), max(max), min(minute), max(minute),
                   (array_agg(last_time order by last_time desc, last_n desc) filter (where last_n is not null))[1],
                   (array_agg(last_n order by last_time desc, last_n desc) filter (where last_n is not null))[1],
                   (array_agg(last_value order by last_time desc, last_n desc) filter (where last_n is not null))[1]
            from (%2$s) as delta group by meter, tenant, at, grp_key
            order by meter, tenant collate "C", at, grp_key
            on conflict (meter, tenant, %1$s, grp_key) do update set
                cnt = r.cnt + excluded.cnt,
                sum = coalesce(r.sum + excluded.sum, r.sum, excluded.sum),
                min = least(r.min, excluded.min),
                max = greatest(r.max, excluded.max),
                first_minute = least(r.first_minute, excluded.first_minute),
                last_minute = greatest(r.last_minute, excluded.last_minute),
                last_value = case when (excluded.last_time, excluded.last_n) > (r.last_time, r.last_n)
                                  or r.last_time is null then excluded.last_value else r.last_value end,
                last_n = case when (excluded.last_time, excluded.last_n) > (r.last_time, r.last_n)
                              or r.last_time is null then excluded.last_n else r.last_n end,
                last_time = case when (excluded.last_time, excluded.last_n) > (r.last_time, r.last_n)
                                 or r.last_time is null then excluded.last_time else r.last_time end
        $f$, level, source);
    end loop;
    return null;
end
$$;
create function metering.level_distinct() returns trigger language plpgsql as $$
begin
    perform pg_advisory_xact_lock(hashtextextended('kgents.metering.levels', 0));
    insert into metering.distinct_hour
    select distinct meter, tenant, date_bin('1 hour', minute, '2000-01-01 00:00:00+00'), grp_key, vhash from added
    on conflict do nothing;
    insert into metering.distinct_day
    select distinct meter, tenant, date_bin('1 day', minute, '2000-01-01 00:00:00+00'), grp_key, vhash from added
    on conflict do nothing;
    return null;
end
$$;
-- A meter that comes back is measured anew: its minutes go whole, and so do the levels.
create function metering.level_gone() returns trigger language plpgsql as $$
declare
    gone integer[];
    level text := case tg_table_name when 'rollup' then 'rollup' else 'distinct' end;
    remain boolean;
begin
    if tg_op = 'TRUNCATE' then
        execute format('truncate metering.%1$s_hour, metering.%1$s_day', level);
        return null;
    end if;
    select array_agg(distinct meter) into gone from before;
    execute format('select exists (select 1 from metering.%I where meter = any($1))', tg_table_name)
        into remain using gone;
    if remain then
        raise exception 'minutes of a meter are deleted all together or not at all';
    end if;
    execute format('delete from metering.%s_hour where meter = any($1)', level) using gone;
    execute format('delete from metering.%s_day where meter = any($1)', level) using gone;
    return null;
end
$$;
create trigger level_inserted after insert on metering.rollup referencing new table as added
    for each statement when (current_setting('kgents.levels', true) is distinct from 'on')
    execute function metering.level_rollup();
create trigger level_updated after update on metering.rollup
    referencing old table as before new table as added
    for each statement when (current_setting('kgents.levels', true) is distinct from 'on')
    execute function metering.level_rollup();
create trigger level_deleted after delete on metering.rollup referencing old table as before
    for each statement execute function metering.level_gone();
create trigger level_truncated after truncate on metering.rollup
    for each statement execute function metering.level_gone();
create trigger level_inserted after insert on metering.distinct_value referencing new table as added
    for each statement when (current_setting('kgents.levels', true) is distinct from 'on')
    execute function metering.level_distinct();
create trigger level_deleted after delete on metering.distinct_value referencing old table as before
    for each statement execute function metering.level_gone();
create trigger level_truncated after truncate on metering.distinct_value
    for each statement execute function metering.level_gone();
