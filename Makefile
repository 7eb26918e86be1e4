# Two commands do all the set-up: `make demo` and `make test`.
PYTHON ?= python3
# Tests wait for servers a quarter of the time, so there are more of them than cores.
JOBS   ?= $(shell expr $$(nproc 2>/dev/null || echo 1) + 2)
VENV   := .venv
BIN    := $(VENV)/bin
LATEST := .venv-latest
TOOLS  := .venv-tools
COMPILE := uv pip compile --quiet --universal --python-version 3.11 --extra test --no-header pyproject.toml -
DEMO   := .ollamaops/demo
# Without it each run and each of its processes would compile the tests anew.
unexport PYTHONDONTWRITEBYTECODE
ARGS   := -f manifests --sandbox=$(DEMO)/store --state-dir $(DEMO)/state

.PHONY: help demo test soak coverage latest lint bench constraints clean
help:
	@echo "make demo         install, apply manifests/ to a pretend server, plan again: nothing left to do"
	@echo "make test         install, run the tests that tell whether a change is right"
	@echo "make soak         run the long rest: every fault at every endpoint, kills, properties with many values"
	@echo "make coverage     run both with branch coverage and hold its gates"
	@echo "make latest       run the tests of make test with the newest releases that pyproject.toml allows"
	@echo "make lint         ruff, mypy --strict, import-linter"
	@echo "make bench        print the speed figures as ratios"
	@echo "make constraints  write constraints.txt anew"
	@echo "make clean        remove everything that the above have made, but constraints.txt"

$(VENV)/made $(LATEST)/made $(TOOLS)/made: %/made:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "ollamaops needs Python 3.11 or newer: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; }
	$(PYTHON) -m venv $*
	@touch $@

# pip would build in a folder of its own, where constraints.txt does not hold: so the build backend is installed first.
install = $(1)/bin/pip install --quiet --disable-pip-version-check $(3) hatchling editables && \
  $(1)/bin/pip install --quiet --disable-pip-version-check $(3) --no-build-isolation --editable '.[$(2)]' && \
  $(1)/bin/python -m compileall -q ollamaops

$(VENV)/demo: $(VENV)/made pyproject.toml constraints.txt
	$(call install,$(VENV),sandbox,-c constraints.txt)
	@touch $@

$(VENV)/test: $(VENV)/made pyproject.toml constraints.txt
	$(call install,$(VENV),test,-c constraints.txt)
	@touch $@ $(VENV)/demo

demo: $(VENV)/demo
	@rm -rf $(DEMO)
	$(BIN)/ollamaops plan $(ARGS)
	$(BIN)/ollamaops apply -y $(ARGS)
	$(BIN)/ollamaops plan --detailed-exitcode $(ARGS)

# Without coverage, which costs four fifths more CPU.
test: $(VENV)/test
	$(BIN)/pytest -n $(JOBS) -m "not soak"

soak: $(VENV)/test
	$(BIN)/pytest -n $(JOBS) -m "soak or hypothesis" --hypothesis-profile=soak

coverage: $(VENV)/test
	$(BIN)/pytest -n $(JOBS) --hypothesis-profile=soak --cov --cov-report=term --cov-fail-under=95
	$(BIN)/coverage report --include='ollamaops/plan/*,ollamaops/manifest/*' --fail-under=100

# SAME=skip is for CI, which has just run everything: no second run where the newest releases are those of constraints.txt.
latest: $(LATEST)/made
	$(call install,$(LATEST),test,--upgrade --upgrade-strategy eager)
	@if $(LATEST)/bin/python tests/support/pins.py && [ "$(SAME)" = skip ]; \
	  then echo "skipped: it would be the run of make test"; \
	  else set -x; $(LATEST)/bin/pytest -n $(JOBS) -m "not soak"; fi

lint: $(VENV)/test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: $(VENV)/test
	$(BIN)/python tests/benchmark/bench.py

# The releases for all of Python 3.11 to 3.13 at once; where one needs another than the next, a marker says so.
constraints: $(TOOLS)/made
	$(TOOLS)/bin/pip install --quiet --disable-pip-version-check --upgrade uv
	{ echo '# Made by `make constraints`, do not edit: the newest releases that pyproject.toml allows of all that'; \
	  echo '# `make demo` and `make test` install, build backend included, for Python 3.11 to 3.13. It runs:'; \
	  echo '#   $(COMPILE)'; \
	  printf '%s\n' hatchling editables | $(TOOLS)/bin/$(COMPILE); } >constraints.new
	mv constraints.new constraints.txt

clean:
	rm -rf $(VENV) $(LATEST) $(TOOLS) .ollamaops .mypy_cache .ruff_cache .pytest_cache .hypothesis .coverage build dist
