#!/usr/bin/env bash
# Plants faults in a copy of the sources, one at a time, and sees a test fail for each: tests/faults/run.sh [--check] [name …]. Needs what tests/run.sh has installed and built.
set -euo pipefail
cd "$(dirname "$0")/../.."
PATH="$PWD/build/venv-e2e/bin:$PATH" exec build/venv-e2e/bin/python tests/faults/faults.py "$@"
