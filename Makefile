# What a person does with a checkout. `make` alone lists the targets.
#
# Everything happens in .venv; .venv/.demo and .venv/.dev mark what was installed into it, and are redone
# when what decides an install changes. Other knobs: PYTHON=…, PYTEST_ARGS="-k echo", BENCH_ARGS=….

.DEFAULT_GOAL := help
.NOTPARALLEL:
.DELETE_ON_ERROR:

# Set in many containers; with it no .pyc file is ever written, and every start compiles Updraft again.
unexport PYTHONDONTWRITEBYTECODE

VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --no-input
# As in an activated environment: `python` in a recipe, and in what it runs, is the environment's.
ACTIVATED := PATH="$(CURDIR)/$(BIN):$$PATH" VIRTUAL_ENV="$(CURDIR)/$(VENV)"

DECIDES_INSTALL := pyproject.toml src/updraft/__init__.py $(wildcard src/scripts/*)
SOURCES := $(shell find src -name '*.py' -o -name '*.sql' -o -name '*.toml' 2>/dev/null)
# Test files run beside each other, one on each core: most of them wait for processes.
WORKERS := auto
# An environment for development can run the demo too.
DEMO_READY := $(if $(wildcard $(VENV)/.dev),$(VENV)/.dev,$(VENV)/.demo)

.PHONY: help
help:  ## list the targets
	@awk -F ':.*  ## ' '/^[a-z-]+:.*  ## / { printf "  make %-11s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

.PHONY: demo
demo: $(DEMO_READY)  ## install into .venv and train a model on handwritten digits through urun
	@echo '$$ urun python examples/digits/train.py'
	@$(ACTIVATED) $(BIN)/urun python examples/digits/train.py
	@echo 'The server that urun started ends itself when idle; to end it now: $(BIN)/updraft stop'

.PHONY: setup
setup: $(VENV)/.dev  ## make .venv with everything that development needs

.PHONY: run
run: $(VENV)/.dev  ## run a server in the foreground
	@$(ACTIVATED) $(BIN)/updraft serve $(RUN_ARGS)

.PHONY: lint
lint: $(VENV)/.dev  ## check format, style and the layers
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/lint-imports --no-logo

.PHONY: fix
fix: $(VENV)/.dev  ## format, and mend what ruff can mend by itself
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

.PHONY: type
type: $(VENV)/.dev  ## check the types
	$(BIN)/mypy $(wildcard src tests benchmarks)

.PHONY: test
test: $(VENV)/.dev  ## run the tests
	@$(ACTIVATED) $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile $(PYTEST_ARGS)

.PHONY: test-user
test-user: $(VENV)/.dev  ## as root: run the tests once more as an ordinary user made for the run
	tools/as-user $(MAKE) test PYTEST_ARGS='$(or $(PYTEST_ARGS),-m "not root")'

.PHONY: bench
bench: .venv-bench/.ready  ## measure speeds beside peers and floors
	@.venv-bench/bin/python -m benchmarks --venv .venv-bench $(BENCH_ARGS)

.PHONY: soak
soak: $(VENV)/.dev  ## repeat the chaos tests, each round with a new seed
	@for round in $$(seq $(or $(ROUNDS),10)); do \
	    $(ACTIVATED) $(BIN)/python -m pytest -m 'chaos or slow' -x $(PYTEST_ARGS) && \
	    $(ACTIVATED) $(BIN)/python -m pytest --hypothesis-profile soak -x tests/stateful tests/scheduling \
	        tests/server/test_families.py || exit; done

.PHONY: images
images: $(VENV)/.made  ## build container images of server and runner, without a registry
	@tools/build-images $(IMAGE_TAG)

.PHONY: docs
docs: $(VENV)/.dev  ## write the references of commands and keys from the code
	$(BIN)/python docs/build.py

.PHONY: clean
clean:  ## remove environments, builds and caches
	rm -rf .venv .venv-bench .venv-peers build dist site .mypy_cache .ruff_cache .pytest_cache .hypothesis \
	    .import_linter_cache
	find src tests benchmarks examples docs -name __pycache__ -type d -prune -exec rm -rf {} + 2>/dev/null || true

$(VENV)/.made:
	@tools/make-venv $(VENV)
	@touch $@

$(VENV)/.demo: $(VENV)/.made $(DECIDES_INSTALL)
	@echo 'Installing Updraft and scikit-learn into $(VENV) …'
	@$(PIP) install -qq -e '.[demo]'
	@$(BIN)/python -m compileall -q src
	@touch $@

$(VENV)/.dev: $(VENV)/.made $(DECIDES_INSTALL)
	@echo 'Installing Updraft and its development tools into $(VENV) …'
	@$(PIP) install -qq -e '.[dev]'
	@$(BIN)/python -m compileall -q src
	@touch $@

# Measured as users have it: copied into the environment, not editable.
.venv-bench/.ready: $(DECIDES_INSTALL) $(SOURCES)
	@[ -x .venv-bench/bin/python ] || tools/make-venv .venv-bench
	@echo 'Installing Updraft into .venv-bench …'
	@.venv-bench/bin/python -m pip --disable-pip-version-check --no-input install -qq .
	@touch $@
