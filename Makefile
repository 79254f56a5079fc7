# Modelkeep: everything a developer types. `make help` lists it.
SHELL := /bin/bash
.DEFAULT_GOAL := help
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
export PYTHONSAFEPATH := 1
export PYTHONDONTWRITEBYTECODE := 1

# Tests keep their files in memory where it has room for them (2 GB), and wait for no disk, nor for others to leave room.
SCRATCH := $(shell test "$$(df --output=avail -k /dev/shm 2>/dev/null | tail -1)" -gt 8000000 2>/dev/null && echo /dev/shm)
PYTEST := $(if $(SCRATCH),TMPDIR=$(SCRATCH) )$(BIN)/python -m pytest -n 2 --dist loadfile

# Their tests run by themselves, followed line by line: that costs a third of their time, not of everybody's.
GUARANTEES := core privacy keys access audit
GUARANTEES_TESTS := $(addprefix tests/unit/,$(GUARANTEES)) tests/policy

.PHONY: help install demo test coverage check bench docs clean lock

help: ## list the targets
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 12

# Compiled once: what starts Python again and again (workers with torch, servers in tests) starts in half the time.
install: $(STAMP) ## make .venv with both packages and the tools, by pinned version and hash

$(STAMP): requirements/dev.txt requirements/uv.txt sdk/pyproject.toml platform/pyproject.toml
	@command -v $(PYTHON) >/dev/null || { echo "Python 3.11 is needed; set PYTHON=/path/to/python3.11" >&2; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements/uv.txt \
		&& $(BIN)/uv pip install --quiet --compile-bytecode --python $(BIN)/python --require-hashes -r requirements/dev.txt \
		|| $(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements/dev.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e sdk -e platform
	$(BIN)/python -m compileall -q sdk/src platform/src
	@touch $@

demo: install ## two organisations share one platform, on real data, end to end
	$(BIN)/python docs/tutorials/demo

test: coverage ## every test
	$(PYTEST) --durations 15 $(addprefix --ignore=,$(GUARANTEES_TESTS))

coverage: install ## tests of core, privacy, keys, access and audit: each runs 98 % of its lines and branches
	$(PYTEST) --cov --cov-report= $(GUARANTEES_TESTS)
	@for package in $(GUARANTEES); do \
		$(BIN)/python -m coverage report --fail-under=98 --include="*/modelkeep_platform/$$package/*" || exit 1; \
	done

faults: install ## the tests that kill and break a real platform, at every moment and not at a sample (a quarter of an hour)
	MODELKEEP_FAULTS=full $(PYTEST) --timeout 7200 tests/faults

check: install ## style, types and floors
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy sdk/src
	$(BIN)/mypy platform/src
	$(BIN)/mypy tests
	MYPYPATH=docs/tutorials/demo $(BIN)/mypy docs/tutorials/demo
	PYTHONPATH=sdk/src:platform/src $(BIN)/lint-imports --no-cache

bench: install ## speed, as ratios against a named alternative in the same run
	$(BIN)/python tests/benchmarks

docs: install ## build the documentation into site/, without a warning
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

lock: ## write requirements/*.txt anew from the .in files and the packages' own needs
	$(BIN)/uv pip compile --universal --generate-hashes --no-emit-index-url --no-annotate --no-header --python-version 3.11 \
		--quiet sdk/pyproject.toml --extra torch platform/pyproject.toml requirements/dev.in -o requirements/dev.txt
	$(BIN)/uv pip compile --universal --generate-hashes --no-emit-index-url --no-annotate --no-header --python-version 3.11 \
		--quiet requirements/uv.in -o requirements/uv.txt

clean: ## remove what was built; data folders of a running platform are not touched
	rm -rf $(VENV) build dist site .mypy_cache .ruff_cache .pytest_cache .hypothesis .coverage
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
