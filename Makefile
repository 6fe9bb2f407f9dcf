# Everything runs in a virtual environment in .venv, which the first use creates from the pinned requirements.
PYTHON ?= python3
BIN := .venv/bin
RUNS := runs/teacher runs/lsm-random runs/token-head-lsm-random

.PHONY: demo test lint bench bench-gpu

demo: .venv/for-running  ## the whole pipeline on the embedded corpus
	$(BIN)/python train.py --objective lsm --init random --resume
	$(BIN)/python train.py --objective token-head --init runs/lsm-random --resume
	$(BIN)/python evaluate.py $(RUNS) --tasks demo

test: .venv/for-developing  ## all tests; those of the GPU kernels run on the GPU if there is one
	$(BIN)/python -m pytest

lint: .venv/for-developing  ## formatting, common mistakes, types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

bench: .venv/for-benchmarks  ## this project against other packages, into results/
	$(BIN)/python -m pytest benchmarks/bench_lasso.py benchmarks/bench_dictionary.py benchmarks/bench_scoring.py --benchmark-enable
	PYTHONPATH=. $(BIN)/python benchmarks/bench_training.py
	PYTHONPATH=. $(BIN)/python benchmarks/bench_attention.py

bench-gpu: .venv/for-benchmarks  ## what waits for a GPU, into results/gpu.md
	-$(BIN)/python -m pip install --quiet --no-deps einops flashdeberta==0.0.8 disentangled-flash==1.1.1
	PYTHONPATH=. $(BIN)/python benchmarks/bench_gpu.py

.venv/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Python 3.11 or newer is needed; name one with: make PYTHON=python3.11 $(MAKECMDGOALS)"; exit 2; }
	$(PYTHON) -m venv .venv

.venv/for-running: .venv/bin/python requirements.txt
	@echo "installing requirements.txt into .venv (some minutes, once)"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
	@touch $@

.venv/for-developing: .venv/for-running requirements-dev.txt
	@echo "installing requirements-dev.txt into .venv (some minutes, once)"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements-dev.txt
	@touch $@

.venv/for-benchmarks: .venv/for-developing requirements-bench.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements-bench.txt
	@touch $@
