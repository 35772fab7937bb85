# make demo       the whole story on real handwriting, in a few minutes
# make test       everything that needs no GPU and no network
# make test-fast  the tests that need neither Ray nor a server, in about two minutes
# make test-long  the checks that take longer than the others together
# make gpu-check  what a machine with one GPU does with the model and the labeler, in six minutes
# make bench      labelling against what one would write instead (DATA=folder of photographs, MODEL=Ti/16)
# make servers    what tests start: Ceph and Chromium (apt, as root), azurite and axe-core (npm), where they are not there yet
# make lint       ruff and mypy; changes nothing
# make format     ruff, which rewrites files
# make lock       the locks, with hashes, from pyproject.toml
# make audit      asks a database of advisories about every locked version; needs a network
# make setup      only the environment, in .venv

PYTHON ?= python3
VENV   := .venv
READY  := $(VENV)/.ready
TWO    := -n 2 --dist loadfile --no-loadscope-reorder#  files at a time: much of what they do is wait for processes
TYPED  := build/typed/wordsworth#  the packages under the names that they are imported by, for mypy
LOCKED := --require-hashes --only-binary :all:#  nothing that is not in a lock, and no code of an sdist, runs at a setup
COMPILE := $(VENV)/bin/uv pip compile --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header \
           --quiet
# --strict: a version about which the database could not be asked is a failure too.
AUDIT  := build/audit/bin/pip-audit --strict --vulnerability-service osv --disable-pip --require-hashes --progress-spinner off
QUIET  := $(shell test -t 2 || echo --quiet)#  on a terminal it shows how far it is
OTHER  := $(WHEELS)$(filter command,$(origin PYTHON))#  a machine without .venv and without a network: a folder of wheels

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-fast test-long gpu-check bench servers lint format lock audit

help:
	@sed -n 's/^# //p' Makefile

setup: $(READY)
	@echo "Ready. Next: make demo, or  source $(VENV)/bin/activate  and  wordsworth --help"

$(READY): pyproject.toml requirements.lock requirements-setup.lock
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' \
	  || { echo "Python 3.11 to 3.13 is needed: make $(MAKECMDGOALS) PYTHON=/path/to/python3.12"; exit 1; }
	@echo "Creating $(VENV) from requirements.lock (several GB and some minutes the first time: PyTorch with its CUDA libraries) ..."
	@$(PYTHON) -m venv $(VENV)
	@$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check $(LOCKED) -r requirements-setup.lock
	@$(VENV)/bin/uv pip install $(QUIET) --compile-bytecode --python $(VENV)/bin/python $(LOCKED) -r requirements.lock
	@$(VENV)/bin/uv pip install --quiet --python $(VENV)/bin/python --no-deps --no-build-isolation -e .
	@touch $@

demo: $(READY)
	@$(VENV)/bin/wordsworth demo

test: $(READY)
	@echo "Running every test that needs no GPU and no network (make test-long has the longer ones) ..."
	@$(VENV)/bin/python -m pytest -m "not long and not gpu" $(TWO) --durations=30
	@echo "All passed. Next: make demo, or make test-long."

test-fast: $(READY)
	@$(VENV)/bin/python -m pytest -q -m "not long and not gpu and not ray and not server and not slow" $(TWO)

test-long: $(READY)
	@$(VENV)/bin/python -m pytest -m "long and not gpu"

gpu-check:
	@$(if $(OTHER),$(PYTHON),$(firstword $(wildcard $(VENV)/bin/python) $(PYTHON))) -m benchmarks.gpu_check \
	  $(if $(WHEELS),--wheels $(WHEELS)) $(OPTIONS)

servers:
	@tests/faults/install_servers.sh

lint: $(READY)
	@$(VENV)/bin/ruff check . && $(VENV)/bin/ruff format --check .
	@mkdir -p $(TYPED) && ln -sfn $(CURDIR)/wordsworth/*.py $(foreach name,jobs pipeline vit_model,$(CURDIR)/$(name)) $(TYPED)
	@$(VENV)/bin/mypy

format: $(READY)
	@$(VENV)/bin/ruff check --fix --select I . && $(VENV)/bin/ruff format .

bench: $(READY)
	@test -n "$(DATA)" || { echo "Say where photographs are: make bench DATA=/path/to/images [MODEL=Ti/16]"; exit 2; }
	@$(VENV)/bin/python -m benchmarks.label $(DATA) --models $(or $(MODEL),Ti/16) $(OPTIONS)

lock:
	@$(COMPILE) pyproject.toml --all-extras -o requirements.lock
	@$(COMPILE) --group pyproject.toml:setup -o requirements-setup.lock
	@$(COMPILE) --group pyproject.toml:audit -o requirements-audit.lock

audit: $(READY)
	@$(VENV)/bin/uv venv --quiet --clear --python $(VENV)/bin/python build/audit
	@$(VENV)/bin/uv pip install --quiet --python build/audit/bin/python $(LOCKED) -r requirements-audit.lock
	@for lock in requirements.lock requirements-setup.lock requirements-audit.lock; do \
	  $(AUDIT) -r $$lock 2> build/audit/errors || { tail -n 1 build/audit/errors; \
	    echo "$$lock: a version has an advisory, or the database of advisories was not reached (above)"; exit 1; }; \
	done
	@echo "No version in the locks has a known advisory."
