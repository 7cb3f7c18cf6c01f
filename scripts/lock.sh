#!/usr/bin/env bash
# Writes requirements/{dev,run,build,bootstrap,example,deploy,docs}.lock from pyproject.toml: every version with its hashes, no download address.
#
#   scripts/lock.sh            keep the locked versions, change what pyproject.toml demands
#   scripts/lock.sh --upgrade  take the newest versions
#   scripts/lock.sh --check    write nothing; fail if a lock is not what would be written
#   scripts/lock.sh --peers    write benchmarks/peers/python/*.lock from the *.in beside them, and nothing else
#
# uv lock writes one file, with download addresses, that only uv can install (docs/adr/0026-uv.md). These are requirements files.
set -euo pipefail
cd "$(dirname "$0")/.."

mode=${1:-}

# compile FILE ARGUMENT...: keeps the versions of an existing FILE that still fit. The client `tidewire` is in this checkout: its
# dependencies are locked, and it is installed from its folder.
compile() {
    local file=$1
    shift
    .venv/bin/python scripts/run_uv.py pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header \
        --no-emit-package tidewire \
        "$@" -o "$file" >/dev/null
}

# dev holds everything. The others use its versions, so that what is tested is what runs.
all() {
    local folder=$1
    shift
    compile "$folder/dev.lock" pyproject.toml --group dev "$@"
    compile "$folder/run.lock" pyproject.toml -c requirements/dev.lock "$@"
    compile "$folder/build.lock" --group pyproject.toml:build -c requirements/dev.lock "$@"
    compile "$folder/bootstrap.lock" --group pyproject.toml:bootstrap -c requirements/dev.lock "$@"
    # The service and the example in one environment.
    compile "$folder/example.lock" pyproject.toml --group example -c requirements/dev.lock "$@"
    # Programs that are run and never imported: their packages need not fit the others'.
    compile "$folder/deploy.lock" --group pyproject.toml:deploy "$@"
    compile "$folder/docs.lock" --group pyproject.toml:docs "$@"
}

case $mode in
    "") all requirements ;;
    --upgrade) all requirements --upgrade ;;
    --peers)
        for name in benchmarks/peers/python/*.in; do
            compile "${name%.in}.lock" "$name"
        done
        ;;
    --check)
        scratch=$(mktemp -d)
        trap 'rm -rf "$scratch"' EXIT
        cp requirements/*.lock "$scratch"
        all "$scratch"
        for name in dev run build bootstrap example deploy docs; do
            if ! diff -u "requirements/$name.lock" "$scratch/$name.lock" >"$scratch/difference"; then
                head -n 30 "$scratch/difference"
                echo "requirements/$name.lock is not what pyproject.toml asks for; run \`make lock\`" >&2
                exit 1
            fi
        done
        ;;
    *)
        echo "usage: scripts/lock.sh [--upgrade | --check | --peers]" >&2
        exit 2
        ;;
esac
