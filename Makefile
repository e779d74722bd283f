# Everything starts here: `make help` lists the targets. Needs Python 3.11 or newer, pip and a C compiler.

PYTHON ?= $(shell command -v python3.11 || command -v python3)
BUNDLE ?= $(firstword $(wildcard runs/*/bundle-int8 runs/*/bundle))
PORT ?= 8080
BENCH ?= $(basename $(notdir $(shell grep -l __main__ benchmarks/*.py 2>/dev/null)))
TESTS ?= tests

VENV := .venv
BIN := $(VENV)/bin
PYTEST = $(BIN)/python -m pytest -rs -n auto --maxprocesses 8 --dist worksteal
# Compilers and runtimes of several makers in one process: these tests get fresh processes (5: none was chosen).
EXPORTS := $(wildcard tests/integration/test_export_*.py)
PIP := $(BIN)/python -m pip install -qq --disable-pip-version-check -c constraints.txt

# One environment, two levels of it. The stamps carry what the environment was made from, so a change makes it anew.
KEY := $(shell { cat pyproject.toml constraints.txt; $(PYTHON) -V; pwd; } 2>&1 | cksum | cut -d ' ' -f 1)
BARE := $(VENV)/.bare-$(KEY)
ROAD := $(VENV)/.road-$(KEY)
FULL := $(VENV)/.full-$(KEY)

DEEPSEEK_TEST_DATA ?= $(abspath $(wildcard ../shared/data))
export DEEPSEEK_TEST_DATA

.DEFAULT_GOAL := help
.PHONY: help setup quickstart check test bench bench-crash docs serve clean debian-packages

help: ## list these targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' Makefile

setup: $(FULL) ## create .venv with everything: the framework, tests, benchmarks, documentation

quickstart: $(if $(wildcard $(FULL)),$(FULL),$(ROAD)) ## train, compress, export and serve a small model, from nothing (ARGS="--data my.txt")
	$(BIN)/deepseek quickstart $(ARGS)

check: $(FULL) ## lint, format, types, layers, public names, sizes (seconds)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -q -m check tests/contract
	$(BIN)/python -m tests.contract.sizes

test: $(FULL) debian-packages ## run every test (TESTS=tests/unit for some of them, ARGS="-k name")
	$(PYTEST) $(TESTS) $(ARGS) $(if $(filter tests,$(TESTS)),$(EXPORTS:%=--ignore=%))
	$(if $(filter tests,$(TESTS)),$(PYTEST) $(EXPORTS) $(ARGS) || [ $$? = 5 ])

bench: $(FULL) ## run the benchmarks side by side with the peers (BENCH="train_gpt import_time" for some of them)
	@for name in $(BENCH); do echo "== $$name"; $(BIN)/python -m benchmarks.$$name $(ARGS) || [ $$? = 77 ] || exit 1; done

bench-crash: $(FULL) ## kill a training run 200 times at random moments, ours and the peers
	$(BIN)/python -m benchmarks.kill_anywhere $(ARGS)

docs: $(FULL) ## build the documentation into site/
	$(BIN)/mkdocs build --strict --quiet

serve: $(if $(wildcard $(FULL)),$(FULL),$(ROAD)) ## serve a bundle with its web page (BUNDLE=runs/NAME/bundle PORT=8080)
	@test -n "$(BUNDLE)" || { echo "no bundle found; make one with 'make quickstart', or name it: make serve BUNDLE=DIR"; exit 1; }
	$(BIN)/deepseek serve $(BUNDLE) --port $(PORT) $(ARGS)

clean: ## remove .venv, caches and built files (runs/ stays)
	rm -rf $(VENV) site build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

debian-packages:
	@.ci/debian-packages

# Debian splits venv's own pip off; then the system's pip puts one in.
$(BARE):
	@test -n "$(PYTHON)" || { echo "no python3 found; install Python 3.11 or newer, or name it: make PYTHON=/path/to/python3"; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "$(PYTHON) is `$(PYTHON) -V`; wanted 3.11 or newer: make PYTHON=/path/to/python3"; exit 1; }
	@echo "creating $(VENV) with $(PYTHON)"
	@rm -rf $(VENV)
	@$(PYTHON) -m venv $(VENV) 2>/dev/null || \
		{ $(PYTHON) -m venv --clear --without-pip $(VENV) && $(PYTHON) -m pip --python $(BIN)/python install --quiet pip; }
	@touch $@

$(ROAD): $(BARE)
	@echo "installing what the quickstart needs (about a minute, once)"
	@$(PIP) -e '.[serve,export,report,tensorboard]'
	@touch $@

$(FULL): $(BARE)
	@echo "installing everything (about a minute, once)"
	@$(PIP) -e '.[all,test,bench,docs]'
	@touch $@
