# The common tasks. `make demo` and `make test` are the README's two commands.
PYTHON ?= python3
BIN = .venv/bin

.PHONY: demo test dev lint format schema bench bench-gpu train-demo clean

.venv:
	$(PYTHON) -m venv .venv

demo: .venv
	$(BIN)/pip install -q -c constraints.txt .
	$(BIN)/medusa-tree calibrate --model demo -o tree.json

test: .venv
	$(BIN)/pip install -q -c constraints.txt '.[test]'
	$(BIN)/pytest

dev: .venv
	$(BIN)/pip install -q -c constraints.txt -e '.[dev]'

lint: dev
	$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy

format: dev
	$(BIN)/ruff check --fix . && $(BIN)/ruff format .

schema: dev
	$(BIN)/python -m medusa_runtime.schema > data/tree.schema.json

bench: dev
	$(BIN)/python benchmarks/decode.py -o benchmarks/results/decode.json
	$(BIN)/python benchmarks/profile_rate.py -o benchmarks/results/profile_rate.json
	$(BIN)/python benchmarks/predictions.py -o benchmarks/results/predictions.json
	$(BIN)/python benchmarks/planning.py -o benchmarks/results/planning.json
	$(BIN)/python benchmarks/rules.py -o benchmarks/results/rules.json
	$(BIN)/python benchmarks/typical.py -o benchmarks/results/typical.json

bench-gpu: dev
	$(BIN)/pytest tests/test_gpu.py tests/test_kernels.py
	$(BIN)/python benchmarks/step_latency.py --device cuda -o benchmarks/results/step_latency-gpu.json
	$(BIN)/python benchmarks/decode.py --device cuda -o benchmarks/results/decode-gpu.json
	$(BIN)/python benchmarks/memory.py --device cuda -o benchmarks/results/memory-gpu.json

train-demo: dev
	$(BIN)/python data/demo/train.py -o data/demo/model --prompts data/prompts/demo.jsonl

clean:
	rm -rf .venv build dist *.egg-info
