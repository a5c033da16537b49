# Each target makes .venv and installs what it needs; a second call finds that done.
# DEMO_SECONDS=60 make demo   trains for a minute instead of the recipe's full budget.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

.PHONY: demo test test-all lint bench wheel-test clean

$(INSTALLED): setup.cfg pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[test]"
	touch $@

demo: $(INSTALLED)
	$(BIN)/siglip-ext-train emoji --output_dir demo-output $(if $(DEMO_SECONDS),--max_seconds $(DEMO_SECONDS))
	$(BIN)/python -I training/demo.py demo-output

test: $(INSTALLED)
	$(BIN)/pytest -n auto -m "not slow"

test-all: $(INSTALLED)
	$(BIN)/pytest -n auto

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

bench: $(INSTALLED)
	$(BIN)/python benchmarks/towers.py
	$(BIN)/python benchmarks/loss.py

# The wheel, installed in an environment of its own and used from another folder.
wheel-test: $(INSTALLED)
	$(BIN)/python tests/house/wheel.py

clean:
	rm -rf $(VENV) build dist demo-output *.egg-info .pytest_cache .ruff_cache .hypothesis
