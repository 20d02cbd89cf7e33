#!/usr/bin/env bash
# `benches/side_by_side.sh [SECONDS [ROUNDS]]`: streamgate and nginx's stream module, one worker each,
# in turn. Needs nginx with libnginx-mod-stream, and `make build`.
set -euo pipefail
cd "$(dirname "$0")/.."
seconds=${1:-4} rounds=${2:-3}
bin=$PWD/target/release
# Below the ephemeral ports, and another one in each run.
base=$((20000 + $$ % 2000 * 4))
dir=$(mktemp -d)
pids=()
cleanup() { kill "${pids[@]}" 2>/dev/null || true; wait 2>/dev/null || true; rm -rf "$dir"; }
trap cleanup EXIT

"$bin/load" serve >"$dir/ports" & pids+=($!)
until [ -s "$dir/ports" ]; do sleep 0.05; done
read -r echo source <"$dir/ports"

cat >"$dir/config.yaml" <<YAML
apisix:
  proxy_mode: stream
  stream_proxy: {tcp: ["127.0.0.1:$((base))", "127.0.0.1:$((base + 1))"]}
deployment: {role: data_plane, role_data_plane: {config_provider: yaml}}
nginx_config: {worker_processes: 1}
YAML
cat >"$dir/apisix.yaml" <<YAML
stream_routes:
  - {id: 1, server_port: $((base)), upstream: {nodes: {"$echo": 1}}}
  - {id: 2, server_port: $((base + 1)), upstream: {nodes: {"$source": 1}}}
#END
YAML
cat >"$dir/nginx.conf" <<CONF
load_module /usr/lib/nginx/modules/ngx_stream_module.so;
worker_processes 1; daemon off; pid $dir/nginx.pid; error_log $dir/nginx.log;
events { worker_connections 8192; }
stream {
  server { listen 127.0.0.1:$((base + 2)); proxy_pass $echo; }
  server { listen 127.0.0.1:$((base + 3)); proxy_pass $source; }
}
CONF
"$bin/streamgate" run -c "$dir/config.yaml" 2>"$dir/gateway.log" & gateway=$!; pids+=("$gateway")
nginx -c "$dir/nginx.conf" & master=$!; pids+=("$master")
for port in $((base)) $((base + 1)) $((base + 2)) $((base + 3)); do
  for _ in $(seq 200); do (: <"/dev/tcp/127.0.0.1/$port") 2>/dev/null && break; sleep 0.05; done
done
worker=$(pgrep -P "$master")

for round in $(seq "$rounds"); do
  for case in "connections 0 8" "requests 0 8" "bulk 1 2"; do
    read -r mode port clients <<<"$case"
    echo "$round streamgate $mode: $("$bin/load" "$mode" "127.0.0.1:$((base + port))" "$seconds" "$clients" "$gateway")"
    echo "$round nginx      $mode: $("$bin/load" "$mode" "127.0.0.1:$((base + port + 2))" "$seconds" "$clients" "$worker")"
  done
done
