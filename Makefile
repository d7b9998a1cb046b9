# What a person runs and what CI runs are the same targets. `make` lists them.
PYTHON ?= python3
VENV ?= .venv
PIP_ARGS ?=
ARGS ?=

BIN := $(VENV)/bin
INSTALLED := $(VENV)/.statecheck-installed
RUN_PYTEST := $(BIN)/python -m pytest
# A process for each core and a thread for each process: most tests are too small for two threads.
WORKERS ?= auto
IN_PARALLEL := -n $(WORKERS) --maxprocesses 8 --dist loadfile
CPU := kernels/statecheck_kernels/cpu

.DEFAULT_GOAL := help
.PHONY: help setup demo test nightly lint format doctest docs docs-check outputs outputs-check bench triton wheel no-compiler clean

help:  ## list the targets
	@grep -E '^[a-z-]+:.*##' Makefile | sed -E 's/:[^#]*## / \t/' | expand -t 16

setup: $(INSTALLED)  ## make .venv, install statecheck with its test tools (constraints.txt), build the C++ library

# The stamp is newer than what it was made from: running this again does nothing until one of them changes. The folder
# of the C++ sources is one of them: a file that went leaves its date there.
$(INSTALLED): pyproject.toml constraints.txt setup.py $(CPU)/source_hash.py $(CPU)/src $(wildcard $(CPU)/src/*.?pp)
	@command -v $(PYTHON) >/dev/null || { echo "no $(PYTHON) here: install Python 3.11 or later, or say make setup PYTHON=/path/to/python3" >&2; exit 2; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "statecheck needs Python 3.11 or later, found $$($(PYTHON) --version): say make setup PYTHON=/path/to/python3.12" >&2; exit 2; }
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt $(PIP_ARGS) -e '.[test,text]'
	@$(BIN)/python -c 'from statecheck_kernels import cpu; print(cpu.reason() or "compiled library: " + cpu.instruction_set())'
	@touch $@

demo: setup  ## check the bundled model on bundled text; the report is in statecheck-runs/demo
	@VENV=$(VENV) scripts/demo.sh $(ARGS)

test: setup  ## all tests but the slow ones (WORKERS=0: in one process, for ARGS='-x --pdb')
	OMP_NUM_THREADS=1 $(RUN_PYTEST) $(IN_PARALLEL) $(ARGS)

nightly: setup lint docs-check doctest outputs-check wheel no-compiler triton  ## everything, slow tests too
	OMP_NUM_THREADS=1 $(RUN_PYTEST) -m '' $(IN_PARALLEL) $(ARGS)

lint: setup  ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/mypy scripts examples kernels/bench.py

format: setup  ## let ruff put the code in order
	$(BIN)/ruff check --fix-only .
	$(BIN)/ruff format .

doctest: setup  ## the examples in docstrings (those of the GPU kernels where triton is installed)
	$(RUN_PYTEST) -q --doctest-modules statecheck reference_models/statecheck_reference kernels/statecheck_kernels \
		$$($(BIN)/python -c 'import triton' 2>/dev/null || echo --ignore=kernels/statecheck_kernels/triton_form)

docs: setup  ## write the generated pages again (docs/items, tables in README.md and docs/culprits.md)
	$(BIN)/python scripts/make_item_pages.py

docs-check: setup  ## fail if a generated page is not what the code says
	$(BIN)/python scripts/make_item_pages.py --check

outputs: setup  ## run the demo and the culprit matrix anew, and write all that the pages quote of them
	@VENV=$(VENV) scripts/demo.sh --fresh
	$(BIN)/python scripts/keep_example.py
	$(BIN)/python scripts/make_readings.py
	$(BIN)/python scripts/paste_outputs.py
	$(BIN)/python scripts/make_item_pages.py

outputs-check: setup  ## fail if the demo (run before, or now) or the culprit matrix do not print what the pages show
	@test -e statecheck-runs/demo/report.json || VENV=$(VENV) scripts/demo.sh
	$(BIN)/python scripts/paste_outputs.py --check

bench: setup  ## time the kernels beside their peers (ARGS; peers: pip install -c constraints.txt '.[peers]')
	$(BIN)/python kernels/bench.py $(ARGS)

triton: setup  ## install triton (1 GB), so that the tests interpret its kernels and compile them for GPUs
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt triton

wheel: setup  ## build the wheel and prove that it works from another directory
	VENV=$(VENV) scripts/check_wheel.sh

no-compiler: setup  ## install from source where there is no C++ compiler, and prove that it works
	VENV=$(VENV) scripts/check_without_compiler.sh

clean:  ## remove what the other targets made, .venv and run directories apart
	rm -rf build dist statecheck.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis $(CPU)/_cpu.so $(INSTALLED)
