# make run: the default recipe from files to an answering endpoint.   make test: every test.   make check: format, lint, types, layers.
# make wheel: a source archive, and from it a wheel for this platform with its compiled samplers, in dist/.
# make sanitize: the compiled samplers under address, undefined-behaviour and thread sanitizers, a few minutes; needs g++ with their libraries.
PYTHON ?= python3
VENV := .venv
STAMP := $(VENV)/.installed
RECIPE ?= digits-pixelcnn

export OMP_NUM_THREADS ?= 1

.PHONY: setup run test test-fast check sanitize format wheel clean

setup: $(STAMP)

$(STAMP): pyproject.toml constraints.txt setup.py $(wildcard genmodels/sampling/kernels/*)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or newer is needed; try make PYTHON=python3.11"; exit 1; }
	@test -x $(VENV)/bin/python || $(PYTHON) -m venv $(VENV)
	@echo "installing pinned dependencies into $(VENV) (a minute or two, once)"
	@$(VENV)/bin/python -m pip install -q --disable-pip-version-check -c constraints.txt torch setuptools
	@$(VENV)/bin/python -m pip install -q --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

run: setup
	@$(VENV)/bin/genmodels run $(RECIPE)

test: setup
	@$(VENV)/bin/python -m pytest

test-fast: setup
	@$(VENV)/bin/python -m pytest -m "not ray"

check: setup
	@$(VENV)/bin/ruff format --check .
	@$(VENV)/bin/ruff check .
	@$(VENV)/bin/pyright --pythonpath $(VENV)/bin/python
	@$(VENV)/bin/lint-imports

sanitize: setup
	@$(VENV)/bin/python -m tests.genmodels.sanitized
	@$(VENV)/bin/python -m tests.genmodels.sanitized --sanitizer thread

format: setup
	@$(VENV)/bin/ruff format . && $(VENV)/bin/ruff check --fix .

wheel: setup
	@$(VENV)/bin/python -m build --no-isolation

clean:
	rm -rf build dist *.egg-info .pytest_cache .ruff_cache .import_linter_cache
