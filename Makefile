# Everything lives in .venv of this clone. PIP_ARGS goes to pip, e.g.
#   make test PIP_ARGS="--extra-index-url https://download.pytorch.org/whl/cpu"     (no CUDA packages)
PYTHON ?= $(firstword $(shell command -v python3.11) $(shell command -v python3))
VENV := .venv
READY := $(VENV)/.ready
PROMPT ?= a red cat wearing a top hat is waving
OUT ?= runs/demo

.PHONY: demo test check clean

demo: $(READY)  ## from a clean clone to a video
	$(VENV)/bin/dream4d generate "$(PROMPT)" --out "$(OUT)"

test: $(READY)  ## all tests that need no GPU
	$(VENV)/bin/python -m pytest

check: $(READY)  ## linter and tests
	$(VENV)/bin/ruff check .
	$(VENV)/bin/python -m pytest

$(READY): pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "error: python 3.11 or newer is needed; set PYTHON=/path/to/python" >&2; exit 2; }
	@test -x $(VENV)/bin/python || "$(PYTHON)" -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet --constraint constraints.txt $(PIP_ARGS) --editable ".[dev]"
	@touch $@

clean:  ## the environment and caches; runs/ stays
	rm -rf $(VENV) build dist .pytest_cache .ruff_cache .mypy_cache .hypothesis
	find src tests -name __pycache__ -type d -prune -exec rm -rf {} +
