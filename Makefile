# Everything starts here: on a bare Debian 12 or 13, as root, `make demo` and `make test` install what they need.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := setup
.DELETE_ON_ERROR:
MAKEFLAGS += --no-builtin-rules

VENV := .venv
PYTHON := /usr/bin/python3
BIN := $(VENV)/bin
PIP := $(BIN)/pip --disable-pip-version-check --quiet
# Stamps lie in the virtual environment: without it, nothing is up to date.
DEPENDENCIES := $(VENV)/.stamp-dependencies
BUILT := $(VENV)/.stamp-built
SOURCES := setup.py tlscap/live/_ring.c $(wildcard bpf/*)

.PHONY: setup packages test-packages test lint demo bench clean help

setup: $(BUILT) ## install what is needed and build tlscap into .venv (the default)

packages: # quick when nothing is missing, so it is asked every time
	@tools/install_packages.sh

test-packages: packages
	@tools/install_packages.sh test

$(DEPENDENCIES): pyproject.toml tools/requirements.py | packages
	$(PYTHON) -c 'import sys; sys.exit("tlscap needs Python 3.11 or newer" if sys.version_info < (3, 11) else 0)'
	test -x $(BIN)/pip || $(PYTHON) -m venv $(VENV)
	$(PYTHON) tools/requirements.py > $(VENV)/requirements.txt
	$(PIP) install --requirement $(VENV)/requirements.txt
	touch $@

$(BUILT): $(DEPENDENCIES) $(SOURCES)
	$(PIP) install --no-build-isolation --no-deps --editable .
	touch $@

test: lint test-packages ## lint, type check, and run every test; as root the live tests, too (PYTEST="-k name" to choose)
	@tools/run_tests.sh $(BIN)/pytest $(PYTEST)

lint: setup ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

demo: setup ## record real curl commands against a local nginx, and show what they said
	@tools/demo.sh

bench: setup test-packages ## measure throughput, latency and losses
	$(BIN)/python tools/bench.py $(BENCH)

clean: ## remove everything that was made here, the virtual environment included; Debian packages stay
	rm -rf $(VENV) .demo build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis tlscap/_bpf
	rm -f tlscap/live/_ring*.so
	find tlscap tests tools -name __pycache__ -prune -exec rm -rf {} +

help: ## show this
	@sed -nE 's/^([a-z]+):[^#]*## (.*)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 16
