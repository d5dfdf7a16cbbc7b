#!/usr/bin/env bash
# Fuzzes what reads strangers' bytes: tests/fuzz/run.sh [--minutes=10 | --hours=1] [target …], two targets at once; all but named ones:
# request, batch, trace, policy, dump, flag_file.
# Then says how many lines of what they are aimed at the corpora reach. New inputs that reach more are left in tests/fuzz/corpus, to be
# committed. Ends non-zero at a crash, whose input lies in build/fuzz. Needs what tests/run.sh installs and builds.
set -euo pipefail
cd "$(dirname "$0")/../.."
seconds=600
targets=()
for argument in "$@"; do
  case $argument in
    --minutes=*) seconds=$((60 * ${argument#*=})) ;;
    --hours=*) seconds=$((3600 * ${argument#*=})) ;;
    *) targets+=("$argument") ;;
  esac
done
((${#targets[@]})) || targets=(request batch trace policy dump flag_file)
# The server's own, see flag_file.py.
flag_file=false
for i in "${!targets[@]}"; do
  [[ ${targets[$i]} == flag_file ]] && flag_file=true && unset "targets[$i]"
done
if $flag_file; then
  python3 tests/fuzz/flag_file.py --seconds="$seconds"
fi
((${#targets[@]})) || exit 0

deploy/local/install.sh tests/fuzz/packages.txt
programs=("${targets[@]/%/_fuzz}")
cmake --preset fuzz >/dev/null
cmake --build --preset fuzz --target "${programs[@]}" -- --quiet

fuzz() {  # target
  local work=build/fuzz/corpus-$1
  rm -rf "$work" && mkdir -p "$work"
  "build/fuzz/tests/fuzz/$1_fuzz" -max_total_time="$seconds" -max_len=4096 -timeout=10 -rss_limit_mb=2048 -print_final_stats=1 \
    -artifact_prefix="build/fuzz/$1-" "$work" "tests/fuzz/corpus/$1" >"build/fuzz/$1.log" 2>&1 || { tail -n 40 "build/fuzz/$1.log"; return 1; }
  "build/fuzz/tests/fuzz/$1_fuzz" -merge=1 "tests/fuzz/corpus/$1" "$work" >/dev/null 2>&1
  printf '%-8s %s s: %s inputs run, %s in the corpus, no crash\n' "$1" "$seconds" \
    "$(sed -n 's/^stat::number_of_executed_units: *//p' "build/fuzz/$1.log")" "$(ls "tests/fuzz/corpus/$1" | wc -l)"
}
export -f fuzz
export seconds
printf '%s\n' "${targets[@]}" | xargs -P 2 -I{} bash -c 'fuzz {}'

cmake --preset coverage >/dev/null
cmake --build --preset coverage --target "${programs[@]}" -- --quiet
cover() {  # target, sources …
  local program=build/coverage/tests/fuzz/$1_fuzz profile=build/coverage/$1
  LLVM_PROFILE_FILE=$profile.raw "$program" "tests/fuzz/corpus/$1" >/dev/null
  llvm-profdata-14 merge -o "$profile.data" "$profile.raw"
  llvm-cov-14 export -summary-only -instr-profile="$profile.data" "$program" "${@:2}" |
    python3 -c 'import json, sys
for file in json.load(sys.stdin)["data"][0]["files"]:
    lines = file["summary"]["lines"]
    print(f"""lines reached: {lines["percent"]:.0f} % of {lines["count"]} in {file["filename"].removeprefix(sys.argv[1])}""")' "$PWD/"
}
for target in "${targets[@]}"; do
  case $target in
    request) cover request server/codec.cc server/inference_codec.cc server/reply_layout.cc ;;
    batch) cover batch kernels/request_batch.cc kernels/cpu.cc ;;
    trace) cover trace client/trace.cc ;;
    policy) cover policy server/policy.cc ;;
    dump) cover dump client/dump.cc client/check.cc ;;
  esac
done
