#!/usr/bin/env bash
# Installs what the tests need, builds, and runs every test that needs no GPU. Ends with a non-zero status at the first stage that fails.
# --full: also the proxy in front (Envoy), what it stops and how it balances, Triton's perf_analyzer, the status page in Chromium, the container image,
# and, as root and with cgroup v1, a Kubernetes that runs it.
set -euo pipefail
cd "$(dirname "$0")/.."

full=false
left_out=
if [[ "${1:-}" == --full ]]; then
  full=true
fi

stage() { printf '\n=== %s (%s s)\n' "$1" "$SECONDS"; }

build() {  # preset
  cmake --preset "$1" >/dev/null
  # Only what goes wrong is of interest.
  cmake --build --preset "$1" -- --quiet
}

run_ctest() {  # preset
  ctest --test-dir "build/$1" --output-on-failure --no-tests=error --progress --parallel 2
}

make_venv() {  # folder under tests with the requirements
  local venv=build/venv-$1
  if ! cmp --silent "tests/$1/requirements.txt" "$venv/requirements.txt"; then
    /usr/bin/python3 -m venv --clear "$venv"
    "$venv/bin/python" -m pip install --quiet --disable-pip-version-check --requirement "tests/$1/requirements.txt"
    cp "tests/$1/requirements.txt" "$venv/requirements.txt"
  fi
}

stage "packages"
deploy/local/install.sh deploy/local/packages.txt tests/packages.txt
make_venv e2e
make_venv oip
make_venv deploy

stage "format"
find kernels server client tests -name '*.cc' -o -name '*.h' | xargs clang-format --dry-run --Werror
# Each fault that tests were seen to notice still has its place in the sources.
tests/faults/run.sh --check

stage "release: build"
build release
stage "release: C++ tests"
run_ctest release

stage "real peers: Python grpcio, h2load, Prometheus, buf"
export NSA_METADATA_BUILD=$PWD/build/release
# A test that failed may leave what never ends.
PATH="$PWD/build/venv-e2e/bin:$PATH" timeout 15m build/venv-e2e/bin/python -m pytest -q --durations=5 tests/e2e

stage "Open Inference Protocol: tritonclient"
timeout 5m build/venv-oip/bin/python -m pytest -q tests/oip -m "not perf_analyzer"

stage "reliability: loads and many peers, in short"
timeout 15m tests/reliability/run.sh

stage "chaos: loss, black holes, resets, delay between network namespaces"
timeout 15m tests/chaos/run.sh

stage "soak: memory, descriptors and threads over 1,000,000 calls, and a planted leak"
timeout 15m tests/soak/run.sh

stage "scale-out: three servers behind a name server, restarted, killed, added"
timeout 15m tests/scaleout/run.sh dns

if $full; then
  stage "reliability: behind Envoy"
  make_venv reliability
  tests/reliability/run.sh proxy
  stage "scale-out: three servers behind Envoy"
  tests/scaleout/run.sh --long envoy

  stage "Open Inference Protocol: perf_analyzer"
  build/venv-oip/bin/python -m pytest -q tests/oip -m perf_analyzer

  stage "status page in Chromium"
  deploy/local/install.sh tests/page/packages.txt
  make_venv page
  build/venv-page/bin/python -m pytest -q tests/page
fi

stage "deployment: Kubernetes manifests"
build/venv-deploy/bin/python -m pytest -q tests/deploy -m "not image"
if $full; then
  stage "deployment: container image"
  deploy/local/install.sh tests/deploy/packages.txt
  build/venv-deploy/bin/python -m pytest -q tests/deploy -m image
  if ((EUID == 0)) && [[ -e /sys/fs/cgroup/memory/tasks ]]; then
    stage "deployment: a Kubernetes of two nodes, and the runbook's steps"
    make_venv cluster
    tests/cluster/run.sh
  else
    left_out=", but the Kubernetes of two nodes, which needs root and cgroup v1"
  fi
fi

stage "clang with thread-safety annotations as errors: build"
build clang-tsa

stage "AddressSanitizer, LeakSanitizer, UndefinedBehaviorSanitizer: build"
build asan
stage "AddressSanitizer, LeakSanitizer, UndefinedBehaviorSanitizer: C++ tests"
run_ctest asan

stage "AddressSanitizer, LeakSanitizer, UndefinedBehaviorSanitizer: certificates and policies, the health port, nonsense on connections"
NSA_METADATA_BUILD=$PWD/build/asan timeout 10m build/venv-e2e/bin/python -m pytest -q tests/e2e/test_tls.py tests/e2e/test_health_port.py
NSA_METADATA_BUILD=$PWD/build/asan timeout 5m tests/reliability/run.sh R1

stage "ThreadSanitizer: build"
build tsan
stage "ThreadSanitizer: C++ tests"
# gRPC ends threads of its own later than a program that has just called; ours are std::threads, which can't be left behind.
export TSAN_OPTIONS="ignore_noninstrumented_modules=1 report_thread_leaks=0 suppressions=$PWD/tests/tsan.supp"
run_ctest tsan
stage "ThreadSanitizer: certificates and policies, the health port"
NSA_METADATA_BUILD=$PWD/build/tsan timeout 10m build/venv-e2e/bin/python -m pytest -q tests/e2e/test_tls.py tests/e2e/test_health_port.py

stage "all passed$left_out"
