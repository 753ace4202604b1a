# `make demo` and `make test` do all the set-up a fresh machine needs.
PYTHON ?= python3
BIN := .venv/bin
RECIPE ?= demo
STORE ?= store

# Compiled imports are kept, or every process would compile torch again.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: install dev shell demo test slow check structure bench docs

install: .venv/installed

# uv brings itself where it is missing; every install is held by constraints.txt.
.venv/installed: pyproject.toml constraints.txt
	@test -e $@ || echo "installing the libraries, about 6 GB, into .venv: half a minute to some minutes"
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@$(BIN)/python -m uv --version >/dev/null 2>&1 || $(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	$(BIN)/python -m uv pip install --quiet --python $(BIN)/python -c constraints.txt -e .
	@touch $@

# What the tests and linters need besides.
dev: .venv/developed

.venv/developed: .venv/installed
	$(BIN)/python -m uv pip install --quiet --python $(BIN)/python -c constraints.txt -e '.[dev]'
	@touch $@

# A shell with `vbert` on its PATH.
shell: install
	@PATH="$(CURDIR)/$(BIN):$$PATH" VIRTUAL_ENV="$(CURDIR)/.venv" $${SHELL:-/bin/sh}

demo: install
	$(BIN)/vbert run $(RECIPE) --store $(STORE)

test: dev
	$(BIN)/pytest -n 2 -m "not slow"

slow: dev
	$(BIN)/pytest -m slow

check: dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	@$(BIN)/python tests/structure.py

# Import circles, long files, lines of the store.
structure: dev
	@$(BIN)/python tests/structure.py

# The documentation as a folder of pages. Dead links are errors.
docs: .venv/documented
	@$(BIN)/python -m sphinx --fail-on-warning --keep-going --quiet -b html docs docs/build
	@echo docs/build/index.html

.venv/documented: .venv/installed
	$(BIN)/python -m uv pip install --quiet --python $(BIN)/python -c constraints.txt -e '.[docs]'
	@touch $@

bench: dev
	PYTHONPATH=tests $(BIN)/python tests/benchmarks/$(NAME).py

