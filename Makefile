# Five Roads from Noise to Data.  `make` alone explains itself.

PYTHON ?= python3
TORCH_INDEX ?=
VENV := .venv
READY := $(VENV)/.ready
export PATH := $(CURDIR)/$(VENV)/bin:$(PATH)
# torch's threads and xdist's workers share the cores
CHECK_ENV := OMP_NUM_THREADS=1 PYTHONHASHSEED=0

.DEFAULT_GOAL := help
.PHONY: help setup data repro test check fresh full publish lab bench lint

help:  ## this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-9s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@echo "  PYTHON=python3.12 chooses the interpreter; TORCH_INDEX=<index of pytorch.org> a CPU or CUDA build of torch."

setup: $(READY)  ## make or refresh .venv from requirements.txt

$(READY): requirements.txt pyproject.toml
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; (3, 11) <= v <= (3, 13) or sys.exit("error: Python %d.%d; need 3.11 to 3.13: make PYTHON=python3.12" % v)'
	$(PYTHON) -m venv $(VENV)
	$(if $(TORCH_INDEX),$(VENV)/bin/pip install --quiet --index-url $(TORCH_INDEX) $(shell grep '^torch==' requirements.txt))
	$(VENV)/bin/pip install --quiet --disable-pip-version-check -r requirements.txt
	$(VENV)/bin/pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

data: setup  ## pull the bundled data set
	@dvc pull --quiet data.dvc

repro: data  ## run the whole pipeline; a second time it rebuilds nothing
	@python -m scripts.report repro

fresh: data  ## run everything again and certify what came back byte for byte
	@python -m scripts.report fresh

publish: repro  ## maintainers: copy executed notebooks, gallery and ledger into the tree
	@python -m scripts.report publish

check: data  ## unit tests
	@$(CHECK_ENV) pytest -q -n 2 --dist worksteal -m "not slow" tests

test: check  ## everything: unit tests, the pipeline on a small project, every notebook re-executed
	@$(CHECK_ENV) pytest -q -n 2 --dist worksteal -m slow tests
	@PYTHONHASHSEED=0 pytest -q --nbval-lax --nbval-cell-timeout=1200 -n 2 --dist loadscope notebooks

full: data  ## the runs that need more than a laptop; results are kept in full/
	@for script in full/*.py; do echo "== $$script"; python $$script || exit 1; done

bench: setup  ## side-by-side timings against peers
	@$(VENV)/bin/pip install --quiet --disable-pip-version-check -r benchmarks/requirements.txt
	@for script in benchmarks/*.py; do echo "== $$script"; python $$script || exit 1; done

lab: data  ## read and run the notebooks
	@jupyter lab notebooks

lint: setup
	@ruff check .
