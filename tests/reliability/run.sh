#!/usr/bin/env bash
# Measures what tests/RELIABILITY.md has of loads and of many peers: tests/reliability/run.sh [--long] [R3 R4 …]. Needs what tests/run.sh has installed and built.
set -euo pipefail
cd "$(dirname "$0")/../.."
exec build/venv-e2e/bin/python tests/reliability/rows.py "$@"
