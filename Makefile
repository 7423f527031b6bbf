# Everything runs in a virtual environment that is made on demand; only Python 3.11+ and make are needed.
#   make train ARGS="--optimizer lion --steps 500"

PYTHON ?= python3
ARGS ?=

VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

# The oldest and the newest Triton that the kernels are compiled with; the locked one is in $(VENV).
TRITON_VERSIONS := 3.6.0 3.9.0
TRITON_VENVS := $(TRITON_VERSIONS:%=.venv-triton-%)
TRITON_READY := $(TRITON_VENVS:%=%/.ready)
empty :=
space := $(empty) $(empty)
WITH_TRITONS := RLX_TRITON_PYTHONS="$(subst @,$(CURDIR),$(subst $(space),:,$(TRITON_VENVS:%=@/%/bin/python)))"

# The oldest torch that pip installs beside the oldest Triton.
OLDEST := torch==2.10.0 triton==$(firstword $(TRITON_VERSIONS))
WITH_OLDEST := RLX_OLDEST_PYTHON="$(CURDIR)/.venv-oldest/bin/python"

.PHONY: help train test test-long test-gpu check format bench bench-gpu parity compile-matrix doctor venv clean
.DEFAULT_GOAL := help

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-15s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

train: $(READY) ## train the example model (ARGS="--optimizer lion --steps 500")
	@$(BIN)/rlx-gpu train $(ARGS)

test: $(READY) ## the tests that take minutes in all; need no GPU (ARGS="-k lion")
	@$(BIN)/python -m pytest -m "not long" -n auto --dist loadgroup $(ARGS)

test-long: $(READY) $(TRITON_READY) .venv-oldest/.ready ## the tests that take longer: every Triton, the oldest torch
	@$(WITH_TRITONS) $(WITH_OLDEST) $(BIN)/python -m pytest -m long -n auto --dist loadgroup $(ARGS)

test-gpu: $(READY) ## the tests that need a CUDA device
	@RLX_GPU_LANE=1 $(BIN)/python -m pytest tests/gpu $(ARGS)

check: $(READY) ## lint, formatting and types
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

format: $(READY) ## fix what ruff can fix, and format
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

bench: $(READY) ## what a CPU can measure: host time, whole steps beside peers, what the kernels compile to
	@$(BIN)/rlx-gpu bench host $(ARGS)
	@$(BIN)/rlx-gpu bench cpu
	@$(BIN)/python -m rlx_gpu.bench.kernels
	@$(BIN)/rlx-gpu bench plot

bench-gpu: $(READY) ## steps, matrix routines and training on this machine's GPU, beside other packages
	@$(BIN)/rlx-gpu bench elementwise $(ARGS)
	@$(BIN)/rlx-gpu bench matrix
	@$(BIN)/rlx-gpu bench train
	@$(BIN)/rlx-gpu bench plot

parity: $(READY) ## every kernel on this machine against the float64 reference (ARGS="--optimizer muon")
	@$(BIN)/rlx-gpu parity $(ARGS)

compile-matrix: $(READY) $(TRITON_READY) ## compile every kernel with the oldest, the locked and the newest Triton
	@$(WITH_TRITONS) $(BIN)/python -m pytest tests/compile -q $(ARGS)

doctor: $(READY) ## versions, devices, and what is wrong if something is
	@$(BIN)/rlx-gpu doctor $(ARGS)

venv: $(READY) ## make the virtual environment and stop

$(READY): requirements-dev.lock pyproject.toml
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(v < (3, 11) and f"rlx-gpu needs Python 3.11 or newer; $(PYTHON) is {v[0]}.{v[1]}. Try: make PYTHON=python3.12")'
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "Installing the locked environment into $(VENV) (once; PyTorch is a large download) ..."
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements-dev.lock
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

# Triton and what `rlx-gpu kernels` needs, at the locked versions; no torch.
.venv-triton-%/.ready: requirements-dev.lock
	@echo "Installing Triton $* into $(@D) ..."
	@test -x $(@D)/bin/python || $(PYTHON) -m venv $(@D)
	@$(@D)/bin/python -m pip install --quiet --disable-pip-version-check triton==$* $$(grep -E '^(numpy|typer|rich)==' requirements-dev.lock)
	@touch $@

# With what stepping, training and their tests need, at the locked versions.
.venv-oldest/.ready: requirements-dev.lock
	@echo "Installing $(OLDEST) into $(@D) (once; with CUDA, it is a large download) ..."
	@test -x $(@D)/bin/python || $(PYTHON) -m venv $(@D)
	@$(@D)/bin/python -m pip install --quiet --disable-pip-version-check $(OLDEST) \
		$$(grep -E '^(numpy|numba|typer|rich|safetensors|matplotlib|pytest|hypothesis)==' requirements-dev.lock)
	@touch $@

clean: ## remove the environments, caches and build products
	rm -rf .venv .venv-triton-* .venv-oldest build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
