-- Where a meter was declared: applying a file neither ends nor changes what was made by API.
alter table metering.meter
    add column origin text not null default 'file' check (origin in ('file', 'api'));
