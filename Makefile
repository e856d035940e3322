# Everything runs in .venv, which the first command makes.
PYTHON ?= python3
BIN := .venv/bin

.DEFAULT_GOAL := help
.PHONY: help demo test bench faults clean

help: ## Show this list
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "make %-6s %s\n", $$1, $$2}'

demo: .venv/installed ## Train on the embedded shapes and write runs/demo (two minutes on two cores with bfloat16)
	rm -rf runs/demo
	$(BIN)/python main.py --data shapes --model small_resnet --epochs 8 --lr 0.1 --out runs/demo

test: .venv/installed-test ## Check style and types, run the tests
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy eva_utils
	$(BIN)/python -m pytest -n 2 --dist worksteal

bench: .venv/installed-bench ## Measure against rivals and write benchmarks/results.md (half an hour; leave the machine alone)
	$(BIN)/python benchmarks/fit_speed.py
	$(BIN)/python benchmarks/profile_step.py
	$(BIN)/python benchmarks/compile_speed.py
	$(BIN)/python benchmarks/attention.py
	$(BIN)/python benchmarks/conv_speed.py
	$(BIN)/python benchmarks/loader_speed.py
	$(BIN)/python benchmarks/gradcam_speed.py
	$(BIN)/python benchmarks/footprint.py
	$(BIN)/python benchmarks/process_counts.py
	$(BIN)/python benchmarks/norms.py
	$(MAKE) demo
	$(BIN)/python benchmarks/pointing_game.py
	$(BIN)/python benchmarks/deletion.py

faults: .venv/installed-test ## Kill, fill, damage and split runs, and write the table (about two minutes; Linux)
	$(BIN)/python benchmarks/faults.py

clean: ## Remove the environment and the demo run
	rm -rf .venv runs/demo

.venv/installed: setup.py
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --no-compile --editable .
	touch $@

.venv/installed-bench: setup.py .venv/installed
	$(BIN)/python -m pip install --quiet --no-compile --editable '.[bench]'
	touch $@

.venv/installed-test: setup.py .venv/installed
	$(BIN)/python -m pip install --quiet --no-compile --editable '.[test]'
	touch $@
