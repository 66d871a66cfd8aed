# The one door. Needs Python 3.11 to 3.13, make and a package index; everything else is made here, in .venv.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
export SAQM_SHARED ?= ../shared

.DEFAULT_GOAL := help
.PHONY: help env demo test check format format-check lint types docs docs-check train-default fit-metrics laws table2 table3 ablations evidence signs ceilings natural findings test-pacs check-deploy benchmark-metrics benchmark-service benchmark-peers benchmark-pipeline front compress full-width benchmark clean

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

# Those that start servers and count seconds have the machine to themselves; the others take a process a core.
SERVERS := tests/node tests/service tests/pacs
test: export OMP_NUM_THREADS = 1
test: env ## run every test, with coverage
	$(BIN)/python -m pytest -n auto --dist loadfile --cov --cov-report= $(SERVERS:%=--ignore=%)
	$(BIN)/python -m pytest --cov --cov-append --cov-report=term $(SERVERS)

test-pacs: env ## the loop through a real PACS: installs Orthanc and DICOM's tools (Debian), then pushes images through
	sh tests/pacs/install.sh
	SAQM_PACS=required $(BIN)/python -m pytest tests/pacs

check: env format-check lint types docs-check test ## all that must be green at a commit

format: env ## format the code
	$(BIN)/ruff format .

format-check: env
	$(BIN)/ruff format --check .

lint: env
	$(BIN)/ruff check .

types: env
	$(BIN)/mypy

docs: env ## write the generated parts of docs/ anew
	$(BIN)/python docs/generate_cli.py
	$(BIN)/python docs/generate_metrics.py
	$(BIN)/python docs/generate_statement.py

docs-check: env
	$(BIN)/python docs/generate_cli.py --check && $(BIN)/python docs/generate_metrics.py --check && $(BIN)/python docs/generate_statement.py --check || { echo 'a generated page is out of date: make docs'; exit 1; }

train-default: env ## train the shipped model anew, and measure it out of fold (needs the study; takes long)
	$(BIN)/python benchmarks/train_default.py

fit-metrics: env ## fit the metrics' parameters that ship anew (needs the study and the photographs)
	$(BIN)/python benchmarks/fit_metrics.py

laws: env ## measure which laws each metric obeys on which images (needs the study and the photographs)
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/laws.py
	$(BIN)/python benchmarks/bit_depth.py

table3: env ## the metrics beside the model on the study: benchmarks/results/table3.*
	mkdir -p runs
	$(BIN)/saqm data ct-reader-study $(SAQM_SHARED)/data/ct_reader_study --out runs/study.csv
	$(BIN)/saqm experiment table3 --manifest runs/study.csv --folds 4 --out benchmarks/results

table2: env ## the paper's configurations between the study's two organs: benchmarks/results/table2*, docs/images (long)
	mkdir -p runs
	$(BIN)/saqm data ct-reader-study $(SAQM_SHARED)/data/ct_reader_study --organ abdomen --out runs/abdomen.csv
	$(BIN)/saqm data ct-reader-study $(SAQM_SHARED)/data/ct_reader_study --organ brain --out runs/brain.csv
	$(BIN)/saqm experiment table2 --source runs/abdomen.csv --target runs/brain.csv --both --jobs 2 --out runs/table2
	cp runs/table2/table2.md runs/table2/table2.json runs/table2/table2_runs.csv runs/table2/table2.png benchmarks/results/
	cp runs/table2/table2_*.png docs/images/
	$(BIN)/python docs/generate_table2.py

ablations: env ## which parts of the paper's system matter: benchmarks/results/ablations.* (after table2; hours)
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/ablations.py --jobs 2

evidence: env ## coverage of the intervals, what is flagged, reliability: on scenes kept out (after train-default)
	$(BIN)/python benchmarks/evidence.py

signs: env ## which label-free sign would have told good adaptations from bad, over the runs of table2
	$(BIN)/python benchmarks/signs.py

ceilings: env ## what the study allows: denoisers' means, hand-made statistics, the twin at hand
	$(BIN)/python benchmarks/ceilings.py

natural: env ## photographs as the source, on to CT and to ultrasound: benchmarks/results/natural.* (long)
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/natural.py --jobs 2

findings: env ## where the thresholds of the findings come from, and how often each is right: docs/findings.md
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/findings.py

benchmark-metrics: env ## time the metrics beside other libraries (their install lines stand in the script)
	$(BIN)/python benchmarks/metrics.py $(if $(PEERS),--peers $(PEERS))

check-deploy: ## the steps of the Dockerfile in a fresh prefix, for want of a container engine (about 2 minutes)
	bash deploy/check.sh

benchmark-peers: env ## whole tools side by side on one CT slice (their install lines stand in benchmarks/metrics.py)
	$(BIN)/python benchmarks/peers.py $(if $(PEERS),--peers $(PEERS))

benchmark-service: env ## the node and the service under load and attack: benchmarks/results/service.*
	$(BIN)/python benchmarks/service.py

benchmark-pipeline: env ## files to a table beside the scorer alone; killed half way and resumed (needs the study)
	$(BIN)/python benchmarks/pipeline.py

front: env ## accuracy against cost: narrower members distilled from the default: benchmarks/results/front.*
	$(BIN)/python benchmarks/front.py

compress: env ## what compression does to the default: low rank, depthwise, narrower, int8, shared convolutions
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/compress.py

full-width: env ## the paper's full network, widened from the shipped one, in every engine and precision (an hour)
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/full_width.py

benchmark: env ## what models cost, this machine's limits, engines and precisions beside them, very many images
	$(BIN)/python benchmarks/cost.py
	$(BIN)/python benchmarks/limits.py
	$(BIN)/python benchmarks/engines.py
	$(BIN)/python benchmarks/scale.py

clean: ## remove the environment and everything made
	rm -rf $(VENV) demo build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis .coverage
