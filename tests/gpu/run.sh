#!/usr/bin/env bash
# Every test that needs a GPU, on the machine that has one: the installed programs and tests (see package.sh), run from the repository's root.
# Usage: tests/gpu/run.sh INSTALLED [TRACE.csv …]. Prints a line a stage, and ends non-zero when one failed.
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
  if "$@" >"$logs/$name.log" 2>&1; then
    printf 'ok      %-28s %4s s\n' "$name" $((SECONDS - begin))
  else
    printf 'FAILED  %-28s %4s s\n' "$name" $((SECONDS - begin))
    tail -n 15 "$logs/$name.log"
    failed=1
  fi
}

# A run in which a test was skipped for want of a device proves nothing.
gtest() {  # program, filter
  "$bin/$1" --gtest_brief=1 --gtest_filter="$2" 2>&1 | tee /dev/stderr | awk '/SKIPPED/ {skipped = 1} END {exit skipped}'
  local status=("${PIPESTATUS[@]}")
  return $((status[0] + status[2]))
}

sanitize() {  # tool, program, filter
  compute-sanitizer --tool "$1" --error-exitcode 9 "$bin/$2" --gtest_brief=1 --gtest_filter="$3"
}

serve_and_replay() {  # trace, client's flags …
  local trace=$1 log
  shift
  log=$(mktemp)
  "$bin/nsa-metadata-server" --backend=cuda --listen=127.0.0.1:0 --health_listen=127.0.0.1:0 --metrics_listen=127.0.0.1:0 2>"$log" &
  local server=$! address=
  for ((tries = 0; tries < 300; ++tries)); do
    address=$(sed -n 's/.* serving: grpc=\([^, ]*\).*/\1/p' "$log")
    [[ -n "$address" ]] && break
    sleep 0.1
  done
  cat "$log"
  "$bin/nsa-metadata" replay --target="$address" --trace="$trace" --verify --in_flight=64 "$@"
  local status=$?
  kill -TERM "$server" && wait "$server" && return "$status"
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
few='*KnownAnswer*cuda*:*AnyNumberOfSequences*cuda*:*NotAsked*cuda*'
for tool in memcheck racecheck initcheck synccheck; do
  stage "$tool-launchers" sanitize "$tool" cuda_test '*KnownAnswer*:*Capacity*:*Negative*:*Flags*'
  stage "$tool-backends" sanitize "$tool" kernels_test "$few"
done
# Of nothing but what is skipped pytest says 5.
stage from-python env PYTHONPATH="$PWD/$installed/python" python3 -m pytest -q -p no:cacheprovider tests/local/test_local_cuda.py
for trace in "$@"; do
  name=$(basename "$trace" .csv)
  stage "replay-$name" serve_and_replay "$trace"
  stage "replay-stream-$name" serve_and_replay "$trace" --stream
done
stage doctor "$bin/nsa-metadata" doctor

for log in "$logs"/doctor.log "$logs"/replay-*.log; do
  [[ -f "$log" ]] || continue
  printf '\n== %s\n' "$(basename "$log" .log)"
  cat "$log"
done
exit $failed
