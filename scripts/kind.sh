#!/usr/bin/env bash
# Runs a cluster on this machine, in containers: three pods of this checkout on one Valkey, with Prometheus and Grafana.
#
#   scripts/kind.sh up      creates what is missing, installs what has changed, tests it; safe to repeat
#   scripts/kind.sh down    removes the cluster
#
# Needs Docker, kind, kubectl and Helm. Touches no other cluster, even if it is kubectl's current one. Skaffold and Tilt do the
# same in a loop and would be one more program to install; here each step is a command that a reader can repeat.
set -euo pipefail
cd "$(dirname "$0")/.."

cluster=tidewire
image=tidewire:local
context=kind-$cluster
rollout=180s
chart=helm/tidewire

say() { printf '%s\n' "kind: $*" >&2; }
die() {
    say "$*"
    exit 1
}

need() {
    local name
    for name in "$@"; do
        command -v "$name" >/dev/null || die "needs $name on PATH"
    done
    docker version >/dev/null 2>&1 || die "needs Docker, running (docker version says why it is not)"
}

kubectl_() { kubectl --context $context "$@"; }

# configmap NAME FOLDER: applies the files of a folder; server-side, because dashboards do not fit into the annotation of a client-side apply.
configmap() {
    kubectl create configmap "$1" --from-file="$2" --dry-run=client --output yaml |
        kubectl_ apply --server-side --force-conflicts --filename -
}

up() {
    need docker kind kubectl helm
    BUILDER=docker scripts/image.sh $image
    kind get clusters 2>/dev/null | grep -qx $cluster ||
        kind create cluster --name $cluster --config k8s/local/kind.yaml --wait $rollout
    kind load docker-image --name $cluster $image
    configmap tidewire-rules $chart/rules
    configmap tidewire-dashboards $chart/dashboards
    kubectl_ apply --filename k8s/local/valkey.yaml --filename k8s/local/prometheus.yaml --filename k8s/local/grafana.yaml
    kubectl_ rollout status deployment/valkey --timeout $rollout
    helm upgrade --install tidewire $chart --kube-context $context --namespace default --values k8s/local/values.yaml \
        --set-string "podAnnotations.image=$(docker image inspect --format '{{.Id}}' $image)" --wait --timeout $rollout
    kubectl_ rollout status deployment/prometheus --timeout $rollout
    kubectl_ rollout status deployment/grafana --timeout $rollout
    helm test tidewire --kube-context $context --namespace default
    cat <<EOF

  clients     ws://127.0.0.1:8080/ws
  backends    http://127.0.0.1:8080/api/v1
  Grafana     http://127.0.0.1:3000/dashboards
  Prometheus  http://127.0.0.1:9091/alerts
  API key     kubectl --context $context get secret tidewire --output go-template='{{index .data "api-key" | base64decode}}'
  load        kubectl --context $context apply --kustomize k8s/loadtest
EOF
}

down() {
    need docker kind
    kind delete cluster --name $cluster
}

case ${1:-} in
    up) up ;;
    down) down ;;
    *) die "usage: scripts/kind.sh up | down" ;;
esac
