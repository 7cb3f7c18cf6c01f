#!/usr/bin/env bash
# A lock pins by hash, not by address: one that names a server works only where that server is reached.
set -euo pipefail
cd "$(dirname "$0")/.."

fault=0
if grep -nEi '://|^ *--?(index-url|extra-index-url|find-links|trusted-host)|^-i ' requirements/*.lock; then
    echo "requirements: a lock names a download address; run \`make lock\`" >&2
    fault=1
fi
for file in $(git ls-files '*package-lock.json'); do
    if grep -nE '"resolved": *"[a-z]+:' "$file"; then
        echo "$file: names download addresses; run \`npm install --package-lock-only --omit-lockfile-registry-resolved\`" >&2
        fault=1
    fi
done
exit "$fault"
