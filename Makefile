# Two commands do everything on a machine with Python >= 3.11, git and make: `make demo` and `make test`.
# `make` alone lists the habits.
PYTHON ?= python3
UV_VERSION := 0.13.9
BIN := .venv/bin
STAMP := .venv/.synced
export UV_PROJECT_ENVIRONMENT := .venv
# uv brings certificates of its own; pip and this ask the machine's store, which knows a company's proxy.
export UV_SYSTEM_CERTS ?= 1
# Tests mostly wait for servers: four at a time on two cores, each worker with servers of its own.
PARALLEL := -n 4 --dist worksteal
unexport VIRTUAL_ENV PYTHONPATH

.DEFAULT_GOAL := help
.PHONY: help setup demo up test test-long test-nats-2.10 check format bench images manifests render clean

help: ## List the habits
	@grep -hE '^[a-z0-9.-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-15s %s\n", $$1, $$2}'

setup: $(STAMP) ## Make the virtual environment from the lock file (the others do it by themselves)

$(STAMP): pyproject.toml uv.lock $(wildcard libs/*/pyproject.toml services/*/pyproject.toml deploy/*/pyproject.toml)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python >= 3.11 is needed: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@test -x $(BIN)/uv || $(BIN)/python -m pip install --quiet --disable-pip-version-check uv==$(UV_VERSION)
	@$(BIN)/uv sync --quiet --locked --all-packages --python $(BIN)/python
	@touch $@

demo: $(STAMP) ## Run the main job on real parts and check that every number agrees
	@$(BIN)/python -m kgents_devstack demo

up: $(STAMP) ## Keep the stack running, print what to try, show what flows; FRESH=1 forgets the last run's data
	@$(BIN)/python -m kgents_devstack up $(if $(FRESH),--fresh) $(if $(SERVICE),--service $(SERVICE))

test: $(STAMP) ## Run the tests on real servers (some nine minutes on two slow cores)
	@$(BIN)/python -m pytest -m "not long" $(PARALLEL)

test-long: $(STAMP) ## Run the longer proofs
	@$(BIN)/python -m pytest -m long --timeout 1800

test-nats-2.10: $(STAMP) ## Run the tests on the oldest NATS server we support
	@NATS_SERVER_VERSION=2.10.26 $(BIN)/python -m pytest -m "not long" $(PARALLEL)

check: $(STAMP) ## Lint, types and import contracts
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check --quiet .
	@$(BIN)/mypy
	@$(BIN)/lint-imports

format: $(STAMP) ## Format the code
	@$(BIN)/ruff format . && $(BIN)/ruff check --fix .

bench: $(STAMP) ## Measure, as ratios against a bare floor in the same run
	@$(BIN)/python -m kgents_devstack bench

images: $(STAMP) ## Build the four images with docker, podman or buildah (BUILDER, BASE, REGISTRY, TAG)
	@$(BIN)/python deploy/images.py

manifests: $(STAMP) ## Render every overlay of deploy/k8s into dist/manifests, without a cluster
	@$(BIN)/python deploy/manifests.py write

render: $(STAMP) ## Show what this tree changes in the rendered manifests (AGAINST=origin/main)
	@$(BIN)/python deploy/manifests.py compare $(or $(AGAINST),origin/main)

clean: ## Remove the virtual environment and caches
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
