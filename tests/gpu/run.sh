#!/usr/bin/env bash
# Every test that needs a GPU, on the machine that has one: the installed programs and tests (see package.sh), run from the repository's root.
# Usage: tests/gpu/run.sh INSTALLED [TRACE.csv …]. Prints a line a stage, and ends non-zero when one failed.
# NSA_METADATA_GPU_STAGES: an extended regular expression, to run only the stages whose names it matches.
set -uo pipefail
cd "$(dirname "$0")/../.."
bin=$1/bin
shift
export NSA_GOLDEN_FILE=$PWD/tests/golden/expand.jsonl
logs=${OUT:-$(mktemp -d)}
failed=0

stage() {  # name, command …
  local name=$1 begin=$SECONDS
  shift
  [[ "$name" =~ ${NSA_METADATA_GPU_STAGES:-.} ]] || return
  if "$@" >"$logs/$name.log" 2>&1; then
    printf 'ok      %-28s %4s s\n' "$name" $((SECONDS - begin))
  else
    printf 'FAILED  %-28s %4s s\n' "$name" $((SECONDS - begin))
    tail -n 15 "$logs/$name.log"
    failed=1
  fi
}

# A run in which a test was skipped for want of a device, or none was found, proves nothing.
gtest() {  # program, filter, what runs it …
  "${@:3}" "$bin/$1" --gtest_brief=1 --gtest_filter="$2" 2>&1 | tee /dev/stderr |
    awk '/SKIPPED/ {skipped = 1} /^\[==========\] [1-9][0-9]* tests? .* ran/ {ran = 1} END {exit skipped || !ran}'
  local status=("${PIPESTATUS[@]}")
  return $((status[0] + status[2]))
}

sanitize() {  # tool, program, filter
  gtest "$2" "$3" compute-sanitizer --tool "$1" --error-exitcode 9
}

serve() {  # backend, flags …; sets server, its process, and address
  local log
  log=$(mktemp)
  "$bin/nsa-metadata-server" --backend="$1" --listen=127.0.0.1:0 --health_listen=127.0.0.1:0 --metrics_listen=127.0.0.1:0 "${@:2}" 2>"$log" &
  server=$! address=
  for ((tries = 0; tries < 300; ++tries)); do
    address=$(sed -n 's/.* serving: grpc=\([^, ]*\).*/\1/p' "$log")
    [[ -n "$address" ]] && break
    sleep 0.1
  done
  cat "$log"
}

end_server() { kill -TERM "$server" && wait "$server"; }

# With the flags of a pod (deploy/kubernetes/base/flags.env).
report_memory() {  # backend
  local server address before status=0
  resident() { awk '/^VmRSS/ {printf "%d MiB resident", $2 / 1024}' "/proc/$server/status"; }
  serve "$1" --output_budget_bytes=268435456 --max_connections=1000
  before=$(resident)
  "$bin/nsa-metadata" bench --target="$address" --total_tokens=131072 --in_flight=64 --channels=4 --duration=10s || status=$?
  "$bin/nsa-metadata" bench --target="$address" --total_tokens=8192 --in_flight=512 --channels=8 --duration=5s || status=$?
  printf '%s backend: %s before the first call, %s after 10 s of 1 MiB replies and 5 s of 64 KiB\n' "$1" "$before" "$(resident)"
  end_server && return "$status"
}

serve_and_replay() {  # trace, client's flags …
  local server address trace=$1
  shift
  serve cuda
  "$bin/nsa-metadata" replay --target="$address" --trace="$trace" --verify --in_flight=64 "$@"
  local status=$?
  end_server && return "$status"
}

nvidia-smi --query-gpu=name,driver_version --format=csv,noheader
date --utc +%Y-%m-%d

stage backends gtest kernels_test '*'
stage launchers gtest cuda_test '*'
stage allocations gtest allocation_test '*'
stage through-grpc gtest e2e_test '*/cuda*'
stage lack-of-memory gtest cuda_fault_test '*Memory*'
# Each ends its process's device.
for fault in WritesOutOfBounds Hangs; do
  stage "fault-$fault" gtest cuda_fault_test "*$fault*"
done
# The tier between: the driver compiles the PTX.
CUDA_FORCE_PTX_JIT=1 stage ptx-backends gtest kernels_test '*cuda*'
CUDA_FORCE_PTX_JIT=1 stage ptx-launchers gtest cuda_test '*'
installed=${bin%/bin}
LD_LIBRARY_PATH=$installed/lib bin=$installed/ptx stage ptx-only-backends gtest kernels_test '*cuda*'
LD_LIBRARY_PATH=$installed/lib bin=$installed/ptx stage ptx-only-launchers gtest cuda_test '*'
few='*KnownAnswer*cuda*:*AnyNumberOf*cuda*:*NotAsked*cuda*'
for tool in memcheck racecheck initcheck synccheck; do
  stage "$tool-launchers" sanitize "$tool" cuda_test '*KnownAnswer*:*Capacity*:*Negative*:*Flags*'
  stage "$tool-backends" sanitize "$tool" kernels_test "$few"
done
# A tile's steps, which take many tokens.
stage memcheck-many-launchers sanitize memcheck cuda_test '*Tokens*/tile'
stage memcheck-many-backends sanitize memcheck kernels_test '*Tokens*/cuda_tile'
# Of nothing but what is skipped pytest says 5.
stage from-python env PYTHONPATH="$PWD/$installed/python" python3 -m pytest -q -p no:cacheprovider tests/local/test_local_cuda.py
for trace in "$@"; do
  name=$(basename "$trace" .csv)
  stage "replay-$name" serve_and_replay "$trace"
  stage "replay-stream-$name" serve_and_replay "$trace" --stream
done
for backend in cpu cuda; do
  stage "memory-$backend" report_memory "$backend"
done
stage doctor "$bin/nsa-metadata" doctor

for log in "$logs"/memory-*.log "$logs"/doctor.log "$logs"/replay-*.log; do
  [[ -f "$log" ]] || continue
  printf '\n== %s\n' "$(basename "$log" .log)"
  cat "$log"
done
exit $failed
