#!/usr/bin/env bash
# Puts bad networks between a server and its callers: tests/chaos/run.sh [--long]. In network namespaces of its own, so that nothing of
# the machine's network is touched. Needs what tests/run.sh has installed and built.
set -euo pipefail
cd "$(dirname "$0")/../.."
# As root of a user namespace, which needs no rights; where those are not allowed, as root.
alone=(unshare --user --map-root-user --net --mount)
"${alone[@]}" true 2>/dev/null || alone=(unshare --net --mount)
export NSA_METADATA_BUILD="${NSA_METADATA_BUILD:-$PWD/build/release}"
PATH="$PATH:/usr/sbin:/sbin" exec "${alone[@]}" build/venv-e2e/bin/python tests/chaos/chaos.py "$@"
