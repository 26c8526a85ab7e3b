PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
DEMO := --model hybrid-kda,full,hybrid-lightning --tasks multihop,ruler,knowledge

.PHONY: demo test lint format

demo: $(READY)  ## the main job: three designs side by side, in a few minutes without a GPU
	$(BIN)/evalsuite run $(DEMO) --lengths 256,512 --limit 60 --out runs/demo

test: $(READY) lint  ## everything that CI asks
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[dev]'
	touch $(READY)
