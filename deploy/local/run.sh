#!/usr/bin/env bash
# From a bare Debian 12 to a running server: installs what is missing, builds, serves, and shows one expansion and the latency metrics it
# caused. Serves until it is interrupted; with --once it ends after the showing. Further arguments are the server's flags.
set -euo pipefail
cd "$(dirname "$0")/../.."

once=false
flags=()
for argument in "$@"; do
  case "$argument" in
    --once) once=true ;;
    --help)
      sed -n '2,3s/^# //p' "$0"
      exit 0
      ;;
    *) flags+=("$argument") ;;
  esac
done
if $once; then
  # Free ports: a showing gets into nobody's way.
  flags=(--listen=127.0.0.1:0 --health_listen=127.0.0.1:0 --metrics_listen=127.0.0.1:0 "${flags[@]}")
fi

deploy/local/install.sh deploy/local/packages.txt
echo "building (the first time takes some minutes)"
mkdir -p build
cmake --preset serve >build/serve.log 2>&1 && cmake --build --preset serve >>build/serve.log 2>&1 || {
  cat build/serve.log >&2
  exit 1
}
bin=build/serve

log=$(mktemp)
"$bin/server/nsa-metadata-server" "${flags[@]}" 2> >(tee "$log" >&2) &
server=$!
stop() {
  kill -TERM "$server" 2>/dev/null || true
  wait "$server" || true
  rm -f "$log"
}
trap stop EXIT
trap 'exit 130' INT TERM

# Of a line in either --log_format.
address() { sed -n "s/.*[ \"]serving: .*$1=\([^, \"]*\).*/\1/p" "$log"; }
for ((tries = 0; tries < 300; ++tries)); do
  if [[ -n "$(address metrics)" ]]; then
    break
  fi
  if ! kill -0 "$server" 2>/dev/null; then
    echo "the server did not start" >&2
    exit 1
  fi
  sleep 0.1
done
grpc=$(address grpc)
metrics=$(address metrics)
if [[ -z "$grpc" || -z "$metrics" ]]; then
  echo "the server did not say within 30 s where it serves" >&2
  exit 1
fi

expand=("$bin/client/nsa-metadata" expand "--target=$grpc" --extend_seq_lens=3,2 --seq_lens=10,4 --nsa_index_topk=2048 --mode=causal)
printf '\n$ %s\n' "${expand[*]}"
"${expand[@]}"
printf '\n$ curl http://%s/metrics    (the latencies of that call)\n' "$metrics"
# The call is counted when gRPC has sent its answer, a moment after the client has it.
for ((tries = 0; tries < 50; ++tries)); do
  scraped=$(curl --silent --show-error "http://$metrics/metrics")
  shown=$(grep --extended-regexp '^(grpc_server_handling_seconds_(sum|count)\{grpc_method="Expand"|nsa_metadata_stage_seconds_(sum|count))' <<<"$scraped" | grep --invert-match ' 0$' || true)
  if [[ "$shown" == *'stage="send"'* ]]; then
    break
  fi
  sleep 0.1
done
printf '%s\n' "$shown"

if ! $once; then
  printf '\nserving gRPC on %s, metrics on http://%s/metrics; Ctrl-C ends it\n' "$grpc" "$metrics"
  wait "$server"
fi
