# PYTHON is tried in this order, and only while .venv is not yet made; to change it later,
# remove .venv first. FLAGS goes to pytest, e.g. make test FLAGS='-k attention'.
PYTHON ?= python3 python3.13 python3.12 python3.11
FLAGS ?= -n 2

.PHONY: help test quick test-gpu test-tpu faults values demo build table bench bench-gpu
help: ## list these commands
	@sed -n 's/^\([a-z-]*\):.*## /make \1	/p' Makefile

test: .venv/installed ## lint, check formatting and types, run the tests; FLAGS='-n 2 -m smoke' some of them
	@.venv/bin/ruff check .
	@.venv/bin/ruff format --check .
	@.venv/bin/mypy
	@.venv/bin/python -m pytest -q $(FLAGS)

quick: .venv/installed ## run the unit tests that are not slow, and nothing else
	@.venv/bin/python -m pytest -q $(FLAGS) -m 'unit and not slow'

test-gpu: .venv/installed ## run the tests that are marked for it on a GPU that jax sees
	@JAX_PLATFORMS=cuda,cpu .venv/bin/python -m pytest -q -m gpu -n 4 \
	  $$(grep -rl --include='test_*.py' 'mark\.gpu' tests)

# Only these tests see libtpu: where it is installed, jax looks for a TPU at every start.
test-tpu: .venv/installed .venv/libtpu ## compile attention for TPUs that are not there: installs libtpu, a few minutes
	@PYTHONPATH=.venv/libtpu TPU_SKIP_MDS_QUERY=1 ALLOW_MULTIPLE_LIBTPU_LOAD=1 \
	  .venv/bin/python -m pytest -q -m tpu \
	  $$(grep -rl --include='test_*.py' 'mark\.tpu' tests)

faults: .venv/installed ## damage files of every kind, kill runs, fill their disks: refused or resumed; 15 minutes
	@.venv/bin/python -m tests.faults

values: .venv/installed ## set each key of each demo to wrong values: one line, or it runs; ten minutes
	@VALUES=all .venv/bin/python -m pytest -q $(FLAGS) tests/experiments/test_wrong_values.py

demo: .venv/installed ## train on scikit-learn's handwritten digits: minutes on two CPU cores
	@test ! -e runs/demo/result.json || echo 'runs/demo is finished; to start afresh: rm -r runs/demo'
	@.venv/bin/python -m experiments.launch --config=configs/imagenet.py:demo --workdir=runs/demo

build: .venv/installed ## build the wheel and the sdist in dist/, import the wheel from an empty environment
	@rm -rf build dist && .venv/bin/python -m build -q --no-isolation
	@.venv/bin/python -m venv build/empty && \
	  build/empty/bin/python -m pip install -q --disable-pip-version-check dist/*.whl && \
	  cd build/empty && \
	  bin/python -c 'import perceiver_jax as p; print("perceiver_jax", p.__version__, "is imported")'

table: .venv/installed ## write results/ and benchmarks/results/ into the tables of README.md and docs/
	@.venv/bin/python -m experiments.table
	@.venv/bin/python -m benchmarks.table

bench: .venv/installed ## measure speed and memory on the CPU, beside plain code: a quarter of an hour
	@.venv/bin/python -m benchmarks

bench-gpu: .venv/installed ## the same on a GPU that jax sees: hours, or as long as SECONDS=240 says
	@.venv/bin/python -m benchmarks gpu $(if $(SECONDS),--seconds $(SECONDS))

# In the version that pyproject.toml names.
.venv/libtpu: pyproject.toml | .venv/installed
	@rm -rf $@ $@.part && .venv/bin/python -m pip install -q --disable-pip-version-check \
	  --target $@.part $$(grep -o 'libtpu==[0-9.]*' pyproject.toml) && mv $@.part $@ && touch $@

# Touched last: an interrupted installation is started again.
.venv/installed: requirements.txt
	@for python in $(PYTHON); do \
	  $$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && break; \
	done || { \
	  echo "Python 3.11 or newer is needed; found $$($(firstword $(PYTHON)) --version 2>&1)." \
	    'Name another: make test PYTHON=python3.12' >&2; exit 1; }; \
	echo "Installing requirements.txt into .venv with $$($$python --version) (once, about a minute)"; \
	$$python -m venv --clear .venv && \
	.venv/bin/python -m pip install -q --disable-pip-version-check -r requirements.txt && \
	touch $@
