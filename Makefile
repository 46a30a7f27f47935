PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/installed
INSTALLED_DEV := $(VENV)/installed-dev

# Trainer would spread one process over all GPUs.
CUDA_VISIBLE_DEVICES ?= 0

OFFLINE := HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false
# A file's tests go to one process, and share what they set up.
PARALLEL := -n auto --maxprocesses 8 --dist loadfile

.DEFAULT_GOAL := help
.PHONY: help quickstart test test-slow test-latest test-lowest coverage reference lint format clean

help:  ## show the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-11s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))
	@echo "Another interpreter: make PYTHON=python3.12 …"

quickstart: $(INSTALLED)  ## run the embedded example anew, on the first GPU if there is one; more flags in ARGS="…"
	CUDA_VISIBLE_DEVICES=$(CUDA_VISIBLE_DEVICES) $(BIN)/accelerate launch \
		--num_processes 1 --num_machines 1 --mixed_precision no --dynamo_backend no \
		-m hf_robust_transfer.cli.quickstart --overwrite_output_dir $(ARGS)

test: $(INSTALLED_DEV)  ## run the tests but the slow ones; pytest's flags in ARGS="…"
	$(OFFLINE) $(BIN)/python -m pytest $(PARALLEL) $(ARGS)

test-slow: $(INSTALLED_DEV)  ## run the slow tests
	$(OFFLINE) $(BIN)/python -m pytest -m slow $(ARGS)

test-latest:  ## run the tests with the newest releases of everything, in a venv of its own
	$(PYTHON) -m venv .venv-latest && .venv-latest/bin/python -m pip install --quiet uv
	.venv-latest/bin/uv pip install --python .venv-latest/bin/python --upgrade --editable '.[test]'
	$(OFFLINE) .venv-latest/bin/python -m pytest $(PARALLEL) $(ARGS)

test-lowest:  ## run the tests with the oldest releases that pyproject.toml allows, in a venv of its own
	$(PYTHON) -m venv .venv-lowest && .venv-lowest/bin/python -m pip install --quiet uv
	.venv-lowest/bin/uv pip install --python .venv-lowest/bin/python --resolution lowest-direct --editable '.[test]'
	$(OFFLINE) .venv-lowest/bin/python -m pytest $(PARALLEL) $(ARGS)

coverage: $(INSTALLED_DEV)  ## run the tests, and say which lines they miss
	$(OFFLINE) $(BIN)/python -m pytest $(PARALLEL) \
		--cov hf_robust_transfer --cov-report term-missing $(ARGS)

reference: $(INSTALLED_DEV)  ## write docs/reference.md and the table of sources from the code
	$(BIN)/python docs/make_reference.py > docs/reference.md
	$(BIN)/python docs/make_sources.py

lint: $(INSTALLED_DEV)  ## check style and types
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

format: $(INSTALLED_DEV)  ## sort imports, fix what ruff can fix, format
	$(BIN)/ruff check --fix --exit-zero
	$(BIN)/ruff format

clean:  ## remove .venv, caches and built packages; outputs/ stays
	rm -rf $(VENV) .venv-latest .venv-lowest .coverage build dist *.egg-info .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "error: Python 3.11 or newer is needed and '$(PYTHON)' is not: make PYTHON=/path/to/python3.11 …" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); exit 1; }

# Python compiles what it imports when it does; all that is installed would take longer.
$(INSTALLED): pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --no-compile --editable .
	@touch $@

$(INSTALLED_DEV): pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --no-compile --editable '.[dev]'
	@touch $@ $(INSTALLED)
