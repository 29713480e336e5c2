# make demo    exports from an embedded backend, to see how it works; needs nothing but Python
# make test    runs the tests
PYTHON ?= python3
BIN := .venv/bin
ROUNDS := 200
SEED := 1

# A part of requirements.lock: what a target needs.
part = sed -n '/^\# make $(1)$$/,/^\# make /p' requirements.lock
INSTALL := $(BIN)/pip install --quiet --disable-pip-version-check --require-hashes -r /dev/stdin

.DEFAULT_GOAL := help
.PHONY: help setup setup-s3 setup-slurm demo demo-backend demo-stop test test-all crash bench lint format lock clean

help:
	@echo "make demo          export from an embedded backend into .demo/results/"
	@echo "make demo-backend  leave the embedded backend running, to try commands against it;"
	@echo "make demo-stop     stop it"
	@echo "make test          run the tests;  make test-all: the slow ones as well"
	@echo "make crash         break runs off at random moments, recover, check; ROUNDS=200 SEED=1"
	@echo "make bench         measure it beside what people use today; BENCH=--help"
	@echo "make setup         make .venv from requirements.lock (the others do it when needed)"
	@echo "make lint          check style, types and the workflow;  make format: put style right"
	@echo "make lock          pin the newest versions that pyproject.toml allows"
	@echo "make clean         remove .venv and .demo; exports stay"

setup: .venv/installed

.venv/installed: requirements.lock
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	    { echo "Python 3.11 or newer is needed: make setup PYTHON=python3.11" >&2; exit 1; }
	@echo "Setting up .venv (once) ..."
	@$(PYTHON) -m venv --clear .venv
	@$(call part,setup) | $(INSTALL)
	@touch $@

setup-s3 setup-slurm: setup
	@$(call part,$@) | $(INSTALL)

.venv/test-all: .venv/installed
	@echo "Installing what the slow tests need (once) ..."
	@$(call part,test-all) | $(INSTALL)
	@$(call part,setup-slurm) | $(INSTALL) --no-deps --target .venv/slurm
	@touch $@

demo: setup
	@$(BIN)/python -m workflow.demo.run

demo-backend: setup
	@$(BIN)/python -m workflow.demo.run --leave-running

demo-stop: setup
	@$(BIN)/python -m workflow.demo.run --stop

test: setup
	@$(BIN)/pytest -m "not slow"

test-all: .venv/test-all
	@$(BIN)/pytest

crash: setup
	@PYTHONPATH=workflow/scripts $(BIN)/python -m tests.crash_rounds --rounds $(ROUNDS) --seed $(SEED)

bench: setup
	@$(BIN)/python -m benchmarks.run $(BENCH)

lint: setup
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/snakefmt --check Snakefile workflow/rules
	$(BIN)/snakemake --lint
	$(BIN)/mypy
	$(BIN)/shellcheck workflow/scripts/export_batches.sh .ci/run

format: setup
	$(BIN)/ruff check --fix
	$(BIN)/ruff format
	$(BIN)/snakefmt Snakefile workflow/rules

lock:
	.ci/lock --upgrade

clean:
	rm -rf .venv .demo
