# make dissect and make test work on a fresh machine with Python 3.11 or newer and make.

PYTHON ?= python3
VENV ?= .venv
OUT ?= reports
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
TORCH := $(shell grep '^torch==' constraints.txt)

.DEFAULT_GOAL := help
.PHONY: help install dissect test check lint types layers spelling sizes docs bench wheel clean

help: ## list the targets
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 12

install: $(STAMP) ## make the virtual environment from constraints.txt

# torch first and alone: asked for together with other packages, pip may choose a build that
# brings gigabytes of GPU libraries.
$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "microtome needs Python 3.11 or newer; set PYTHON=")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $(TORCH)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev,plot]'
	@touch $@

dissect: $(STAMP) ## dissect the shipped specimen; the report lands in OUT (reports/)
	$(BIN)/microtome dissect --out $(OUT)
	@echo "report: $(abspath $(OUT))/report.html"

test: $(STAMP) ## run the tests on two processes
	$(BIN)/python -m pytest -n 2 --dist loadfile $(ARGS)

check: lint types layers spelling sizes docs ## everything that is checked without running the tests

lint: $(STAMP) ## ruff: rules and format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(STAMP) ## mypy, strict
	$(BIN)/mypy

layers: $(STAMP) ## the import rules between packages
	$(BIN)/lint-imports

spelling: $(STAMP) ## codespell
	$(BIN)/codespell

sizes: $(STAMP) ## lengths of files, functions and classes against their caps
	$(BIN)/python scripts/sizes.py

docs: $(STAMP) ## build the documentation; warnings are errors
	$(BIN)/sphinx-build -W --keep-going -q -b html docs docs/_build/html
	@echo "documentation: $(abspath docs/_build/html)/index.html"

bench: $(STAMP) ## set up the peers and print the benchmarks' tables; ARGS picks some
	$(BIN)/python -m benchmarks $(ARGS)

wheel: $(STAMP) ## build the wheel into dist/
	$(BIN)/python -m pip wheel --quiet --no-deps --wheel-dir dist .

clean: ## remove everything that was built, the virtual environment too
	rm -rf $(VENV) .bench build dist docs/_build docs/reference src/*.egg-info
