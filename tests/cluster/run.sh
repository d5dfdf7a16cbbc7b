#!/usr/bin/env bash
# Runs the manifests on a Kubernetes of two nodes, in namespaces of its own, and takes the runbook's steps: tests/cluster/run.sh [pytest's arguments]. Needs
# root, cgroup v1, a file system that overlayfs takes, and what tests/run.sh --full has installed; builds Kubernetes the first time.
set -euo pipefail
cd "$(dirname "$0")/../.."
if ((EUID != 0)) || [[ ! -e /sys/fs/cgroup/memory/tasks ]]; then
  echo "no cluster here: it needs root, and cgroup v1" >&2
  exit 1
fi
python=$PWD/build/venv-cluster/bin/python
if [[ ! -x "$python" ]]; then
  echo "no build/venv-cluster: tests/run.sh --full makes it" >&2
  exit 1
fi
# The nodes' cgroups have the same names in every checkout.
exec 9</sys/fs/cgroup
if ! flock --nonblock 9; then
  echo "another cluster runs here" >&2
  exit 1
fi
deploy/local/install.sh tests/cluster/packages.txt deploy/container/packages.txt
tests/cluster/programs.sh
tests/cluster/images.sh

# Empty by then, however it ended: with the first process of their namespace the kernel ends the others.
trap 'find /sys/fs/cgroup/*/nsa-metadata-node-? -depth -type d -exec rmdir {} + 2>/dev/null || true' EXIT
# kubectl keeps things in a home.
export HOME=$PWD/build/cluster/home PATH="$PWD/build/cluster/programs/usr/bin:$PWD/build/cluster/programs/usr/sbin:$PATH:/usr/sbin:/sbin"
cd tests/cluster
# No proxy reaches in there. KILL: Python as a namespace's first process takes no other signal.
timeout --signal=KILL 20m env --unset={http,https,no,all}_proxy --unset={HTTP,HTTPS,NO,ALL}_PROXY \
  unshare --mount --net --pid --fork --kill-child --mount-proc "$python" -m pytest -q "$@" 9<&-
