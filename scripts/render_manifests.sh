#!/usr/bin/env bash
# Writes k8s/manifests/tidewire.yaml from the chart. Needs Helm: on PATH, or from `scripts/setup.sh chart`. It only wraps
# `helm template` with fixed arguments, so that every machine renders the same.
#
#   scripts/render_manifests.sh [FILE]
set -euo pipefail
cd "$(dirname "$0")/.."

helm=.venv/chart/helm4
[ -x $helm ] || helm=helm
target=${1:-k8s/manifests/tidewire.yaml}
{
    echo "# Rendered from helm/tidewire with k8s/manifests/values.yaml by scripts/render_manifests.sh. Change those."
    $helm template tidewire helm/tidewire --namespace tidewire --kube-version 1.30.0 --values k8s/manifests/values.yaml
} >"$target.new"
mv "$target.new" "$target"
