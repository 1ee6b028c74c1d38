# The pods by name, and what the sentinels among them say; read by the other scripts.
NODES="triad-redis-0.triad-redis-nodes.kgents-triad.svc triad-redis-1.triad-redis-nodes.kgents-triad.svc triad-redis-2.triad-redis-nodes.kgents-triad.svc"
FIRST=${NODES%% *}

# ask HOST PORT COMMAND...: the answer, a field a line; nothing where there is none within two seconds.
ask() {
  host=$1
  port=$2
  shift 2
  timeout 2 redis-cli -h "$host" -p "$port" --tls --cacert /etc/redis-tls/ca.crt --raw "$@" 2>/dev/null || true
}

# Whom the first sentinel that answers calls the primary.
primary() {
  for node in $NODES; do
    found=$(ask "$node" 26379 sentinel get-master-addr-by-name triad-redis | head -n 1)
    for known in $NODES; do
      if [ "$found" = "$known" ]; then
        echo "$found"
        return
      fi
    done
  done
}

# Whatever the first sentinel that knows any says of the replicas.
replicas() {
  for node in $NODES; do
    found=$(ask "$node" 26379 sentinel replicas triad-redis)
    if [ -n "$found" ]; then
      echo "$found"
      return
    fi
  done
}
