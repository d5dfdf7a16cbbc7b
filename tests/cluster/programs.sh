#!/usr/bin/env bash
# What nodes and a control plane run, into build/cluster/programs: Debian's etcd, containerd, runc, CNI plugins and busybox, only unpacked, and Kubernetes,
# which Debian has the source of, but of its programs kubectl alone. Once: it takes minutes.
set -euo pipefail
cd "$(dirname "$0")/../.."
programs=$PWD/build/cluster/programs
if [[ -d "$programs" ]]; then
  exit 0
fi
made=$programs.new
source=$PWD/build/cluster/source
rm -rf "$made" "$source"
mkdir -p "$made/usr/bin" "$source/sources" "$source/lists/partial" "$source/cache/archives/partial" "$source/packages" "$source/go/src/k8s.io"

# The machine's package sources, and the packages' sources of the same.
for file in /etc/apt/sources.list /etc/apt/sources.list.d/*.{list,sources}; do
  if [[ -f "$file" ]]; then
    sed --regexp-extended 's/^deb (.*)/deb \1\ndeb-src \1/; s/^Types:.*/Types: deb deb-src/' "$file" >"$source/sources/$(basename "$file")"
  fi
done
apt=(apt-get --quiet=2 -o Dir::Etc::sourcelist=/dev/null -o "Dir::Etc::sourceparts=$source/sources" -o "Dir::State::lists=$source/lists"
  -o "Dir::Cache=$source/cache" -o APT::Sandbox::User=root)
"${apt[@]}" update
(cd "$source/packages" && "${apt[@]}" download busybox-static containerd containernetworking-plugins etcd-server runc) >/dev/null
for package in "$source"/packages/*.deb; do
  dpkg-deb --extract "$package" "$made"
done

(cd "$source" && "${apt[@]}" --download-only source kubernetes && tar --extract --file kubernetes_*.orig.tar.*) >/dev/null
echo "building Kubernetes (the first time takes some minutes)"
# It builds within a GOPATH only.
ln -s "$source"/kubernetes-*/ "$source/go/src/k8s.io/kubernetes"
wanted=(kube-apiserver kube-controller-manager kube-scheduler kubelet kubectl)
if ! (cd "$source/go/src/k8s.io/kubernetes" && env --unset=GOFLAGS --unset=GOROOT GOPATH="$source/go" GOCACHE="$source/go-cache" CGO_ENABLED=0 \
  PATH="/usr/lib/go/bin:$PATH" make WHAT="${wanted[*]/#/cmd/}") >"$source/log" 2>&1; then
  tail -n 20 "$source/log" >&2
  exit 1
fi
for program in "${wanted[@]}"; do
  install --strip "$source/go/src/k8s.io/kubernetes/_output/bin/$program" "$made/usr/bin"
done
mv "$made" "$programs"
rm -rf "$source"
