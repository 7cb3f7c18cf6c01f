#!/usr/bin/env bash
# Writes a file system that stands in for the official image python:3.13-slim, where no registry is reached: the same Debian and the
# same Python, from Debian's packages. As there, python and pip are in /usr/local. Needs root, debootstrap, and a Debian mirror in apt's
# own configuration.
#
#   tests/e2e/base_image.sh FILE.tar
set -euo pipefail

file=$1
release=trixie

# shellcheck disable=SC2016  # it is apt's variable
mirror=$(apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' | grep -v security | sort -u | head -n 1)
root=$(mktemp -d)
trap 'rm -rf "$root"' EXIT
debootstrap --variant=minbase --include=python3,python3-venv,ca-certificates $release "$root" "$mirror" >&2

for name in python python3; do
    ln -s /usr/bin/python3 "$root/usr/local/bin/$name"
done
rm "$root"/usr/lib/python3*/EXTERNALLY-MANAGED
wheels=("$root"/usr/share/python-wheels/pip-*.whl)
PYTHONPATH=${wheels[0]#"$root"} chroot "$root" python3 -m pip install --quiet --no-index --no-compile --root-user-action ignore \
    --find-links /usr/share/python-wheels pip >&2
# What this machine trusts, so that packages are found in a build as they are outside of it.
cp -L /etc/ssl/certs/ca-certificates.crt "$root/etc/ssl/certs/ca-certificates.crt"
rm -rf "$root"/var/cache/apt/archives/*.deb "$root"/var/lib/apt/lists/* "$root"/usr/share/{doc,man,locale}

tar -C "$root" -c . >"$file.new"
mv "$file.new" "$file"
