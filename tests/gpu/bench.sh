#!/usr/bin/env bash
# Measures on a machine with a GPU: tests/gpu/bench.sh INSTALLED FOLDER, run from the repository's root. FOLDER gets gpu_step's and gpu_peers.py's lines, a report
# of them (gpu_report.py; the picture where there is matplotlib), and the service beside the transport's floor.
set -euo pipefail
cd "$(dirname "$0")/../.."
export NSA_METADATA_BUILD=$PWD/$1
out=$2
mkdir -p "$out"
card=$(nvidia-smi --query-gpu=name,driver_version --format=csv,noheader)
"$1/bin/gpu_step" >"$out/gpu-step.json"
PYTHONPATH=$PWD/$1/python python3 tests/bench/gpu_peers.py >"$out/gpu-peers.json"
python3 -c 'import matplotlib' 2>/dev/null && plot=(--plot "$out/gpu-step.png") || plot=()
python3 tests/bench/gpu_report.py "$out/gpu-step.json" "$out/gpu-peers.json" "${plot[@]}" >"$out/gpu-step.md"
printf 'GPU lanes, %s. ' "$card" >"$out/floor.md"
python3 tests/bench/floor.py --rounds 5 --duration 0.6 --backend cuda --sizes 142 4096 --parts tcp >>"$out/floor.md"
