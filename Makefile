# Five Roads from Noise to Data.  `make` alone explains itself.

PYTHON ?= python3
TORCH_INDEX ?=
VENV := .venv
READY := $(VENV)/.ready
RUN := $(VENV)/bin/python -m
PIP := $(RUN) pip --disable-pip-version-check install -qq
export PATH := $(abspath $(VENV))/bin:$(PATH)
# this tree's lib, whatever else is installed and wherever the folder has been moved
export PYTHONPATH := $(CURDIR)
# torch's threads and xdist's workers share the cores
CHECK_ENV := OMP_NUM_THREADS=1 PYTHONHASHSEED=0

.DEFAULT_GOAL := help
.PHONY: help setup data repro test check fresh full publish lab student bench lint

help:  ## this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-9s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@echo "  PYTHON=python3.12 chooses the interpreter; TORCH_INDEX=<index of pytorch.org> a CPU or CUDA build of torch."

setup: $(READY)  ## make or refresh .venv from requirements.txt

$(READY): requirements.txt pyproject.toml
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; (3, 11) <= v <= (3, 13) or sys.exit("error: Python %d.%d; need 3.11 to 3.13: make PYTHON=python3.12" % v)'
	@echo "making $(VENV) from requirements.txt: minutes the first time"
	@$(PYTHON) -m venv $(VENV)
	@$(if $(TORCH_INDEX),$(PIP) --index-url $(TORCH_INDEX) $(shell grep '^torch==' requirements.txt))
	@$(PIP) -r requirements.txt
	@$(PIP) --no-deps --no-build-isolation -e .
	@touch $@

data: setup  ## pull the bundled data set
	@$(RUN) dvc pull data.dvc > /dev/null || { echo "error: data/ cannot be made whole, for the reason above. A file changed in data/: delete it and run make again. A file damaged in store/: take a fresh copy of the repository."; exit 1; }

repro: data  ## run the whole pipeline; a second time it rebuilds nothing
	@$(RUN) pipeline repro

fresh: data  ## run everything again and certify what came back byte for byte
	@$(RUN) pipeline fresh

publish: repro  ## maintainers: copy executed notebooks, gallery and ledger into the tree
	@$(RUN) pipeline publish

check: data  ## unit tests
	@$(CHECK_ENV) $(RUN) pytest -q -n 2 --dist worksteal -m "not slow" tests

test: check  ## everything: unit tests, the pipeline on a small project, every notebook re-executed
	@$(CHECK_ENV) $(RUN) pytest -q -n 2 --dist worksteal -m slow tests
	@$(CHECK_ENV) $(RUN) pytest -q --nbval-lax --nbval-cell-timeout=1200 -n 2 --dist loadscope notebooks

full: data  ## the runs that need more than a laptop; results are kept in full/
	@for script in $(wildcard full/*.py); do echo "== $$script"; $(VENV)/bin/python $$script || exit 1; done

bench: setup  ## side-by-side timings against peers
	@$(PIP) -r benchmarks/requirements.txt
	@for script in $(wildcard benchmarks/*.py); do echo "== $$script"; $(VENV)/bin/python $$script || exit 1; done

lab: data  ## read and run the notebooks
	@$(RUN) jupyterlab notebooks

student: setup  ## an edition of the notebooks without solutions and outputs, in student/
	@$(RUN) pipeline student

lint: setup  ## style and types
	@$(RUN) ruff check .
	@$(RUN) basedpyright
