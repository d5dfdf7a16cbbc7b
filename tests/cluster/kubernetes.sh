#!/usr/bin/env bash
# Builds Kubernetes from the source package of this machine's Debian, which has no binaries but kubectl's, into build/cluster/bin. Once: minutes.
set -euo pipefail
cd "$(dirname "$0")/../.."
bin=build/cluster/bin
programs=(kube-apiserver kube-controller-manager kube-scheduler kubelet kubectl)
if [[ -d "$bin" ]]; then
  exit 0
fi
source=$PWD/build/cluster/source
rm -rf "$source"
mkdir -p "$source/sources" "$source/lists/partial" "$source/cache/archives/partial" "$source/go/src/k8s.io"

# The machine's package sources, for the packages' sources.
for file in /etc/apt/sources.list /etc/apt/sources.list.d/*.{list,sources}; do
  if [[ -f "$file" ]]; then
    sed --regexp-extended 's/^deb /deb-src /; s/^Types:.*/Types: deb-src/' "$file" >"$source/sources/$(basename "$file")"
  fi
done
apt=(apt-get --quiet=2 -o Dir::Etc::sourcelist=/dev/null -o "Dir::Etc::sourceparts=$source/sources" -o "Dir::State::lists=$source/lists"
  -o "Dir::Cache=$source/cache" -o APT::Sandbox::User=root)
"${apt[@]}" update
(cd "$source" && "${apt[@]}" source kubernetes) >/dev/null

echo "building Kubernetes (the first time takes some minutes)"
# It wants to lie there.
ln -s "$source"/kubernetes-*/ "$source/go/src/k8s.io/kubernetes"
cd "$source/go/src/k8s.io/kubernetes"
if ! GOPATH=$source/go GOCACHE=$source/go-cache CGO_ENABLED=0 PATH=/usr/lib/go/bin:$PATH make WHAT="${programs[*]/#/cmd/}" >"$source/log" 2>&1; then
  tail -n 20 "$source/log" >&2
  exit 1
fi
cd - >/dev/null
mkdir "$bin.new"
for program in "${programs[@]}"; do
  install --strip "$source/go/src/k8s.io/kubernetes/_output/bin/$program" "$bin.new"
done
mv "$bin.new" "$bin"
rm -rf "$source"
