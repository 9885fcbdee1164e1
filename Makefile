# Everything that a newcomer runs. `make setup` is part of each, and quick the second time.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
OUT := engines/out

.PHONY: help setup demo test check format clean
.DEFAULT_GOAL := help

help:  ## Show what there is
	@grep -E '^[a-z]+:.*##' Makefile | sed -E 's/^([a-z]+):.*## /  make \1\t/'

setup: $(VENV)/.installed  ## Create .venv and install the project into it

$(VENV)/.installed: pyproject.toml constraints.txt
	@echo "== creating $(VENV) and installing (a few minutes the first time)"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev,export,rtx]'
	@touch $@

demo: setup  ## Build the demo bundle, ask it about a video, and print the parity table
	@echo "== drawing a clip that the model was not trained on"
	$(BIN)/python scripts/draw_demo_clip.py $(OUT)/demo.mp4
	@echo "== building the bundle for the CPU"
	$(BIN)/tc-export build --target cpu
	@echo "== asking about the clip"
	$(BIN)/tc-export ask $(OUT)/tc-llava-tiny-cpu --video $(OUT)/demo.mp4 --question "$$(cat $(OUT)/demo.txt)"
	@echo "== comparing the engine with PyTorch"
	$(BIN)/tc-export parity $(OUT)/tc-llava-tiny-cpu

test: setup  ## Run all tests
	@echo "== running the tests"
	$(BIN)/pytest -n 2 --dist loadgroup

check: setup  ## Formatting, lint and strict types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: setup  ## Format the code
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:  ## Remove what was built, but not the environment
	rm -rf build $(OUT) .pytest_cache .mypy_cache .ruff_cache .hypothesis
