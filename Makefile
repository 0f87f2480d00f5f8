# Everything runs inside .venv, which is built once from exact pins and again only when they change.
# Needs Python 3.11 or newer with its venv module, and make. No compiler, no GPU.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

PYTHON ?= $(or $(shell command -v python3.11),$(shell command -v python3))
VENV := .venv
BIN := $(VENV)/bin
LOCK := .ci/requirements.lock
STAMP := $(VENV)/.installed
PIP := pip==26.3
PIP_INSTALL := $(BIN)/python -m pip install --disable-pip-version-check --no-compile
# Tests wait for processes, sockets and disks: one worker more than there are cores keeps those busy.
WORKERS := $(shell cores=$$(getconf _NPROCESSORS_ONLN); echo $$((cores < 8 ? cores + 1 : 8)))

# A build of a C++ extension that is killed leaves a lock that hangs the next one: keep it to this checkout.
export TORCH_EXTENSIONS_DIR := $(CURDIR)/.cache/torch_extensions
# Where it is set, every process that a test starts compiles the sources anew.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help setup demo lint check test test-runs test-slurm test-kernels gate readme real gpu-check bench error-examples docs clean

help:  ## list the targets
	@sed -nE 's/^([a-z-]+):.*##/  make \1\t/p' $(MAKEFILE_LIST)

setup: $(STAMP)  ## build .venv from .ci/requirements.lock

demo: $(STAMP)  ## raw text to a trained, exported language model on this machine
	$(BIN)/distllm demo

lint: $(STAMP)  ## lint, format, types and layers
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy -n auto -p distllm
	$(BIN)/lint-imports --no-logo

check: lint  ## lint, the fast tests of parts and the rules of the code: under two minutes on two cores
	OMP_NUM_THREADS=1 $(BIN)/pytest -q -n $(WORKERS) -m "not slow" \
	  tests/unit tests/arch --ignore=tests/arch/test_readme.py  # the laws of tests/property: make test

test: $(STAMP)  ## every test of parts, alone and on several ranks: seven minutes on two cores
	OMP_NUM_THREADS=1 $(BIN)/pytest -q -n $(WORKERS) \
	  tests/unit tests/property tests/arch tests/golden tests/packaging --ignore=tests/arch/test_readme.py
	$(BIN)/pytest -n 3 --dist loadfile -m "not slow" tests/dist tests/gpu  # ranks: they wait for each other

test-runs: $(STAMP)  ## whole runs: killed, damaged, resumed, started every way, seen in a browser; the tutorials
	$(BIN)/pytest -n 3 --dist loadfile -m "slow or not dist" tests/browser tests/chaos tests/dist tests/tutorials

test-slurm: $(STAMP)  ## a real SLURM, and several machines, on this one: needs root and Debian's packages
	$(BIN)/pytest -m slurm tests/slurm -n 3 --dist loadfile  # they wait for SLURM more than they compute

# Kernels are interpreted, which is slow: what has passed is not run again until a source changes. The
# digest covers the kernels, what dispatches to them, their tests and the pins; it names a file in .cache/kernels.
test-kernels: $(STAMP)  ## the kernels on a CPU: interpreter, sanitizer, mutants, compile gate
	digest=$$(find kernels distllm/ops tests/kernels tests/interp tests/gate tests/bench/kernel_*.py $(LOCK) \
	    -type f -not -name '*.pyc' -print0 | sort -z \
	  | xargs -0 sha256sum | sha256sum | cut -c1-16); \
	if [[ -e .cache/kernels/$$digest ]]; then \
	  echo "unchanged since they passed: .cache/kernels/$$digest"; \
	else \
	  OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 tests/kernels && mkdir -p .cache/kernels && touch .cache/kernels/$$digest; \
	fi

gate: $(STAMP)  ## compile what has changed of the kernels for every architecture and write tests/gate/*.json
	PYTHONPATH=tests $(BIN)/python -m gate write
	PYTHONPATH=tests $(BIN)/python -m gate.cuda

readme: $(STAMP)  ## run the README's commands
	$(BIN)/pytest tests/arch/test_readme.py

real: $(STAMP)  ## real text of four languages, fetched as Debian packages, to a trained model
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/pytest tests/real

# Liger is a peer of the kernels' benchmark: beside the environment, not in it, and left out where it cannot be had.
gpu-check: $(STAMP)  ## the tests that need a CUDA device, and the kernels' times: kernel_speed.json
	test -d .cache/liger || $(PIP_INSTALL) -q --no-deps --target .cache/liger -r tests/bench/peers/liger-kernel.lock \
	  || echo "without Liger"
	PYTHONPATH=.cache/liger $(BIN)/pytest -m gpu --ignore=tests/kernels

bench: $(STAMP)  ## speed beside the Hugging Face Trainer and a plain loop, in one run
	$(BIN)/python tests/bench/train_bench.py

error-examples: $(STAMP)  ## keep what errors look like when tests cause them, in docs/errors.json
	OMP_NUM_THREADS=1 $(BIN)/pytest -q -p error_examples -m "not slow" tests/unit

docs: $(STAMP)  ## the documentation site in build/site
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

clean:  ## remove caches and build products; keeps .venv, data and runs
	rm -rf build dist *.egg-info .cache .pytest_cache .hypothesis .mypy_cache .ruff_cache .import_linter_cache
	find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +

# pip and setuptools come first: the pip of Python 3.11 takes three times as long over the lock. deepspeed, a
# source distribution, comes before torch: without torch its build probes neither for CUDA nor for a compiler
# and yields a pure Python wheel. pip would compile modules on one core.
$(STAMP): $(LOCK) pyproject.toml
	@$(PYTHON) -c 'import ensurepip, sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo 'distllm needs Python 3.11 or newer with venv: "apt-get install python3-venv", or "make PYTHON=/path/to/python3.11 ..."'; \
	  exit 1; }
	test -x $(BIN)/pip || $(PYTHON) -m venv --clear $(VENV)
	$(PIP_INSTALL) $(PIP) $$(grep -E '^(setuptools|wheel)==' $(LOCK))
	DS_BUILD_OPS=0 $(PIP_INSTALL) --no-deps --no-build-isolation $$(grep -E '^(deepspeed|antlr4-python3-runtime)==' $(LOCK))
	$(PIP_INSTALL) -r $(LOCK)
	$(PIP_INSTALL) --no-deps --no-build-isolation --config-settings editable_mode=compat -e .
	$(BIN)/python -m compileall -q -j 0 -x '/tests?/|/py312_' $(VENV)/lib/python*/site-packages
	touch $@
