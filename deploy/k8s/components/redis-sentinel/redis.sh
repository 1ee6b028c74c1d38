# Starts this pod's server, its command in the arguments: after the primary that the sentinels name, or as the primary.
set -eu
trap "exit 0" TERM
. /etc/redis-sentinel/nodes.sh

began=$(date +%s)
while :; do
  named=$(primary)
  waited=$(($(date +%s) - began))
  if [ -z "$named" ]; then
    # Nobody answers for ten seconds: nobody is there yet.
    [ "$waited" -lt 10 ] || break
  elif [ "$named" != "$REDIS_NODE" ]; then
    break
  else
    # Still called the primary, but started anew and so empty: its replicas would take that over. One of them goes first, as soon as
    # the sentinels have seen that this one is away; where there is none, or none can, it is this one after all.
    [ -n "$(replicas)" ] || break
    [ "$waited" -lt 60 ] || break
  fi
  sleep 1
done
named=${named:-$FIRST}

if [ "$named" = "$REDIS_NODE" ]; then
  exec "$@" --tls-replication yes --replica-announce-ip "$REDIS_NODE"
fi
exec "$@" --tls-replication yes --replica-announce-ip "$REDIS_NODE" --replicaof "$named" 6379
