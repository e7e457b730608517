# Needs Python 3.11 and make. Everything else goes into .venv, at the versions of constraints.txt.
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
PYTHON ?= $(shell for p in python3.11 python3; do \
    $$p -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' 2>/dev/null && echo $$p && break; done)
TORCH := $(shell sed -n 's/^torch==/torch==/p' constraints.txt)

RUN ?= runs/demo
HOST ?= 127.0.0.1
PORT ?= 5000
DASHBOARD_PORT ?= 8080
WORKERS ?= 2
ARGS ?=

# A waiting OpenMP thread yields its core: spinning beside another busy process makes both many times slower.
export OMP_WAIT_POLICY := PASSIVE
export RAY_USAGE_STATS_ENABLED := 0
export MLFLOW_DISABLE_TELEMETRY := true

.PHONY: help venv demo test lint format ui dashboard clean

help: ## this list
	@sed -n 's/^\([a-z]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | while IFS="$$(printf '\t')" read -r name text; do \
	  printf '  make %-11s %s\n' "$$name" "$$text"; done

venv: $(STAMP) ## set up .venv with autoq and its tools (once, and again when the pins change)

# torch goes first: with it in place, the build it came from (CPU or CUDA) satisfies the pin, and setuptools is there.
$(STAMP): pyproject.toml setup.py constraints.txt
	@test -n "$(PYTHON)" || { echo "autoq needs Python 3.11, as python3.11 or python3 on the PATH" >&2; exit 2; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -c constraints.txt "$(TORCH)" setuptools
	$(BIN)/python -m pip install --quiet --no-build-isolation -c constraints.txt -e ".[dev,dashboard,npu,openvino]"
	@touch $@

demo: $(STAMP) ## train a small model, search it, export and verify the knee of its front (under 3 minutes)
	rm -rf runs/demo runs/demo-export
	$(BIN)/python examples/digits/train.py
	$(BIN)/autoq search examples/digits/job.yaml --out runs/demo
	$(BIN)/autoq export runs/demo --select knee --out runs/demo-export
	$(BIN)/autoq verify runs/demo-export
	$(BIN)/python runs/demo-export/infer.py
	@echo
	@echo "The exported model is in runs/demo-export. Next: 'make ui' shows every trial in MLflow,"
	@echo "and 'make dashboard RUN=runs/demo' the study in Optuna's dashboard."

test: lint ## lint, then all tests (about 7 minutes on 2 cores)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder $(ARGS)

lint: $(STAMP) ## ruff (rules and format) and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(STAMP) ## put right what ruff can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

ui: $(STAMP) ## MLflow on the local store (HOST=127.0.0.1 PORT=5000)
	@mkdir -p runs
	MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false $(BIN)/mlflow ui --workers 1 --backend-store-uri sqlite:///runs/mlflow.db \
	  --artifacts-destination runs/mlartifacts --host $(HOST) --port $(PORT)

dashboard: $(STAMP) ## Optuna's dashboard of one run (RUN=runs/demo DASHBOARD_PORT=8080)
	@test -f $(RUN)/study.db || { echo "$(RUN)/study.db does not exist; give a run folder: make dashboard RUN=..." >&2; exit 2; }
	$(BIN)/optuna-dashboard sqlite:///$(RUN)/study.db --host $(HOST) --port $(DASHBOARD_PORT)

clean: ## caches, build outputs and the example's model and data (runs/ and .venv stay)
	rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	rm -f examples/digits/*.onnx examples/digits/*.npz
	find autoq tests examples benchmarks -name __pycache__ -prune -exec rm -rf {} +
