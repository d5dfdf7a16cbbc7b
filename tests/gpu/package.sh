#!/usr/bin/env bash
# Builds, and installs programs and tests with their shared libraries into a folder that runs on another Linux: tests/gpu/package.sh FOLDER.
set -euo pipefail
cd "$(dirname "$0")/../.."
cmake --preset release -DNSA_METADATA_CUDA=ON >/dev/null
cmake --build --preset release -- --quiet
for component in programs tests; do
  cmake --install build/release --prefix "$1" --component "$component" --strip >/dev/null
done
du -sh "$1"
