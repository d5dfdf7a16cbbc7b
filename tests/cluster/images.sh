#!/usr/bin/env bash
# The images that the nodes have, as archives in build/cluster/images: the server's, a busybox for kubectl debug, and what a pod's namespaces are held by.
set -euo pipefail
cd "$(dirname "$0")/../.."
images=build/cluster/images
rm -rf "$images"
mkdir -p "$images"

save() {  # image, name on the nodes
  buildah push --quiet "$1" "docker-archive:$images/$(basename "${2%:*}").tar:$2"
}

deploy/container/build.sh nsa-metadata-server:cluster
save nsa-metadata-server:cluster "docker.io/library/nsa-metadata-server:$(build/container/programs/bin/nsa-metadata-server --version | awk '{print $2; exit}')"

files=$(mktemp -d)
trap 'rm -rf "$files"' EXIT
mkdir "$files/bin"
cp /bin/busybox "$files/bin"
for name in netstat sh sleep; do
  ln -s busybox "$files/bin/$name"
done
from_busybox() {  # name on the nodes, command as JSON
  local container
  container=$(buildah from scratch)
  buildah copy --quiet "$container" "$files" / >/dev/null
  buildah config --env PATH=/bin --cmd "$2" "$container"
  buildah commit --quiet "$container" nsa-metadata-cluster-image >/dev/null
  buildah rm "$container" >/dev/null
  save nsa-metadata-cluster-image "$1"
  buildah rmi nsa-metadata-cluster-image >/dev/null
}
from_busybox docker.io/library/busybox:latest '["sh"]'
from_busybox localhost/pause:1 '["sleep", "2147483647"]'
buildah rmi nsa-metadata-server:cluster >/dev/null
