# Each target installs what it needs into .venv, pinned by constraints.txt.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: serve test lint bench

.venv/.installed: pyproject.toml constraints.txt
	test -d .venv || $(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet -c constraints.txt -e '.[media,train,dev]'
	touch $@

serve: .venv/.installed
	$(BIN)/serpentine serve

test: .venv/.installed
	$(BIN)/pytest

lint: .venv/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: .venv/.installed
	$(BIN)/python -m benchmarks
