# Use: docs/deploy/image.md. Reasons: docs/adr/0024-image-and-release.md.
# checkov:skip=CKV_DOCKER_7: the tag is in the argument
# A release names this image with its digest, so that both stages have the same Python and C library.
ARG PYTHON=docker.io/library/python:3.13-slim

FROM ${PYTHON} AS build
# What compiles a few lines of C stays behind in this stage: the base's own release is pin enough.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends gcc libc6-dev \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /src
COPY requirements/bootstrap.lock requirements/build.lock requirements/run.lock requirements/
COPY scripts/run_uv.py scripts/
# By hash and as wheels only, so that no package runs code while it installs.
ENV UV_NO_CACHE=true
RUN python -m venv /opt/build \
    && python -m venv --without-pip /opt/tidewire \
    && /opt/build/bin/pip install --no-cache-dir --no-deps --require-hashes --only-binary :all: -r requirements/bootstrap.lock \
    && /opt/build/bin/python scripts/run_uv.py pip sync --require-hashes --only-binary :all: --python /opt/build \
        requirements/bootstrap.lock requirements/build.lock \
    && /opt/build/bin/python scripts/run_uv.py pip sync --require-hashes --only-binary :all: --python /opt/tidewire \
        requirements/run.lock
COPY pyproject.toml hatch_build.py README.md LICENSE ./
COPY service service
COPY demo demo
COPY clients/js/src clients/js/src
COPY clients/python clients/python
WORKDIR /src/clients/python
RUN /opt/build/bin/python -m hatchling build -t wheel -d /wheels
WORKDIR /src
# Nothing is written at run time, so bytecode is made here, and is believed without a look at its source.
RUN TIDEWIRE_BUILD_NATIVE=always /opt/build/bin/python -m hatchling build -t wheel -d /wheels \
    && /opt/build/bin/python scripts/run_uv.py pip install --no-index --no-deps --python /opt/tidewire /wheels/*.whl \
    && python -m compileall -q -j 0 --invalidation-mode unchecked-hash /opt/tidewire/lib

FROM ${PYTHON}
COPY --from=build /opt/tidewire /opt/tidewire
# The official images come without bytecode of the standard library: what the service imports of it is compiled here, by importing
# it, which also shows that all is there. Then what could install more goes.
RUN ["/opt/tidewire/bin/python", "-c", "import service.__main__, service.app, service.cli.health, service.cli.serve"]
RUN python -m pip uninstall --quiet --yes --root-user-action ignore pip \
    && python -c "import ensurepip, shutil; shutil.rmtree(ensurepip.__path__[0])"
# Inside a container only its published ports are reached; these two variables win over a settings file.
ENV PATH=/opt/tidewire/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    TIDEWIRE_HOST=:: \
    TIDEWIRE_OPS_HOST=::
WORKDIR /etc/tidewire
USER 10001:10001
EXPOSE 8080 9090
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=30s --timeout=5s --start-period=60s CMD ["tidewire", "health"]
ENTRYPOINT ["tidewire"]
CMD ["serve"]
# What differs from one build to the next comes from outside, by --label (scripts/image.sh): as an argument in a label buildah 1.28
# takes it from its cache, out of date.
LABEL org.opencontainers.image.title="Tidewire" \
    org.opencontainers.image.description="Real-time events between backends and browsers" \
    org.opencontainers.image.licenses="Apache-2.0"
