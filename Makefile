# Each target sets up what it needs by itself; a bare machine has to have python3 (3.11 or later) and make.
# Another interpreter: `make demo PYTHON=python3.12`.

PYTHON ?= python3
VENV ?= .venv
# Test processes; one may take five gigabytes.
JOBS ?= 2
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.DEFAULT_GOAL := help
.PHONY: help demo test lint benchmark clean

help: ## Say what there is
	@awk -F ':.*## ' '/^[a-z]+:.*## /{printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: $(READY) ## Make two sample clips, one of them forged, and see what the detector says
	@$(BIN)/python -m launch demo

test: $(READY) ## Run all tests, several files at a time (JOBS=2)
	@$(BIN)/python -m pytest --numprocesses=$(JOBS) --dist=loadfile --no-loadscope-reorder

lint: $(READY) ## Check style and formatting
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check --quiet deepscan_jax launch experiments datasets tests

benchmark: $(READY) ## Time detection, stage by stage
	@$(BIN)/python -m launch benchmark detect

clean: ## Remove the environment, caches and the demo's output
	rm -rf $(VENV) build dist *.egg-info demo_output .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(READY): setup.py deepscan_jax/version.py
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "This project needs Python 3.11 or later, and $(PYTHON) is not; try make PYTHON=python3.12." >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip' 2>/dev/null || { \
	  echo "$(PYTHON) cannot make environments with pip: on Debian and Ubuntu, install the package python3-venv." >&2; exit 1; }
	@test -x $(BIN)/python || { echo "Making the environment $(VENV) ..."; $(PYTHON) -m venv $(VENV); }
	@echo "Installing deepscan_jax and what it needs; the first time takes a few minutes ..."
	@$(BIN)/python -m pip install -qq --disable-pip-version-check -e '.[test]'
	@touch $@
