#!/usr/bin/env bash
# Runs k8s/loadtest/load.js with k6 on this machine, with the credentials of the service. The environment sets the options at its top:
#
#   URL=wss://example.com/ws API=http://tidewire.internal AUTH_SECRET_FILE=secret API_KEY_FILE=api-key scripts/loadtest.sh
#
# Credentials: AUTH_SECRET signs a token for each client (or all use TOKEN), API_KEY publishes; each also as NAME_FILE. For a service
# on this machine the default is what `make run` has generated. k6 itself reads no secret from a file.
set -euo pipefail
cd "$(dirname "$0")/.."

k6=.venv/programs/k6
[ -x $k6 ] || k6=k6
export K6_NO_USAGE_REPORT=true

# credential NAME FILE: exports NAME from the file that NAME_FILE names, else from FILE, unless it is set already.
credential() {
    local name=$1 file=${1}_FILE
    [ -z "${!name:-}" ] || return 0
    file=${!file:-}
    if [ -z "$file" ] && [[ ${URL:-ws://127.0.0.1} =~ ^wss?://(127\.0\.0\.1|localhost)(:|/|$) ]]; then
        file=$2
    fi
    if [ -z "$file" ] || ! [ -r "$file" ]; then
        echo "loadtest: needs $name, or ${name}_FILE, the name of a file that holds it" >&2
        exit 2
    fi
    export "$name=$(<"$file")"
}

[ -n "${TOKEN:-}" ] || credential AUTH_SECRET .tidewire/secret
[ "${RATE:-}" = 0 ] || credential API_KEY .tidewire/api-key
# Each client needs a socket.
ulimit -n "$(ulimit -Hn)"
exec $k6 run --quiet k8s/loadtest/load.js
