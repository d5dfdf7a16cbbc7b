#!/usr/bin/env bash
# Builds the image: deploy/container/build.sh [TAG]. TAG: nsa-metadata-server:VERSION unless given. Installs what is missing, a CUDA compiler
# too (NSA_METADATA_CUDA=OFF leaves CUDA out), and builds the programs.
set -euo pipefail
cd "$(dirname "$0")/../.."

deploy/local/install.sh deploy/local/packages.txt deploy/container/packages.txt

case "${NSA_METADATA_CUDA:=ON}" in
  ON | OFF) ;;
  *)
    echo "NSA_METADATA_CUDA=$NSA_METADATA_CUDA is neither ON nor OFF" >&2
    exit 2
    ;;
esac
cuda=(-DNSA_METADATA_CUDA=OFF)
if [[ "$NSA_METADATA_CUDA" == ON ]]; then
  # The same compiler on every machine, with or without one of its own.
  venv=build/venv-cuda
  if ! cmp --silent deploy/container/requirements.txt "$venv/requirements.txt"; then
    /usr/bin/python3 -m venv --clear "$venv"
    "$venv/bin/python" -m pip install --quiet --disable-pip-version-check --requirement deploy/container/requirements.txt
    cp deploy/container/requirements.txt "$venv"
  fi
  toolkit=$(echo "$PWD/$venv"/lib/python3.*/site-packages/nvidia/cu13)
  # Where nvcc and CMake look for what they link.
  ln -sfn lib "$toolkit/lib64"
  # For the bill of materials too.
  export CUDACXX=$toolkit/bin/nvcc
  # CMake looks for the shared runtime too, though nothing is linked with it.
  cuda=(-DNSA_METADATA_CUDA=ON "-DCMAKE_CUDA_COMPILER=$toolkit/bin/nvcc" "-DCUDAToolkit_ROOT=$toolkit" "-DCUDA_CUDART=$toolkit/lib/libcudart.so.13")
fi
build=build/image
echo "building (the first time takes some minutes)"
# Its line about CUDA says what the image can do.
cmake --preset serve -B "$build" "${cuda[@]}" | sed --quiet --regexp-extended 's/^-- (CUDA [0-9]|No CUDA )/\1/p'
cmake --build "$build" -- --quiet

context=build/container
rm -rf "$context"
mkdir -p "$context"
cmake --install "$build" --prefix "$context/programs" --component programs --strip >/dev/null
cp LICENSE "$context"
version=$("$context/programs/bin/nsa-metadata-server" --version | awk '{print $2; exit}')
revision=$(git describe --always --dirty --abbrev=40 --exclude='*' 2>/dev/null || true)
tag=${1:-nsa-metadata-server:$version}

# The libraries come as Debian's packages and not out of lib/: so a scanner knows them, their licences are there, and building again brings
# their fixes.
needed=()
while read -r path; do
  # dpkg may know a file by its path from before /lib became a link to /usr/lib.
  package=$(dpkg-query --search "*${path#/usr}" | sed -n '1s/:.*//p')
  needed+=("${package:?no package has $path}")
done < <(ldd "$build"/{server/nsa-metadata-server,client/nsa-metadata} | awk '$2 == "=>" {print $3}' | sort -u)
mapfile -t needed < <(printf '%s\n' "${needed[@]}" | sort -u)

# The base is of this machine's release, by this machine's sources and proxies: the programs were linked against just that.
apt_sources=()
for file in /etc/apt/sources.list /etc/apt/sources.list.d/*.{list,sources}; do
  if [[ -f "$file" ]]; then
    apt_sources+=("$file")
  fi
done
apt-config dump --no-empty Acquire::http Acquire::https >"$context/apt.conf"

# The same commit and the same packages give the same bytes.
SOURCE_DATE_EPOCH=$(git log -1 --format=%ct 2>/dev/null || date +%s)
export SOURCE_DATE_EPOCH

# Only extracted, not installed: no shell, no package manager, no program but ours. What a package's scripts would have done and we need is
# in finish-base.sh.
echo "making the base of ${needed[*]}"
mmdebstrap --quiet --variant=extract --include="$(IFS=,; echo "${needed[*]}")" --aptopt="$context/apt.conf" \
  --extract-hook="deploy/container/finish-base.sh" --skip=output/dev '' - "${apt_sources[@]}" |
  mmtarfilter \
    --path-exclude='/bin/*' --path-exclude='/sbin/*' --path-exclude='/usr/bin/*' --path-exclude='/usr/sbin/*' \
    --path-exclude='/etc/apt/*' --path-exclude='/etc/dpkg/*' --path-exclude='/etc/debconf.conf' --path-exclude='/usr/share/debconf/*' \
    --path-exclude='/etc/fstab' --path-exclude='/etc/hostname' --path-exclude='/etc/resolv.conf' --path-exclude='/var/cache/*' \
    --path-exclude='/var/lib/apt/*' --path-exclude='/var/lib/dpkg/*' --path-include='/var/lib/dpkg/status.d/*' \
    --path-exclude='/usr/share/doc/*/*' --path-include='/usr/share/doc/*/copyright' --path-exclude='/usr/share/man/*' \
    --path-exclude='/usr/share/perl5/*' --path-exclude='/usr/share/pixmaps/*' --path-exclude='/usr/share/lintian/*' \
    --path-exclude='/usr/share/bash-completion/*' --path-exclude='/usr/share/gcc/*' --path-exclude='/usr/share/gdb/*' \
    --path-exclude='/usr/lib/*/gconv/*' >"$context/base.tar"

# Of the programs as they are copied, and of the packages that the base has.
mkdir "$context/packages"
tar --extract --file "$context/base.tar" --directory "$context/packages" --wildcards --strip-components=5 './var/lib/dpkg/status.d/*'
python3 deploy/container/sbom.py "$build" --programs "$context/programs/bin" --packages "$context/packages" >"$context/sbom.spdx.json"

# The base is a layer of its own, so that nodes keep it from one release to the next.
buildah build --quiet --isolation chroot --layers --timestamp "$SOURCE_DATE_EPOCH" --file deploy/container/Containerfile \
  --build-arg "VERSION=$version" --build-arg "REVISION=$revision" --tag "$tag" "$context" >/dev/null

base_bytes=$(stat --format=%s "$context/base.tar")
echo "$tag: $(buildah images --format '{{.Size}}' "$tag"), of it the base $((base_bytes / 1000000)) MB"
