# make demo    replay the sample conversation through the real processes, one line per utterance
# make test    lint, types, import contract and all tests but the slow ones
# make lint    lint, formatting, types and import contract alone
# make slow    the tests that take minutes
# make venv    .venv for live use, with the system libraries of camera and microphone
# make clean   remove .venv, caches and build products
#
# Needs Python 3.11 or newer, named by PYTHON (default python3): make demo PYTHON=python3.12

PYTHON ?= python3
BIN := .venv/bin
PIP_INSTALL := $(BIN)/python -m pip install --disable-pip-version-check --quiet -c constraints.txt

# Each stamp says when .venv last held what it names. The test set-up holds all of the demo's.
RUN_STAMP := .venv/.installed-run
TEST_STAMP := .venv/.installed-test

.PHONY: help demo test venv lint slow clean environment system-packages

help:
	@sed -n 's/^# make /make /p' Makefile

demo: $(RUN_STAMP)
	$(BIN)/telme-stream --input examples/conversation.mp4

test: system-packages lint
	$(BIN)/python -m pytest

lint: $(TEST_STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

slow: system-packages $(TEST_STAMP)
	$(BIN)/python -m pytest -m slow

venv: $(RUN_STAMP)
	@.ci/system-packages live || true
	@echo "ready: $(BIN)/telme-stream --help"

system-packages:
	@.ci/system-packages live test || echo "going on without them" >&2

$(RUN_STAMP): pyproject.toml constraints.txt | environment
	@echo "installing telme-stream into .venv; the first time this takes minutes"
	$(PIP_INSTALL) -e '.[capture,worker,train]'
	@touch $@

$(TEST_STAMP): pyproject.toml constraints.txt | environment
	@echo "installing telme-stream and its test tools into .venv; the first time this takes minutes"
	$(PIP_INSTALL) -e '.[capture,worker,train,dev]'
	@touch $(RUN_STAMP) $@

# An environment that lacks pip is the rest of a try that failed.
environment:
	@$(BIN)/python -c 'import pip' 2>/dev/null || { \
	    $(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	        echo "'$(PYTHON)' is $$($(PYTHON) --version 2>&1); expected Python 3.11 or newer;" \
	             "install one and name it: make PYTHON=python3.12" >&2; exit 1; }; \
	    PYTHON='$(PYTHON)' .ci/system-packages venv && $(PYTHON) -m venv --clear .venv; }

clean:
	rm -rf .venv build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
