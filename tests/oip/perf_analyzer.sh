#!/usr/bin/env bash
# Runs Triton's perf_analyzer with these arguments. Its program needs a newer glibc than Debian 12's: so a Debian 13 beside it, in build/, made the first
# time. Needs root, for chroot.
set -euo pipefail
cd "$(dirname "$0")/../.."
version=2.60.0
root=build/trixie-perf-analyzer-$version
if [[ ! -e "$root/usr/bin/perf_analyzer" ]]; then
  deploy/local/install.sh tests/oip/packages.txt >&2
  wheels=$(mktemp -d)
  trap 'rm -rf "$wheels"' EXIT
  build/venv-oip/bin/python -m pip download --quiet --disable-pip-version-check --no-deps --dest "$wheels" \
    --platform manylinux_2_38_x86_64 --only-binary=:all: "perf-analyzer==$version"
  rm -rf "$root"
  # Only extracted: links that packages expect are made before.
  # shellcheck disable=SC2016
  mmdebstrap --quiet --variant=extract --format=directory --include=libc6,libgcc-s1,libssl3t64,libstdc++6,zlib1g \
    --setup-hook='mkdir -p "$1/usr/bin" "$1/usr/lib" "$1/usr/lib64"; ln -s usr/lib "$1/lib"; ln -s usr/lib64 "$1/lib64"' \
    trixie "$root" >&2
  build/venv-oip/bin/python -m zipfile --extract "$wheels"/*.whl "$wheels"
  install "$wheels/perf_analyzer/bin/perf_analyzer" "$root/usr/bin/"
fi
exec unshare --root="$root" /usr/bin/perf_analyzer "$@"
