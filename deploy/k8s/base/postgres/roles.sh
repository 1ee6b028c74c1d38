#!/bin/sh
# Runs once, on an empty volume: a role for each service, owner of its own schema and blind to the others'; backup reads and restores both.
set -eu
passwords=${KGENTS_ROLES:-/etc/kgents/roles}
psql -v ON_ERROR_STOP=1 --username "$POSTGRES_USER" --dbname "$POSTGRES_DB" \
  -v database="$POSTGRES_DB" \
  -v metering="$(cat "$passwords/metering")" \
  -v billing="$(cat "$passwords/billing")" \
  -v backup="$(cat "$passwords/backup")" <<'SQL'
create role kgents_metering login password :'metering';
create role kgents_billing login password :'billing';
create role kgents_backup login inherit password :'backup' in role kgents_metering, kgents_billing;
revoke all on database :"database" from public;
grant connect, create, temporary on database :"database" to kgents_metering, kgents_billing;
revoke create on schema public from public;
SQL
