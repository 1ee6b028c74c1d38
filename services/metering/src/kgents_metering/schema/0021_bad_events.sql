-- A tenant finds its own bad events: the invalid by tenant, dead letters by the tenant of their subject.
-- Writers of the release before go on inserting without the new column: the trigger fills it.

alter table metering.invalid add column tenant text;

update metering.invalid i set tenant = e.tenant from metering.event e where e.n = i.n;

create function metering.invalid_tenant() returns trigger language plpgsql as $$
begin
    select e.tenant into new.tenant from metering.event e where e.n = new.n;
    return new;
end
$$;
create trigger invalid_tenant before insert on metering.invalid
    for each row when (new.tenant is null) execute function metering.invalid_tenant();

create index invalid_by_tenant on metering.invalid (tenant, n desc, meter);
create index dead_by_tenant on metering.dead (split_part(subject, '.', 2), id desc)
    where subject like 'agentese.%';
