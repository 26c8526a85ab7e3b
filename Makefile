PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
DEMO := --model full,hybrid-kda,hybrid-lightning --tasks multihop,ruler,knowledge

.PHONY: demo test lint format checkpoints

ZOO := full hybrid-kda hybrid-lightning sparse-dsa hybrid-kda-dsa

demo: $(READY)  ## the main job: three designs side by side, in a few minutes without a GPU
	$(BIN)/evalsuite run $(DEMO) --lengths 256,512 --limit 20 --out runs/demo

test: $(READY) lint  ## everything that CI asks
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

checkpoints: $(READY)  ## train the shipped designs at the lab's budget, seed 0; goes on where it stopped
	$(BIN)/evalsuite train --budget reference $(ZOO:%=--model %) --seeds 1 --device cuda --out checkpoints
	for name in $(ZOO); do cd checkpoints/$$name/seed0; mkdir -p $(CURDIR)/evalsuite/zoo/$$name; \
	  cp *config.json tokenizer.json training.json model.safetensors $(CURDIR)/evalsuite/zoo/$$name/; cd $(CURDIR); done

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[dev]'
	touch $(READY)
