#!/usr/bin/env bash
# Three servers as the manifests run them, on 127.0.0.1 to 3, behind a name server or Envoy: tests/scaleout/run.sh [--long] [dns] [envoy]. Says how load spreads,
# and what is lost while they are restarted, killed and added to. Needs what tests/run.sh (--full: Envoy) has installed and built.
set -euo pipefail
cd "$(dirname "$0")/../.."
deploy/local/install.sh tests/scaleout/packages.txt
PATH="$PATH:/usr/sbin" exec build/venv-e2e/bin/python tests/scaleout/scaleout.py "$@"
