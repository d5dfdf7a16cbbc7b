#!/usr/bin/env bash
# Builds, and installs programs and tests with their shared libraries into a folder that runs on another Linux: tests/gpu/package.sh FOLDER.
set -euo pipefail
cd "$(dirname "$0")/../.."
cmake --preset release -DNSA_METADATA_CUDA=ON >/dev/null
cmake --build --preset release -- --quiet
for component in programs tests; do
  cmake --install build/release --prefix "$1" --component "$component" --strip >/dev/null
done
# The same kernels as nothing but PTX, for the driver to compile.
cmake -S . -B build/ptx -G Ninja -DCMAKE_BUILD_TYPE=Release -DNSA_METADATA_CUDA=ON -DNSA_METADATA_CUDA_ARCHITECTURES=75-virtual >/dev/null
cmake --build build/ptx --target kernels_test cuda_test -- --quiet
mkdir -p "$1/ptx"
install --strip build/ptx/tests/kernels/kernels_test build/ptx/tests/kernels/cuda_test "$1/ptx"
du -sh "$1"
