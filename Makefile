# The one door. Needs Python 3.11 to 3.13, make and a package index; everything else is made here, in .venv.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
export SAQM_SHARED ?= ../shared

.DEFAULT_GOAL := help
.PHONY: help env demo test check format format-check lint types docs docs-check train-default benchmark clean

help: ## show this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

env: $(STAMP) ## make the environment (.venv) with everything needed to develop

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "saqm needs Python 3.11 or newer: make PYTHON=python3.12")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet torch==2.13.0
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[dev]'
	@touch $@

demo: env ## score real files, then one made worse step by step; leaves tables and pictures in demo/
	$(BIN)/python examples/demo.py --out demo

test: env ## run every test, with coverage
	$(BIN)/python -m pytest --cov --cov-report=term

check: env format-check lint types docs-check test ## all that must be green at a commit

format: env ## format the code
	$(BIN)/ruff format .

format-check: env
	$(BIN)/ruff format --check .

lint: env
	$(BIN)/ruff check .

types: env
	$(BIN)/mypy

docs: env ## write docs/cli.md anew from the commands
	$(BIN)/python docs/generate_cli.py

docs-check: env
	$(BIN)/python docs/generate_cli.py --check || { echo 'docs/cli.md is out of date: make docs'; exit 1; }

train-default: env ## train the shipped model anew, and measure it out of fold (needs the study; takes long)
	$(BIN)/python benchmarks/train_default.py

benchmark: env ## measure what models cost: size, operations, time of an image
	$(BIN)/python benchmarks/cost.py

clean: ## remove the environment and everything made
	rm -rf $(VENV) demo build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis .coverage
