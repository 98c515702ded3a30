# make demo   installs into .venv, then teacher -> one-step generator -> report, on 2 CPU cores
# make test   installs into .venv, then the whole test suite
# make lint   what pre-commit and CI check

PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
WORKERS ?= 2

.PHONY: demo test lint clean

demo: $(VENV)/.digits
	$(BIN)/python -m dimo_jax.main --config=configs/digits.py --workdir=runs/digits

test: $(VENV)/.dev
	$(BIN)/python -m pytest -n $(WORKERS) --dist=loadgroup

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

clean:
	rm -rf $(VENV)

$(BIN)/python:
	$(PYTHON) -c 'import sys; sys.exit(0 if (3, 11) <= sys.version_info < (3, 14) else "Python %d.%d found; 3.11 to 3.13 expected: make PYTHON=python3.12 ..." % sys.version_info[:2])'
	$(PYTHON) -m venv $(VENV)

$(VENV)/.digits: $(BIN)/python requirements.txt pyproject.toml
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable ".[digits]"
	touch $@

$(VENV)/.dev: $(VENV)/.digits
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable ".[dev]"
	touch $@
