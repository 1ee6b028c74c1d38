# Starts this pod's sentinel. What it writes into its file stays for as long as the pod lives; a new pod asks the others first.
set -eu
trap "exit 0" TERM
. /etc/redis-sentinel/nodes.sh
file=/var/lib/sentinel/sentinel.conf

if [ ! -s "$file" ]; then
  began=$(date +%s)
  named=$(primary)
  while [ -z "$named" ] && [ $(($(date +%s) - began)) -lt 10 ]; do
    sleep 1
    named=$(primary)
  done
  # The same pod is the same sentinel: the others would count one that is gone among those who vote.
  me=$(printf '%s' "$REDIS_NODE" | sha1sum | cut -c 1-40)
  cat >"$file.new" <<END
dir /var/lib/sentinel
sentinel myid $me
sentinel resolve-hostnames yes
sentinel announce-hostnames yes
sentinel announce-ip $REDIS_NODE
sentinel monitor triad-redis ${named:-$FIRST} 6379 2
sentinel down-after-milliseconds triad-redis 5000
sentinel failover-timeout triad-redis 15000
sentinel parallel-syncs triad-redis 1
END
  mv "$file.new" "$file"
fi

exec redis-server "$file" --sentinel "$@"
