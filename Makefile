# Each target makes .venv and installs what it needs; a second call finds that done.
# DEMO_SECONDS=60 make demo   trains for a minute instead of the recipe's full budget.
# FUZZ_SECONDS=3600 make fuzz  draws new examples for the property tests for an hour instead of ten minutes.

SHELL := /bin/bash
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
TPU_VENV := .venv-tpu
TPU_INSTALLED := $(TPU_VENV)/.installed
ROOMS := evaluation training conversion serving model_cards
space := $(subst ,, )

.PHONY: demo demo-siglip2 test test-long test-all fuzz test-tpu test-gpu lint format types bench wheel-test clean

$(INSTALLED): setup.cfg pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[test]"
	touch $@

demo: $(INSTALLED)
	rm -rf demo-output
	$(BIN)/siglip-ext-train emoji --output_dir demo-output $(if $(DEMO_SECONDS),--max_seconds $(DEMO_SECONDS))
	$(BIN)/python -I training/run/demo.py demo-output

# All of SigLIP 2's objectives on scenes of emoji, and a sheet of what came of them; at most eight minutes on two cores.
demo-siglip2: $(INSTALLED)
	rm -rf demo-siglip2-output
	$(BIN)/python -m modeling_siglip_ext.training.run.demo_siglip2 demo-siglip2-output \
		$(if $(DEMO_SECONDS),--seconds $(DEMO_SECONDS))

# The same on every run, the order of sets included. Free processes take tests from those with many left.
SAME := PYTHONHASHSEED=0
PYTEST := $(BIN)/pytest -n auto --dist worksteal

test: $(INSTALLED)
	$(SAME) $(PYTEST) -m "not long and not slow"

test-long: $(INSTALLED)
	$(SAME) $(PYTEST) -m "long and not slow"

test-all: $(INSTALLED)
	$(SAME) $(PYTEST)

# New examples on every run, the property tests sharing the time. A finding prints its smallest example: it becomes an
# @example beside the test when it is mended.
fuzz: $(INSTALLED)
	FUZZ_SECONDS=$(or $(FUZZ_SECONDS),600) $(PYTEST) -m hypothesis --hypothesis-profile fuzz

# torch_xla needs a torch of its own: 8 GB and a few minutes to install. No TPU needed: its CPU devices stand for it.
$(TPU_INSTALLED): setup.cfg pyproject.toml constraints-tpu.txt
	test -x $(TPU_VENV)/bin/python || $(PYTHON) -m venv $(TPU_VENV)
	$(TPU_VENV)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints-tpu.txt \
		-e ".[tpu,eval]" pytest hypothesis
	touch $@

# Warnings are no errors there: another torch has others than those listed in setup.cfg.
test-tpu: $(TPU_INSTALLED)
	PJRT_DEVICE=CPU $(SAME) $(TPU_VENV)/bin/pytest -W default tests/tpu
	USE_TORCH_XLA=0 $(SAME) $(TPU_VENV)/bin/pytest -W default tests/losses tests/modeling/test_parity.py -m "not slow"

# In the environment of PYTHON, which has a torch for its card.
test-gpu:
	TEST_DEVICE=cuda $(PYTHON) -m pytest tests/gpu

lint: $(INSTALLED) types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(INSTALLED)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# Over a copy laid out as it is installed, where imports from room to room resolve; messages name the files here.
types: $(INSTALLED)
	rm -rf build/types && mkdir -p build/types && cp -r modeling_siglip_ext siglip_ext_runtime build/types
	cp -r $(ROOMS) build/types/modeling_siglip_ext
	@set -o pipefail; $(BIN)/ty check --python $(VENV) --output-format concise build/types \
		| sed -E 's#build/types/(modeling_siglip_ext/($(subst $(space),|,$(ROOMS)))/)?#\2/#; s#^/##'

# Three hours on two cores, in minutes: export 45, towers 4, naflex 15, data 1, encoding 7, duplicates 3, conversion 2,
# loss 10, training 20, objectives 4, pipeline 20, serving 11, emoji 27 (six trainings, controls). benchmarks/peers.py
# (4) needs timm and open_clip in an environment of their own: PEER_PYTHON=OTHER/bin/python make bench.
# conversion_catalogue.py (hours) is started by hand, and so is naflex_emoji.py (50); WITH_RAY=1 where the extra ray is
# installed adds ray_workers.py (3).
bench: $(INSTALLED)
	$(BIN)/python benchmarks/towers.py
	$(BIN)/python benchmarks/naflex.py
	$(BIN)/python benchmarks/data.py
	$(BIN)/python benchmarks/encoding.py
	$(BIN)/python benchmarks/duplicates.py
	$(BIN)/python benchmarks/conversion.py
	$(BIN)/python benchmarks/export.py
	$(BIN)/python benchmarks/loss.py
	$(BIN)/python benchmarks/training.py
	$(BIN)/python benchmarks/objectives.py
	$(BIN)/python benchmarks/pipeline.py
	$(BIN)/python benchmarks/serving.py
	$(if $(WITH_RAY),$(BIN)/python benchmarks/ray_workers.py)
	$(BIN)/python benchmarks/emoji.py
	$(if $(PEER_PYTHON),$(BIN)/python benchmarks/peers.py --peer-python $(PEER_PYTHON))

# The wheel, installed in an environment of its own and used from another folder.
wheel-test: $(INSTALLED)
	$(BIN)/python tests/house/wheel.py

clean:
	rm -rf $(VENV) $(TPU_VENV) build dist demo-output demo-siglip2-output *.egg-info .pytest_cache .ruff_cache .hypothesis
