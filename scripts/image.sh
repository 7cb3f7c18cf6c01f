#!/usr/bin/env bash
# Builds the image of this checkout with docker, podman or buildah, the first that works.
#
#   scripts/image.sh [TAG]     TAG: by default tidewire:VERSION
#
# BUILDER names one of the three; PYTHON_IMAGE another base (a release: python:3.13-slim@sha256:…); SOURCE the repository's address, for
# a label; OPTIONS is passed to the builder unchanged.
#
# A release builds with docker/build-push-action. This script gives the same labels where only one of these builders is installed;
# docker buildx bake would need docker.
set -euo pipefail
cd "$(dirname "$0")/.."

version=$(sed -n 's/^version = "\(.*\)"$/\1/p' pyproject.toml | head -n 1)
tag=${1:-tidewire:$version}

works() {
    case $1 in
        docker) docker version >/dev/null 2>&1 ;; # a client may be installed without a daemon
        *) command -v "$1" >/dev/null ;;
    esac
}

builder=${BUILDER:-}
for name in docker podman buildah; do
    [ -n "$builder" ] || ! works "$name" || builder=$name
done
case $builder in
    docker) command=(docker build) ;;
    # The OCI format has no health check.
    podman | buildah) command=("$builder" build --format docker) ;;
    "")
        echo "image: needs docker (running), podman or buildah (Debian: apt-get install buildah)" >&2
        exit 1
        ;;
    *)
        echo "image: BUILDER is '$builder'; it can be docker, podman or buildah" >&2
        exit 2
        ;;
esac

# The time of the commit: the same commit gives the same labels.
label=org.opencontainers.image
arguments=(--label "$label.version=$version")
if commit=$(git rev-parse --verify --quiet HEAD 2>/dev/null); then
    [ -z "$(git status --porcelain --untracked-files=no)" ] || commit+=-changed
    arguments+=(--label "$label.revision=$commit")
    arguments+=(--label "$label.created=$(TZ=UTC0 git log -1 --format=%cd --date=format-local:%Y-%m-%dT%H:%M:%SZ)")
fi
[ -z "${SOURCE:-}" ] || arguments+=(--label "$label.source=$SOURCE")
[ -z "${PYTHON_IMAGE:-}" ] || arguments+=(--build-arg "PYTHON=$PYTHON_IMAGE")

# shellcheck disable=SC2086  # OPTIONS are several words
exec "${command[@]}" "${arguments[@]}" --tag "$tag" ${OPTIONS:-} .
