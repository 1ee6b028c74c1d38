# Before this pod ends: where its server is the primary, another is put in its place, so that nobody waits until it is missed.
set -eu
. /etc/redis-sentinel/nodes.sh

[ "$(ask "$REDIS_NODE" 6379 role | head -n 1)" = master ] || exit 0
for node in $NODES; do
  # This pod's own sentinel ends at the same moment.
  if [ "$node" != "$REDIS_NODE" ] && [ "$(ask "$node" 26379 sentinel failover triad-redis)" = OK ]; then
    began=$(date +%s)
    while [ "$(primary)" = "$REDIS_NODE" ] && [ $(($(date +%s) - began)) -lt 12 ]; do
      sleep 0.5
    done
    exit 0
  fi
done
