# `make demo` and `make test` set up what they need on a machine that has Python 3.11+ and make.

PYTHON ?= $(shell for p in python3.11 python3.12 python3.13 python3 python; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
VENV ?= .venv
PIP_ARGS ?=
PEERS_VENV ?= .venv-peers
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install -qq --disable-pip-version-check -c constraints.txt $(PIP_ARGS)
PEERS_PIP := $(PEERS_VENV)/bin/python -m pip install -qq --disable-pip-version-check \
	-c peers/constraints.txt $(PIP_ARGS)

DATA ?=
OUT ?= runs/demo
SEED ?= 0
ARGS ?=
JOBS ?= 2

.DEFAULT_GOAL := help
.PHONY: help demo test lint format doctor peers peers-test clean

help:  ## Show this list.
	@echo 'make TARGET [NAME=value ...]'
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /  \1\t/' | expand -t 12
	@echo '  DATA=ml-100k or a folder   OUT=$(OUT)   SEED=$(SEED)   JOBS=$(JOBS) (test processes)'
	@echo '  ARGS="further options of reasonrec demo"'
	@echo '  PYTHON=python3.11   PIP_ARGS="options for every pip install"'

demo: $(VENV)/.installed  ## The whole road on a generated shop, or on DATA. Results in OUT.
	@$(BIN)/reasonrec demo '$(or $(DATA),planted)' --out '$(OUT)' --seed $(SEED) $(ARGS)

LINT := status=0; \
	$(BIN)/ruff check -q . || status=1; \
	$(BIN)/ruff format -q --check . || { status=1; echo 'not formatted: run make format'; }; \
	$(BIN)/basedpyright --level error || status=1

# All checks run, so that one call shows everything that is wrong; pytest has the last word.
test: $(VENV)/.installed-dev  ## Linter, type checker and tests.
	@$(LINT); \
	OMP_NUM_THREADS=1 NUMBA_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false HF_HUB_OFFLINE=1 \
		$(BIN)/python -m pytest -q -n $(JOBS) --dist loadfile || exit 1; \
	test $$status = 0 || echo 'make test: the linter or the type checker failed, see above'; \
	exit $$status

lint: $(VENV)/.installed-dev  ## Linter, formatting and type checker alone.
	@$(LINT); exit $$status

format: $(VENV)/.installed-dev  ## Format the code and mend what the linter can.
	@$(BIN)/ruff check -q --fix . ; $(BIN)/ruff format -q .

doctor: $(VENV)/.installed  ## What this machine has, and what it can do.
	@$(BIN)/reasonrec doctor

peers: $(PEERS_VENV)/.installed  ## An environment for baselines of other libraries: docs/baselines.md.

peers-test: $(PEERS_VENV)/.installed  ## Each of those baselines learns planted taste; a few minutes.
	@OMP_NUM_THREADS=1 $(PEERS_VENV)/bin/python -m pytest -q -c peers/pytest.ini peers

clean:  ## Remove the environments and caches, not your runs.
	rm -rf $(VENV) $(PEERS_VENV) .pytest_cache .ruff_cache .hypothesis build dist
	find src tests -name __pycache__ -type d -prune -exec rm -rf {} +

$(BIN)/python $(PEERS_VENV)/bin/python:
	@test -n '$(PYTHON)' || { \
		echo 'reasonrec needs Python 3.11 or newer; none was found. Install one, or say make ... PYTHON=/path/to/python'; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo 'reasonrec needs Python 3.11 or newer; $(PYTHON) is older or does not run'; exit 1; }
	@$(PYTHON) -m venv $(patsubst %/bin/python,%,$@)

# torch first and by itself: see constraints.txt
$(VENV)/.installed: pyproject.toml constraints.txt | $(BIN)/python
	@echo 'Setting up $(VENV): a few minutes the first time ...'
	@$(PIP) torch
	@$(PIP) -e .
	@touch $@

$(VENV)/.installed-dev: pyproject.toml constraints.txt | $(VENV)/.installed
	@$(PIP) -e '.[dev]'
	@touch $@

# as above, torch first and by itself
$(PEERS_VENV)/.installed: peers/requirements.txt peers/constraints.txt | $(PEERS_VENV)/bin/python
	@echo 'Setting up $(PEERS_VENV): some minutes, 1.8 GB ...'
	@$(PEERS_PIP) torch
	@$(PEERS_PIP) -r peers/requirements.txt
	@touch $@
