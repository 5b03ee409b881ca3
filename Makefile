# Needs Python >= 3.11, pip and make; everything else is installed into $(VENV).
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed-minilm-dev
comma := ,

export PIP_CONSTRAINT := $(CURDIR)/constraints.txt
# The matrices of small models gain little from a second thread, and on cores that others use too
# waiting threads spin: 60 steps took 5.5 s with one thread and 4.3 s with two on two idle cores, 5.9 s
# and 14.8 s where one of them was busy.
export OMP_NUM_THREADS ?= 1
export PIP_DISABLE_PIP_VERSION_CHECK := 1

PYTEST := $(BIN)/python -m pytest -n 2 -q
FAST := not slow and not conformance

.PHONY: help quickstart test conformance test-full check bench docs examples lock clean

help:  ## Show the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/' | expand -t 14

$(VENV)/.installed-%: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q -c constraints.txt -e ".[$(subst -,$(comma),$*)]"
	touch $@

quickstart: $(STAMP)  ## Install and run examples/quickstart.py
	$(BIN)/python examples/quickstart.py

test: $(STAMP)  ## Install and run the fast tests
	$(PYTEST) -m "$(FAST)"

conformance: $(STAMP)  ## Run sktime's conformance suite on every forecaster
	$(PYTEST) -m conformance

test-full: $(VENV)/.installed-minilm-dev-serving  ## Run every test, the slow ones too
	$(PYTEST)

check: $(STAMP)  ## Format, lint, types and the fast tests
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(PYTEST) -m "$(FAST)"

bench: $(STAMP)  ## Run the benchmarks that are not stored yet (hours; needs TSLLM_DATA)
	OMP_NUM_THREADS=2 $(BIN)/python examples/benchmarks/speed.py
	OMP_NUM_THREADS=2 $(BIN)/python examples/benchmarks/time_llama.py
	OMP_NUM_THREADS=2 $(BIN)/python examples/benchmarks/text.py
	OMP_NUM_THREADS=1 $(BIN)/python examples/benchmarks/backtesting.py
	OMP_NUM_THREADS=1 $(BIN)/python examples/benchmarks/lemole.py
	OMP_NUM_THREADS=1 $(BIN)/python examples/benchmarks/many_series.py
	OMP_NUM_THREADS=1 $(BIN)/python examples/benchmarks/language_stage.py
	$(BIN)/python examples/benchmarks/adapters.py
	$(BIN)/python examples/benchmarks/airline.py
	$(BIN)/python examples/benchmarks/etth1.py
	$(BIN)/python examples/benchmarks/losloop.py
	$(BIN)/python examples/benchmarks/m4.py
	OMP_NUM_THREADS=1 $(BIN)/python examples/benchmarks/scale_out.py

examples: $(STAMP)  ## Run the examples (transfer.py needs TSLLM_DATA)
	$(BIN)/python examples/quickstart.py
	$(BIN)/python examples/adapters.py
	$(BIN)/python examples/announced_events.py
	$(BIN)/python examples/tuning.py
	$(BIN)/python examples/many_short_series.py
	$(BIN)/python examples/transfer.py
	$(BIN)/python examples/scale_out_ray.py
	$(BIN)/python examples/scale_out_dask.py

docs: $(VENV)/.installed-docs  ## Build the documentation into docs/_build
	$(BIN)/sphinx-build -W --keep-going -b html docs docs/_build

lock:  ## Write constraints.txt anew from a fresh environment with every extra
	rm -rf .venv-lock
	$(PYTHON) -m venv .venv-lock
	PIP_CONSTRAINT= .venv-lock/bin/python -m pip install -q torch==2.13.0 -e ".[minilm,serving,ray,dev,docs]" build
	.venv-lock/bin/python -m pip freeze --exclude-editable | sed 's/+cpu$$//' > constraints.txt
	rm -rf .venv-lock

clean:  ## Remove what the targets made, the environment too
	rm -rf $(VENV) .venv-lock docs/_build examples/output .pytest_cache .mypy_cache .ruff_cache
