# Commands for developers and CI. `make help` lists them. Each installs what it needs first.

BIN := .venv/bin
.DEFAULT_GOAL := help
# More processes than two cores: many tests wait for a store, a browser or a timer.
WORKERS ?= 4
PYTEST := $(BIN)/python -m pytest --durations=20
.PHONY: help run example test test-quick test-demos test-example test-faults test-autobahn test-chart test-cluster test-e2e test-docs dashboards-look test-image image dist lint-deploy docs docs-serve kind kind-down loadtest bench bench-quick bench-growth check fmt lock upgrade clean

help: ## show this list
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / {printf "  make %-15s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

run: ## start the service with its demo
	@scripts/setup.sh run
	@exec $(BIN)/tidewire serve --demo

example: ## start the worked example: a chat with FastAPI, PostgreSQL and React (examples/chat)
	@scripts/setup.sh example
	@exec $(BIN)/python examples/chat/run.py $(if $(PORT),--port $(PORT)) $(if $(TIDEWIRE_PORT),--tidewire-port $(TIDEWIRE_PORT))

test: ## run every test except test-demos, test-example, test-e2e, test-cluster and test-docs; of faults, Autobahn and the chart a selection
	@scripts/setup.sh test
	@if [ -f clients/js/package.json ]; then npm --prefix clients/js run --silent test; fi
	@scripts/setup.sh chart || echo "make: the tests of the chart will be skipped" >&2
	@scripts/setup.sh nginx || echo "make: the tests behind nginx will be skipped" >&2
	$(PYTEST) -n $(WORKERS) --dist worksteal -m "not alone and not load and not demos and not example and not e2e and not cluster and not docs"
	$(PYTEST) -m "alone or load"

test-quick: ## run the Python tests that need no browser and little time
	@scripts/setup.sh quick
	$(PYTEST) -n $(WORKERS) --dist worksteal -m "not slow and not alone and not browser and not load and not faults and not autobahn and not chart and not demos and not example and not e2e and not cluster and not docs"

test-demos: ## play every demo, and open each in two browsers: errors, accessibility, sizes, weight; pictures in build/screenshots
	@scripts/setup.sh demos
	$(BIN)/python -m pytest -s tests/browser/test_demos.py $(foreach page,answer board console cursors inspector tracking,tests/browser/test_$(page).py)

test-example: ## play the worked example in a browser, with its real database, webhooks and mails
	@scripts/setup.sh test-example
	$(BIN)/python -m pytest -s tests/example

test-faults: ## run every fault scenario on real stores; SOAK=minutes SEED=n ONLY=name,… FLAVOUR=redis|valkey|nats|memory TRANSPORTS=websocket,stream,sse,poll PUBLISHERS=api,websocket,emit PATIENCE=n
	@scripts/setup.sh quick
	$(BIN)/python -m tests.faults $(if $(SEED),--seed $(SEED)) $(if $(ONLY),--only $(ONLY)) \
		$(if $(FLAVOUR),--store $(FLAVOUR)) $(if $(TRANSPORTS),--transports $(TRANSPORTS)) \
		$(if $(PUBLISHERS),--publishers $(PUBLISHERS)) $(if $(PATIENCE),--patience $(PATIENCE)) $(if $(SOAK),--soak $(SOAK))

test-autobahn: ## run every Autobahn case on both event loops (20 min); ONLY=case,… LOOP=asyncio|uvloop
	@scripts/setup.sh quick
	$(BIN)/python -m tests.autobahn $(if $(ONLY),--only '$(ONLY)') $(if $(LOOP),--loop $(LOOP))

test-chart: lint-deploy ## test the chart: every preset and switch, Helm 3 and 4, Kubernetes 1.29 to 1.37
	@scripts/setup.sh chart
	CHART_MATRIX=whole $(BIN)/python -m pytest -m chart tests/chart

test-cluster: ## install the chart on a real Kubernetes control plane, with Helm 3 and 4 (builds it once, 15 min)
	@scripts/setup.sh cluster
	$(BIN)/python -m pytest -n 3 --dist loadgroup -m cluster tests/cluster

test-e2e: test-image ## test the image, and nodes behind nginx, HAProxy, Traefik and Envoy, configured by the chart's presets
	@scripts/setup.sh e2e
	E2E=whole $(BIN)/python -m pytest -s tests/e2e --ignore tests/e2e/test_image.py

test-image: ## build the container image and test it: no root, read-only, no shell
	@scripts/setup.sh image
	$(BIN)/python -m pytest -s -m e2e tests/e2e/test_image.py

image: ## build the container image with docker, podman or buildah; TAG=name SOURCE=address of the repository
	@SOURCE=$(SOURCE) scripts/image.sh $(TAG)

kind: ## run three pods, Valkey, Prometheus and Grafana in a cluster on this machine (needs Docker, kind, kubectl, Helm)
	@scripts/kind.sh up

kind-down: ## remove that cluster
	@scripts/kind.sh down

loadtest: ## run a load test with k6 against a running service; URL=ws://…/ws CLIENTS=n RATE=n HOLD=seconds … (k8s/README.md)
	@scripts/setup.sh k6
	@scripts/loadtest.sh

dist: ## build the release packages for PyPI and npm in dist/; PARTS=native REPOSITORY=address of the repository
	@scripts/setup.sh dev
	@scripts/setup.sh deploy
	@scripts/setup.sh client
	@REPOSITORY=$(REPOSITORY) scripts/dist.sh $(PARTS)

lint-deploy: ## check the Dockerfile, the workflows, shell scripts and rendered manifests
	@scripts/setup.sh deploy
	@scripts/setup.sh chart
	scripts/lint_deploy.sh

test-docs: ## run the code of the documentation, as its pages print it: commands in a shell, files in Chromium
	@scripts/setup.sh test
	@scripts/setup.sh migrate
	@$(MAKE) --no-print-directory docs
	$(PYTEST) -n $(WORKERS) tests/docs

docs: ## build the site of the documentation in build/site, and check its links
	@scripts/setup.sh docs
	$(BIN)/python scripts/docs_site.py build/docs
	.venv-docs/bin/zensical build --strict --clean --config-file build/docs/zensical.toml
	rm -rf build/site && mv build/docs/site build/site
	$(BIN)/lychee --offline --include-fragments --no-progress --root-dir $(CURDIR)/build/site --index-files index.html --exclude 'png#only-' 'build/site/**/*.html'

docs-serve: docs ## show that site on http://127.0.0.1:8000; PORT=n
	@echo "http://127.0.0.1:$(or $(PORT),8000)/"
	@$(BIN)/python -m http.server --bind 127.0.0.1 --directory build/site $(or $(PORT),8000)

dashboards-look: ## simulate a day with a real Prometheus and draw every dashboard (2 min): build/dashboards, docs/images
	@scripts/setup.sh look
	$(BIN)/python -m tests.e2e.watching

bench: ## compare with other servers and a plain C loop (20 min); ONLY=workload,… PEERS=name,… ROUNDS=n COMPARE=revision
	@scripts/setup.sh quick
	$(BIN)/python -m benchmarks $(if $(ONLY),--only $(ONLY)) $(if $(PEERS),--peers $(PEERS)) \
		$(if $(ROUNDS),--rounds $(ROUNDS)) $(if $(COMPARE),--compare $(COMPARE))

bench-quick: ## compare with a plain C loop only (1 min); prints one JSON line for each workload; ONLY=workload,…
	@scripts/setup.sh quick
	@$(BIN)/python -m benchmarks --quick $(if $(ONLY),--only $(ONLY)) $(if $(ROUNDS),--rounds $(ROUNDS))

bench-growth: ## measure how the cost grows with nodes, channels, users, history and tenants (10 min); ONLY=part,…
	@scripts/setup.sh quick
	$(BIN)/python -m benchmarks.growth $(if $(ONLY),--only $(ONLY))

check: ## check format, lint, types, import directions, generated files and locks; test the JavaScript client
	@scripts/setup.sh dev
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/mypy
	$(BIN)/mypy scripts hatch_build.py
	cd examples/chat && ../../$(BIN)/mypy --config-file ../../pyproject.toml -p backend -m stack -m run
	cd clients/python && ../../$(BIN)/mypy
	$(BIN)/mypy clients/python/tests
	$(BIN)/lint-imports
	$(BIN)/python scripts/generate_reference.py --check
	$(BIN)/python scripts/chart_reference.py --check
	$(BIN)/python scripts/dashboards.py --check
	$(BIN)/python scripts/check_locks.py
	$(BIN)/lychee --offline --include-fragments --no-progress $$(git ls-files '*.md')
	$(BIN)/python scripts/run_uv.py pip check --quiet --python .venv
	scripts/lock.sh --check
	@scripts/setup.sh client
	npm --prefix clients/js run --silent check
	npm --prefix clients/js run --silent test
	@scripts/setup.sh example-pages
	npm --prefix examples/chat/web run --silent check

fmt: ## format, fix lint errors, write the generated files
	@scripts/setup.sh dev
	$(BIN)/ruff format
	$(BIN)/ruff check --fix
	$(BIN)/python scripts/generate_reference.py
	$(BIN)/python scripts/chart_reference.py
	$(BIN)/python scripts/dashboards.py
	@scripts/setup.sh client
	npm --prefix clients/js run --silent docs

lock: ## write requirements/*.lock from pyproject.toml, with the same versions
	@scripts/setup.sh dev
	scripts/lock.sh

upgrade: ## write requirements/*.lock with the newest versions
	@scripts/setup.sh dev
	scripts/lock.sh --upgrade

clean: ## remove everything that make can create again
	@# Without root, some files of an image's layers belong to other users of the container.
	@[ ! -d build/image ] || [ "$$(id -u)" = 0 ] || podman unshare rm -rf build/image
	rm -rf .venv .venv-deploy .venv-docs build dist clients/js/node_modules docs/site/node_modules clients/js/bin tests/asyncapi/node_modules examples/chat/web/node_modules examples/chat/web/dist tests/docs/migrate/node_modules tests/chart/crds/node_modules .mypy_cache .ruff_cache .pytest_cache \
		.import_linter_cache .hypothesis .coverage .tidewire service/web/ws/_native.*
	find service tests scripts demo examples clients/python -name __pycache__ -type d -prune -exec rm -rf {} +
