#!/usr/bin/env bash
# Measures, and keeps what it printed in tests/bench/results/: tests/bench/run.sh [floor | peers | costs | cpu | growth] [--flags of the script].
# Without a name: all of them, about an hour. Installs what is missing and builds first.
set -euo pipefail
cd "$(dirname "$0")/../.."

names=(floor peers costs cpu growth)
if (($# > 0)); then
  names=("$1")
  shift
fi
deploy/local/install.sh deploy/local/packages.txt tests/packages.txt tests/bench/packages.txt
cmake --preset release >/dev/null
cmake --build --preset release -- --quiet
environment() {  # folder, requirements
  if ! cmp --silent "$2" "build/$1/requirements.txt"; then
    /usr/bin/python3 -m venv --clear "build/$1"
    "build/$1/bin/python" -m pip install --quiet --disable-pip-version-check --requirement "$2"
    cp "$2" "build/$1/requirements.txt"
  fi
}
environment venv-bench tests/bench/requirements.txt

for name in "${names[@]}"; do
  out=tests/bench/results/$(date --utc +%Y-%m-%d)-$(nproc)-cores-$name
  more=()
  case "$name" in
    peers)
      environment venv-triton tests/bench/peers/requirements-triton.txt
      more=(--triton build/venv-triton/bin/python)
      ;;
    growth) more=(--out "$out.json") ;;
  esac
  build/venv-bench/bin/python "tests/bench/$name.py" "${more[@]}" "$@" | tee "$out.md"
  if [[ "$name" == growth ]]; then
    build/venv-bench/bin/python tests/bench/growth.py --out "$out.json" --plot "$out.png"
  fi
done
