#!/usr/bin/env bash
# Builds, and installs programs, tests and the Python package with their shared libraries into a folder that runs on another Linux:
# tests/gpu/package.sh FOLDER. NSA_METADATA_GPU_PYTHON: a Python, with its headers, of the version that is there; python3.12.
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
# The Python package with its extension, for the Python that is there.
rm -rf "$1/python"
"${NSA_METADATA_GPU_PYTHON:-python3.12}" -m pip wheel --quiet --no-deps --config-settings=cmake.define.NSA_METADATA_CUDA=ON --wheel-dir "$1/wheel" client/python
python3 -m zipfile -e "$1"/wheel/*.whl "$1/python"
rm -r "$1/wheel"
"${NSA_METADATA_GPU_PYTHON:-python3.12}" -m pip install --quiet --target "$1/python" --requirement tests/gpu/requirements.txt
mkdir -p "$1/ptx"
install --strip build/ptx/tests/kernels/kernels_test build/ptx/tests/kernels/cuda_test "$1/ptx"
du -sh "$1"
