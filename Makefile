# Two commands do all the set-up: `make demo` and `make test`.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
DEMO   := .ollamaops/demo
ARGS   := -f manifests --sandbox=$(DEMO)/store --state-dir $(DEMO)/state

.PHONY: help demo test lint bench clean
help:
	@echo "make demo   install, apply manifests/ to a pretend server, plan again: nothing left to do"
	@echo "make test   install, run all tests with branch coverage"
	@echo "make lint   ruff, mypy --strict, import-linter"
	@echo "make bench  print the speed figures as ratios"
	@echo "make clean  remove everything that the above have made"

$(VENV)/made:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "ollamaops needs Python 3.11 or newer: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	@touch $@

$(VENV)/demo: $(VENV)/made pyproject.toml
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[sandbox]'
	@$(BIN)/python -m compileall -q ollamaops
	@touch $@

$(VENV)/test: $(VENV)/made pyproject.toml
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[test]'
	@$(BIN)/python -m compileall -q ollamaops
	@touch $@ $(VENV)/demo

demo: $(VENV)/demo
	@rm -rf $(DEMO)
	$(BIN)/ollamaops plan $(ARGS)
	$(BIN)/ollamaops apply -y $(ARGS)
	$(BIN)/ollamaops plan --detailed-exitcode $(ARGS)

test: $(VENV)/test
	$(BIN)/pytest -n 2 --cov --cov-report=term --cov-fail-under=95
	$(BIN)/coverage report --include='ollamaops/plan/*,ollamaops/manifest/*' --fail-under=100

lint: $(VENV)/test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: $(VENV)/test
	$(BIN)/python tests/benchmark/bench.py

clean:
	rm -rf $(VENV) .ollamaops .mypy_cache .ruff_cache .pytest_cache .hypothesis .coverage build dist
