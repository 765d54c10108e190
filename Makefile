# Two commands are all that is needed: `make demo` (the main job) and `make test`. Both work on a bare machine with Python 3.11+.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test test-slow bench bench-diagnosis lint clean

.venv/demo: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --constraint constraints.txt --editable ".[demo]"
	touch .venv/demo

.venv/test: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --constraint constraints.txt --editable ".[test]" ruff
	touch .venv/test

demo: .venv/demo
	$(BIN)/lossacc demo

test: .venv/test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python -m pytest

test-slow: .venv/test
	$(BIN)/python -m pytest -m slow

bench: .venv/test
	$(BIN)/python benchmarks/bench_update.py
	$(BIN)/python benchmarks/bench_step.py

# About an hour and a half on one core; what is kept in benchmarks/cache is not trained again.
bench-diagnosis: .venv/test
	$(BIN)/python benchmarks/bench_diagnosis.py train --part report --seeds 6
	$(BIN)/python benchmarks/bench_diagnosis.py judge --part report
	$(BIN)/python benchmarks/bench_healthy.py train --part report --count 700
	$(BIN)/python benchmarks/bench_healthy.py judge --part report
	$(BIN)/python benchmarks/bench_checkpoints.py

lint: .venv/test
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:
	rm -rf .venv runs build dist .pytest_cache .ruff_cache .hypothesis
