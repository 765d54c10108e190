# Two commands are all that is needed: `make demo` (the main job) and `make test`. Both work on a bare machine with Python 3.11+.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test test-slow test-browser gallery gpu bench bench-diagnosis lint clean

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
	$(BIN)/python -m pytest -n auto --dist loadfile
	TRITON_INTERPRET=1 $(BIN)/python -m pytest -n auto tests/kernels_triton

test-slow: .venv/test
	$(BIN)/python -m pytest -m slow

# Pages of TensorBoard and the report in a real browser; a part of `make test`, skipped where there is no Chromium.
test-browser: .venv/test
	$(BIN)/python -m pytest tests/browser

# The pictures that the README shows, from the demo's own runs; about three minutes.
gallery: .venv/test
	$(BIN)/python docs/gallery.py

# On a machine with a CUDA device and its own python3 with torch, triton, lightning, torchmetrics, pytest, pytest-xdist and
# pytest-timeout: under nine minutes, most important first; results are written as they come, and one failure does not stop the rest.
gpu:
	@status=0; export PYTHONPATH=.; run() { echo "== $$*"; "$$@" || status=1; }; \
	run timeout 150 $(PYTHON) -m pytest -q -n 8 -p no:cacheprovider -W default tests/kernels_triton; \
	run timeout 100 $(PYTHON) benchmarks/bench_gpu_update.py; \
	run timeout 100 $(PYTHON) benchmarks/bench_gpu_loss.py; \
	run timeout 130 $(PYTHON) benchmarks/bench_gpu_step.py; \
	for tool in memcheck racecheck; do \
		PYTORCH_NO_CUDA_MEMORY_CACHING=1 run timeout 45 compute-sanitizer --tool $$tool --error-exitcode 9 \
			$(PYTHON) -m pytest -q -p no:cacheprovider -W default tests/kernels_triton/test_statistics.py -k "memory_around or split_over"; \
	done; \
	run $(PYTHON) benchmarks/draw_gpu.py; exit $$status

bench: .venv/test
	$(BIN)/python benchmarks/bench_update.py
	$(BIN)/python benchmarks/bench_step.py
	$(BIN)/python benchmarks/bench_loss.py
	$(BIN)/python benchmarks/sm90.py

# About two hours on one core; what is kept in benchmarks/cache is not trained again.
bench-diagnosis: .venv/test
	$(BIN)/python benchmarks/bench_diagnosis.py train --part report --seeds 10 --enough 20
	$(BIN)/python benchmarks/bench_diagnosis.py judge --part report
	$(BIN)/python benchmarks/bench_healthy.py train --part report --count 690
	$(BIN)/python benchmarks/bench_healthy.py judge --part report
	$(BIN)/python benchmarks/bench_checkpoints.py

lint: .venv/test
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:
	rm -rf .venv runs build dist .pytest_cache .ruff_cache .hypothesis
