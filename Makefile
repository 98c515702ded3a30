# make demo   installs into .venv, then teacher -> one-step generator -> report, on 2 CPU cores
# make test   installs into .venv, then the tests that take seconds each
# make test-ci   the slow ones too, but for the longest: what CI has the time for
# make test-all   all of them; at the end the 25 that took longest
# make lint   what pre-commit and CI check
# make docs   the site of docs/ in site/; a broken link fails
# make constraints PYTHON=python3.11   constraints.txt anew; the next `make test` installs and tests it

PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
INSTALL = -m pip install --quiet --disable-pip-version-check
WORKERS ?= 2

.PHONY: demo test test-ci test-all lint docs constraints clean

demo: $(VENV)/.digits
	$(BIN)/python -m dimo_jax.main --config=configs/digits.py --workdir=runs/digits

test: $(VENV)/.dev
	$(BIN)/python -m pytest -n $(WORKERS) --dist=loadgroup -m "not slow"

test-ci: $(VENV)/.dev
	$(BIN)/python -m pytest -n $(WORKERS) --dist=loadgroup -m "not long" --durations=25

test-all: $(VENV)/.dev
	$(BIN)/python -m pytest -n $(WORKERS) --dist=loadgroup --durations=25

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python

docs: $(VENV)/.dev
	# The notice is Material's: of its end of life, for which see pyproject.toml.
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build

constraints:
	$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info[:2] == (3, 11) else "make constraints PYTHON=python3.11: the oldest Python decides")'
	rm -rf $(VENV).newest && $(PYTHON) -m venv $(VENV).newest
	$(VENV).newest/bin/python $(INSTALL) --editable ".[dev]"
	sed '/^[^#]/,$$d' constraints.txt >$(VENV).newest/constraints.txt
	# Without the local part that PyTorch's builds for the CPU have, 2.13.0+cpu, and without NVIDIA's
	# libraries, of which PyTorch's other builds need exact versions.
	$(VENV).newest/bin/python -m pip freeze --exclude-editable | grep == | sed 's/+.*//; /^nvidia/d' >>$(VENV).newest/constraints.txt
	mv $(VENV).newest/constraints.txt constraints.txt && rm -rf $(VENV).newest

clean:
	rm -rf $(VENV) site

$(BIN)/python:
	$(PYTHON) -c 'import sys; sys.exit(0 if (3, 11) <= sys.version_info < (3, 14) else "Python %d.%d found; 3.11 to 3.13 expected: make PYTHON=python3.12 ..." % sys.version_info[:2])'
	$(PYTHON) -m venv $(VENV)

$(VENV)/.digits: $(BIN)/python requirements.txt pyproject.toml constraints.txt
	$(BIN)/python $(INSTALL) --constraint constraints.txt --editable ".[digits]"
	touch $@

$(VENV)/.dev: $(VENV)/.digits
	$(BIN)/python $(INSTALL) --constraint constraints.txt --editable ".[dev]"
	touch $@
