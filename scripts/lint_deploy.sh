#!/usr/bin/env bash
# Runs the linters and scanners for the Dockerfile, the workflows, shell scripts and rendered manifests. Each exception says why.
# Needs scripts/setup.sh deploy and chart. pre-commit would download each linter from its repository; here they come from
# requirements/deploy.lock, by hash.
set -euo pipefail
cd "$(dirname "$0")/.."
export PATH="$PWD/.venv-deploy/bin:$PATH"

mapfile -t scripts < <(git ls-files '*.sh' .ci/run)
shellcheck "${scripts[@]}"
hadolint Dockerfile
yamllint --strict .
actionlint
check-jsonschema --builtin-schema vendor.github-workflows .github/workflows/*.yml
check-jsonschema --builtin-schema vendor.dependabot .github/dependabot.yml
check-jsonschema --builtin-schema vendor.github-issue-forms .github/ISSUE_TEMPLATE/bug.yml .github/ISSUE_TEMPLATE/wish.yml
zizmor --offline --quiet .github

scan() { checkov --config-file .checkov.yaml "$@"; }
scan --framework dockerfile --file Dockerfile
scan --framework github_actions --directory .github

rendered=build/lint
rm -rf $rendered
mkdir -p $rendered/{service,tests}
cp k8s/manifests/tidewire.yaml $rendered/service
.venv/bin/python -m tests.chart.render $rendered defaults 'ingress nginx sticky' 'gateway envoy-gateway' keda 'network policy' 'every secret'
scan --framework kubernetes --directory $rendered/service
# The pods of `helm test` end by themselves and accept no connections: they need no probes and no network policy.
scan --framework kubernetes --directory $rendered/tests --skip-check CKV_K8S_8,CKV_K8S_9,CKV_K8S_11,CKV_K8S_15,CKV_K8S_43,CKV2_K8S_6
