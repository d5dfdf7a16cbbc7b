#!/usr/bin/env bash
# The images that the nodes have, as archives in build/cluster/images: the server's, a busybox for kubectl debug, and the pause image.
set -euo pipefail
cd "$(dirname "$0")/../.."
images=build/cluster/images
rm -rf "$images"
mkdir -p "$images"

files=$(mktemp -d)
tag=nsa-metadata-cluster
container=
clean() {
  rm -rf "$files"
  if [[ -n "$container" ]]; then
    buildah rm "$container"
  fi
  buildah rmi "$tag:server" "$tag:busybox"
}
trap 'clean >/dev/null 2>&1 || true' EXIT

save() {  # image, name on the nodes
  buildah push --quiet "$1" "docker-archive:$images/$(basename "${2%:*}").tar:$2"
}

deploy/container/build.sh "$tag:server"
version=$(build/container/programs/bin/nsa-metadata-server --version | awk '{print $2; exit}')
save "$tag:server" "docker.io/library/nsa-metadata-server:$version"

mkdir "$files/bin"
cp build/cluster/programs/bin/busybox "$files/bin"
for name in netstat sh sleep; do
  ln -s busybox "$files/bin/$name"
done
from_busybox() {  # name on the nodes, command as JSON
  container=$(buildah from scratch)
  buildah copy --quiet "$container" "$files" / >/dev/null
  buildah config --env PATH=/bin --cmd "$2" "$container"
  buildah commit --quiet "$container" "$tag:busybox" >/dev/null
  buildah rm "$container" >/dev/null
  container=
  save "$tag:busybox" "$1"
}
from_busybox docker.io/library/busybox:latest '["sh"]'
from_busybox localhost/pause:1 '["sleep", "2147483647"]'
