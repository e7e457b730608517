#!/usr/bin/env bash
# The roles of the image:
#   head                 Ray's head node; evaluates nothing itself unless AUTOQ_CPUS is set
#   worker               a node that evaluates candidates on AUTOQ_CPUS cores
#   mlflow               the tracking server: SQLite and artifacts under MLFLOW_HOME
#   search JOB ARG…      autoq search on the cluster, as a node that evaluates nothing
#   join COMMAND ARG…    any command, run on such a node
#   COMMAND ARG…         any command, without Ray
set -euo pipefail

: "${RAY_HEAD:=head:6379}"             # host:port of the head node
: "${AUTOQ_OBJECT_STORE_MB:=512}"      # Ray's shared memory on this node; shm_size must be larger
: "${MLFLOW_HOME:=/mlflow}"
: "${MLFLOW_PORT:=5000}"
: "${MLFLOW_WORKERS:=2}"
: "${MLFLOW_BIND:=0.0.0.0}"            # inside a container; the compose file publishes it on 127.0.0.1 alone
readonly CAN_CONNECT='import sys, ray; ray.init(address=sys.argv[1], log_to_driver=False)'

# In the foreground; --num-cpus is what the node lends, and --head or --address=… which node it is.
ray_node=(ray start --block --disable-usage-stats --object-store-memory="$((AUTOQ_OBJECT_STORE_MB * 1000000))")

# Runs a command on a node of its own, as a Ray driver needs one beside it. The node ends with the command.
on_cluster() {
  # setsid: Ctrl-C then reaches the command, which ends in good order, and not the node under it.
  setsid "${ray_node[@]}" --num-cpus=0 --address="$RAY_HEAD" >&2 &
  node=$!
  trap 'kill "$node" 2>/dev/null || true; wait "$node" 2>/dev/null || true' EXIT
  local tries=${AUTOQ_JOIN_TRIES:-20}
  until python -c "$CAN_CONNECT" "$RAY_HEAD" >/dev/null 2>&1; do
    tries=$((tries - 1))
    if [ "$tries" -le 0 ] || ! kill -0 "$node" 2>/dev/null; then
      echo "entrypoint.sh: could not join the Ray cluster at $RAY_HEAD; is the head up, and RAY_AUTH_TOKEN the same?" >&2
      exit 2
    fi
    sleep 1
  done
  "$@"
}

role=${1:-worker}
case "$role" in
  head)
    exec "${ray_node[@]}" --num-cpus="${AUTOQ_CPUS:-0}" --head --port="${RAY_HEAD##*:}" --include-dashboard=false
    ;;
  worker)
    exec "${ray_node[@]}" --num-cpus="${AUTOQ_CPUS:-$(nproc)}" --address="$RAY_HEAD"
    ;;
  mlflow)
    # Tracking needs none of the server's background jobs, whose processes also outlive it for a while.
    export MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false
    exec mlflow server --host "$MLFLOW_BIND" --port "$MLFLOW_PORT" --workers "$MLFLOW_WORKERS" \
      --backend-store-uri "sqlite:///$MLFLOW_HOME/mlflow.db" --artifacts-destination "$MLFLOW_HOME/artifacts" \
      --allowed-hosts "${MLFLOW_ALLOWED_HOSTS:-mlflow:*,localhost:*,127.0.0.1:*}"
    ;;
  search)
    shift
    on_cluster autoq search --ray "$RAY_HEAD" ${MLFLOW_TRACKING_URI:+--tracking-uri "$MLFLOW_TRACKING_URI"} "$@"
    ;;
  join)
    shift
    on_cluster "$@"
    ;;
  *) exec "$@" ;;
esac
