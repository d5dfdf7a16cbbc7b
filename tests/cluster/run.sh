#!/usr/bin/env bash
# Runs the manifests on a Kubernetes of two nodes on this machine, in namespaces of its own, and tries the runbook's steps: tests/cluster/run.sh [pytest's
# arguments]. Needs root, control groups of version 1, and what tests/run.sh --full has installed; builds Kubernetes the first time.
set -euo pipefail
cd "$(dirname "$0")/../.."
if ((EUID != 0)) || [[ ! -e /sys/fs/cgroup/memory/tasks ]]; then
  echo "no cluster here: it needs root, and control groups of version 1" >&2
  exit 1
fi
deploy/local/install.sh tests/cluster/packages.txt deploy/container/packages.txt
tests/cluster/kubernetes.sh
tests/cluster/images.sh
PATH="$PATH:/usr/sbin:/sbin" exec unshare --mount --net --pid --fork --kill-child --mount-proc \
  build/venv-cluster/bin/python -m pytest -q "${@:-tests/cluster}"
