#!/usr/bin/env bash
# Calls a server 1,000,000 times, or 100,000,000 (--long, an hour on two cores, a load for each three of more), and says what its memory, descriptors and threads did. Then the same,
# in short, with a server that leaks 64 bytes a batch, which has to fail. Needs what tests/run.sh has installed and built.
set -euo pipefail
cd "$(dirname "$0")/../.."
soak=(build/venv-e2e/bin/python tests/soak/soak.py)
"${soak[@]}" "$@"
code=0
"${soak[@]}" --leak=64 || code=$?
if ((code != 3)); then  # which says that memory grows; another failure is none of the leak's
  echo "a leak went unnoticed" >&2
  exit 1
fi
echo "the planted leak was noticed"
