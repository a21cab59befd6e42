# Every target does the set-up it needs; a set-up that is already done takes no time.
#   make test                                    in .venv, made here with the pinned versions of constraints.txt
#   make test WORKERS=8                          as many tests at a time, one thread each
#   make test PYTHON=python3.12                  .venv is made by this interpreter (3.11 or newer)
#   make test NORTON_DET_PYTHON=/path/to/python  in that environment instead, which keeps its own versions

PYTHON ?= python3
WORKERS ?= 2
PY := $(or $(NORTON_DET_PYTHON),.venv/bin/python)

# Threads that wait by spinning slow a busy machine down tenfold; these sleep.
export OMP_WAIT_POLICY ?= PASSIVE

.DEFAULT_GOAL := help
.PHONY: help setup lint test coverage reliability demo clean

help:  ## this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "make %-12s  %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup:  ## .venv with pinned packages, norton_det (editable), OpenCV and Detectron2
	@command -v "$(PYTHON)" >/dev/null || { \
	  echo "set-up: expected Python 3.11 or newer, got no command '$(PYTHON)'; install it, or name it: make setup PYTHON=/path/to/python3" >&2; exit 2; }
	@"$(PYTHON)" tools/setup_env.py

lint: setup  ## ruff (rules and format) and mypy
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy

# Engines have threads, and a process that has them cannot be forked: their tests have processes of their own.
PYTEST := OMP_NUM_THREADS=1 $(PY) -m pytest -q -n $(WORKERS)
APART := tests/deploy tests/live

test: setup lint  ## lint, the tests, and the short form of make reliability
	$(PYTEST) --dist loadfile --durations=15 $(APART:%=--ignore=%)
	$(PYTEST) --dist worksteal --durations=5 $(APART)

coverage: setup  ## the tests, and which lines of norton_det they reach; less than 90 % fails
	$(PY) -m coverage erase
	$(PYTEST) --dist loadfile --cov --cov-report= --cov-fail-under=0 $(APART:%=--ignore=%)
	$(PYTEST) --dist worksteal --cov --cov-append --cov-report= --cov-fail-under=0 $(APART)
	$(PY) -m coverage report

reliability: setup  ## provoke what can go wrong, and print how often each promise of SECURITY.md is kept (PROMISES=FILE)
	NORTON_DET_RELIABILITY=long NORTON_DET_EXAMPLES=thorough $(PYTEST) --dist worksteal --durations=10 \
	  $(PROMISES:%=--promises=%) tests/reliability tests/decomposition/test_numerics.py

demo: setup  ## a walk through compress, evaluate and benchmark
	$(PY) tools/walkthrough.py

clean:  ## remove caches and build products (.venv stays)
	rm -rf build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -not -path './.venv/*' -not -path './.git/*' -prune -exec rm -rf {} +
