#!/bin/sh
# mmdebstrap's hook: ROOT holds the libraries' extracted packages; adds what our programs need beside them.
set -eu
cd "$1"

# Data without the tools these packages depend on (a shell, awk, openssl).
(
  cd var/cache/apt/archives
  # As root, as mmdebstrap does itself: apt's own user can't write here.
  APT_CONFIG=$MMDEBSTRAP_APT_CONFIG apt-get download --quiet=2 --option APT::Sandbox::User=root base-files ca-certificates
  # Came because libssl3 asks its questions through it; its files are left out.
  rm -f debconf_*.deb
)
for package in base-files ca-certificates; do
  dpkg-deb --extract var/cache/apt/archives/"$package"_*.deb .
done

# What update-ca-certificates would do.
mkdir -p etc/ssl/certs
cat usr/share/ca-certificates/mozilla/*.crt >etc/ssl/certs/ca-certificates.crt

# Where scanners look for the packages of an image without dpkg.
mkdir -p var/lib/dpkg/status.d
for file in var/cache/apt/archives/*.deb; do
  dpkg-deb --field "$file" >var/lib/dpkg/status.d/"$(dpkg-deb --field "$file" Package)"
done

cat >etc/passwd <<'PASSWD'
root:x:0:0:root:/:/nonexistent
nsa-metadata:x:10001:10001:nsa-metadata:/:/nonexistent
PASSWD
cat >etc/group <<'GROUP'
root:x:0:
nsa-metadata:x:10001:
GROUP
# glibc would ask DNS for localhost otherwise.
echo 'hosts: files dns' >etc/nsswitch.conf
