# `make demo` and `make test` work on a fresh clone that has only Python 3.11 or newer.
.DEFAULT_GOAL := help
.PHONY: help install demo check test test-all examples floors runtimes mutants clean

# The first interpreter that is new enough; `make PYTHON=/path/to/python test` chooses another.
PYTHON ?= $(shell for p in python3 python python3.14 python3.13 python3.12 python3.11; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && { echo $$p; break; }; done)
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

help:
	@echo "make demo      install into .venv, then compress a small CNN on real data (about a minute)"
	@echo "make test      install into .venv, then lint, types and tests"
	@echo "make check     lint and types only"
	@echo "make test-all  also the tests marked slow and zoo"
	@echo "make examples  install Lightning and transformers too, and run the programs in examples with small networks"
	@echo "make mutants   plant faults in the code and see which the tests notice (hours; goes on where it was broken off)"
	@echo "make floors    install the lowest versions of all dependencies and run the demo with them"
	@echo "make runtimes  install every runtime of 'export --to' apart (2 GB) and test packages on each"
	@echo "make install   make .venv and install the package in it"

# The stamp is written last: an installation that broke off is started again, one that is complete is not touched.
install: $(STAMP)

$(BIN)/python:
	@test -n "$(PYTHON)" || { echo "Python 3.11 or newer is needed and was not found: make PYTHON=/path/to/python $(MAKECMDGOALS)" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)

# torch first and alone, at its pinned version: whatever asks for torch afterwards finds it installed.
$(STAMP): pyproject.toml constraints.txt | $(BIN)/python
	@echo "installing into $(VENV); the first time this fetches torch and takes some minutes"
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch torchvision
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	@touch $@

demo: install
	$(BIN)/compressor demo

check: install
	$(BIN)/ruff check .
	$(BIN)/mypy

# One thread a worker: the tests' networks are tiny, and two workers with two threads each only get in each other's way.
# A file goes to one worker whole: what its tests share, such as the runs over all hostile files, is then made once. The
# folders' order stays, since the longest files are in the first ones; xdist would begin with those of most tests. When a
# worker dies the run stops and names the test: xdist starts another, but then may wait for ever for its last tests.
SUITE := OMP_NUM_THREADS=1 $(BIN)/pytest -n auto --dist loadfile --no-loadscope-reorder --max-worker-restart 0

test: check
	$(SUITE) -m "not slow and not zoo"

test-all: check
	$(SUITE)

examples: install
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev,examples]'
	$(SUITE) tests/test_examples.py

mutants: install
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.mutants --workers 2

# Apart: they bring other versions of much, and pytest plugins that this version of pytest warns of. The log, with the
# version of all that is installed, is kept beside the benchmarks' results.
RUNTIMES_LOG := benchmarks/results/runtimes_tests.txt
runtimes:
	$(PYTHON) -m venv .venv-runtimes
	.venv-runtimes/bin/python -m pip install --quiet --constraint constraints.txt torch torchvision
	.venv-runtimes/bin/python -m pip install --quiet --editable '.[dev,litert,executorch,ncnn]'
	.venv-runtimes/bin/python --version > $(RUNTIMES_LOG)
	.venv-runtimes/bin/python -m pip list --format freeze --exclude-editable >> $(RUNTIMES_LOG)
	PYTEST_DISABLE_PLUGIN_AUTOLOAD=1 .venv-runtimes/bin/python -m pytest -p pytest_timeout -v --no-header --durations 0 \
		tests/exporting/test_runtimes.py >> $(RUNTIMES_LOG) || { cat $(RUNTIMES_LOG); exit 1; }
	@tail -1 $(RUNTIMES_LOG)

# The lowest versions that pyproject.toml allows, in a virtual environment of their own.
floors:
	$(PYTHON) -m venv .venv-floors
	$(PYTHON) .ci/floors.py > .venv-floors/constraints.txt
	.venv-floors/bin/python -m pip install --quiet --constraint .venv-floors/constraints.txt --editable .
	.venv-floors/bin/compressor --version
	.venv-floors/bin/compressor demo

clean:
	rm -rf $(VENV) .venv-floors .venv-runtimes .pytest_cache .mypy_cache .ruff_cache .hypothesis *.egg-info build dist
