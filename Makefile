# Five Roads from Noise to Data.  `make` alone explains itself; without make, `python -m pipeline` does the same.

PYTHON ?= python3
OPTIONS ?=
RUN ?=
VENV := .venv
READY := $(VENV)/.ready
MODULE := $(VENV)/bin/python -m
export TORCH_INDEX
# this tree's lib, whatever else is installed and wherever the folder has been moved
export PYTHONPATH := $(CURDIR)

.DEFAULT_GOAL := help
.PHONY: help setup data repro compare test check fresh full publish book lab student course grade bench lint

help:  ## this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-9s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@echo "  PYTHON=python3.12 chooses the interpreter; TORCH_INDEX=<index of pytorch.org> a CPU or CUDA build of torch."

setup: $(READY)  ## make or refresh .venv from requirements.txt

$(READY): requirements.txt pyproject.toml
	@$(PYTHON) -m pipeline setup

data: setup  ## pull the bundled data set
	@$(MODULE) pipeline data

repro: setup  ## run the whole pipeline; a second time it rebuilds nothing
	@$(MODULE) pipeline repro

compare: setup  ## the results here against the published ones: what moved, and how far
	@$(MODULE) pipeline compare

fresh: setup  ## run everything again and certify what came back byte for byte
	@$(MODULE) pipeline fresh

publish: repro  ## maintainers: copy executed notebooks, gallery and ledger into the tree
	@$(MODULE) pipeline publish

check: setup  ## unit tests
	@$(MODULE) pipeline check

test: setup  ## everything: unit tests, the pipeline on a small project, every notebook re-executed
	@$(MODULE) pipeline test

full: data  ## the long runs: times, and what is missing; RUN=judge makes one (OPTIONS=--overwrite: over other settings)
	@$(VENV)/bin/python full/runs.py $(RUN) $(OPTIONS)

bench: setup  ## side-by-side timings against peers
	@$(MODULE) pip --disable-pip-version-check install -qq -r benchmarks/requirements.txt
	@for script in $(filter-out %/common.py,$(wildcard benchmarks/*.py)); do echo "== $$script"; $(VENV)/bin/python $$script || exit 1; done

book: setup  ## the site, into results/book/, from the executed notebooks; offline
	@$(MODULE) pipeline book

lab: setup  ## read and run the notebooks (OPTIONS=--no-browser and the like are passed to JupyterLab)
	@$(MODULE) pipeline lab $(OPTIONS)

student: setup  ## an edition of the notebooks without solutions and outputs, in student/
	@$(MODULE) pipeline student

course: setup  ## editions, slides and assignments for a class, in results/course/
	@$(MODULE) pipeline course

grade: setup  ## FOLDER=...: a table of the exercises in students' notebooks
	@$(MODULE) pipeline grade $(FOLDER)

lint: setup  ## style and types
	@$(MODULE) ruff check .
	@$(MODULE) basedpyright
