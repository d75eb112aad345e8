# What a person types. Nothing here needs root (but for `make fresh`); `make demo` and `make test` set up what they
# need, and say first what this machine lacks (.ci/preflight).
#
# Debian packages: python3 (3.11 or newer) with python3-venv, and make. gcc, make's headers and libelf are
# fetched and unpacked without root where they are missing (tests/support/distribution.py).

PYTHON ?= python3
VENV ?= .venv
ARCH ?= amd64
BIN := $(VENV)/bin
READY = @PYTHON='$(PYTHON)' VENV='$(VENV)' .ci/preflight
export KODOJO_TEST_CACHE ?= $(CURDIR)/.cache

.PHONY: help demo test lint bench sweep oracle attack fresh clean

help: ## this list
	@sed -n 's/^\([a-z]*\):.*## /\1\t/p' Makefile | expand -t 10

demo: ## fetch a kernel, boot it, load real modules, show what happened [KERNEL=linux-image-6.12/bookworm]
	$(READY) demo '$(KERNEL)'
	@$(MAKE) --no-print-directory $(VENV)/.installed
	$(BIN)/python demo/demo.py $(KERNEL)

test: ## all tests; fetches both kernels the first time
	$(READY) test
	@$(MAKE) --no-print-directory $(VENV)/.tested
	$(BIN)/python -m tests.support.distribution
	$(BIN)/python -m pytest -n auto $(ARGS)

lint: $(VENV)/.tested ## types, style
	$(BIN)/mypy
	$(BIN)/ruff check
	$(BIN)/ruff format --check

sweep: $(VENV)/.tested ## every module of both kernels' trees, and damaged ones, against the native loader (hours) [ARCH=arm64]
	$(BIN)/python -m tests.sweep --arch $(ARCH) --resume; swept=$$?; \
	$(BIN)/python -m tests.damage --arch $(ARCH) --resume && exit $$swept

oracle: $(VENV)/.tested ## the same kernels under QEMU against both loaders; fetches QEMU (half an hour) [ARCH=arm64]
	$(BIN)/python -m tests.oracle --arch $(ARCH) $(ARGS)

attack: $(VENV)/.tested ## damaged and hostile archives and modules by the thousand, resumable [ARGS='--seed 1 --count 100000']
	$(BIN)/python -m tests.attack.archives --resume $(ARGS); archives=$$?; \
	$(BIN)/python -m tests.attack.modules --resume $(ARGS) && $(BIN)/python -m tests.attack.table && exit $$archives

bench: $(VENV)/.tested ## measure boot, restore, fork, insmod, the whole command
	$(BIN)/python -m tests.bench

fresh: ## `make demo` and `make test` on fresh machines: Debian 12, 13, testing; needs root (an hour) [ARGS=demo]
	.ci/fresh $(ARGS)

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: $(VENV)/bin/python pyproject.toml
	$(BIN)/pip install --quiet --disable-pip-version-check --editable .
	@touch $@

$(VENV)/.tested: $(VENV)/.installed
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@touch $@

clean: ## remove what these targets made, fetched packages included
	rm -rf $(VENV) .cache .mypy_cache .ruff_cache .pytest_cache .hypothesis
