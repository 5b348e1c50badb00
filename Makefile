# Every target makes the environment it needs, once. Only python3 (3.11 or newer) with venv, and make, must be there.
#
# VENV=DIR      use another environment than .venv
# PYTHON=NAME   make it with another Python
# ARGS='...'    options for pytest (make test), for whence attribute (make demo) or for the benchmarks (make bench)

PYTHON ?= python3
VENV ?= .venv
SITE ?= site
JOBS ?= 2
NDIF ?= $(VENV)/ndif
PETALS ?= $(VENV)/petals
BENCH ?= $(VENV)/bench
STORIES := src/whence/models/bundled/checkpoints/stories
ARGS ?=

BIN := $(VENV)/bin
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints/dev.txt
PINS := pyproject.toml constraints/dev.txt

.DEFAULT_GOAL := help
.PHONY: help demo test test-ndif test-petals lint format types docs tutorials evidence parity test-bench bench-env bench wheel-test clean

help: ## list what can be made
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

demo: $(VENV)/.installed ## attribute a story that the bundled model writes
	$(BIN)/whence attribute "Once upon a time" --method integrated_gradients:n_steps=100 --step-score probability $(ARGS)

test: $(VENV)/.dev ## run the test suite
	$(BIN)/python -m pytest -n $(JOBS) $(ARGS)

test-ndif: $(VENV)/.dev ## run the tests of a real NDIF server; installing it takes minutes the first time
	PYTHON=$(BIN)/python scripts/ndif_stack.sh install "$(NDIF)"
	$(BIN)/python -m benchmarks.parity --make-models "$(NDIF)/models"
	scripts/ndif_stack.sh run "$(NDIF)" "$(NDIF)/models/gpt2" "$(NDIF)/models/llama" $(STORIES) -- sh -e -c '\
		$(BIN)/python -m pytest tests/places/test_ndif_stack.py $(ARGS); \
		$(BIN)/python tutorials/04_places.py >/dev/null; \
		$(BIN)/python -m benchmarks.parity --models "$(NDIF)/models" --places ndif'

test-petals: $(VENV)/.dev ## run the tests of a real Petals swarm; installing it takes minutes the first time
	PYTHON=$(BIN)/python scripts/petals_swarm.sh install "$(PETALS)"
	$(BIN)/python -m benchmarks.parity --make-models "$(PETALS)/models"
	scripts/petals_swarm.sh run "$(PETALS)" "$(PETALS)/models/llama" -- sh -e -c '\
		$(BIN)/python -m benchmarks.parity --models "$(PETALS)/models" --places petals; \
		$(BIN)/python tutorials/04_places.py >/dev/null; \
		$(BIN)/python -m pytest -p no:randomly tests/places/petals/test_real_swarm.py $(ARGS)'

lint: $(VENV)/.dev ## check style, spelling and the project file
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/codespell
	$(BIN)/validate-pyproject pyproject.toml

format: $(VENV)/.dev ## put the code into its style
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

types: $(VENV)/.dev ## check types
	$(BIN)/pyright --pythonpath $(BIN)/python

docs: $(VENV)/.docs ## build the documentation into site/
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --site-dir "$(abspath $(SITE))"

tutorials: $(VENV)/.docs ## run the tutorials, as scripts and as notebooks
	$(BIN)/python scripts/run_tutorials.py

evidence: $(VENV)/.installed ## measure all methods on texts with known evidence, and write the table in README.md
	$(BIN)/python -m benchmarks.evidence --write README.md $(ARGS)

parity: $(VENV)/.dev ## compare all methods on all places that run here, and keep the table of the documentation
	$(BIN)/python -m benchmarks.parity --write docs/parity.json $(ARGS)

test-bench: $(BENCH)/.peers ## compare the scores of Inseq and Captum with whence's on very small models
	$(BENCH)/bin/python -m benchmarks.peers --quick --repeats 1 --no-memory --model gpt2 llama t5 $(ARGS)

bench-env: $(BENCH)/.peers ## make an environment of its own with whence, Inseq and Captum

bench: $(BENCH)/.peers ## measure speed and memory, and write the tables in docs/performance.md; takes hours
	$(BENCH)/bin/python -m benchmarks.startup --write docs/performance.md
	$(BENCH)/bin/python -m benchmarks.limit --write docs/performance.md $(ARGS)
	$(BENCH)/bin/python -m benchmarks.profile --write docs/performance.md $(ARGS)
	$(BENCH)/bin/python -m benchmarks.scaling --write docs/performance.md --plot docs/scaling.svg $(ARGS)
	$(BENCH)/bin/python -m benchmarks.memory --write docs/performance.md $(ARGS)
	$(BENCH)/bin/python -m benchmarks.peers --write docs/performance.md $(ARGS)

wheel-test: $(VENV)/.dev ## build the wheel and use it in an environment of its own
	scripts/check_wheel.sh $(BIN)/python

clean: ## remove the environment, builds and caches
	rm -rf .venv site dist build .pytest_cache .ruff_cache .hypothesis
	find src tests docs tutorials benchmarks scripts -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV)/.made:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "whence needs Python 3.11 or newer; $(PYTHON) is $$($(PYTHON) --version). Try: make PYTHON=python3.12"; exit 1; }
	@echo "Making the environment $(VENV); PyTorch is large, so this takes a few minutes."
	$(PYTHON) -m venv "$(VENV)"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --upgrade pip
	@touch $@

$(VENV)/.installed: $(VENV)/.made $(PINS)
	$(INSTALL) --editable .
	@touch $@

$(VENV)/.dev: $(VENV)/.made $(PINS)
	$(INSTALL) --editable '.[align,dev,petals,quantized,server]'
	@touch $@

$(BENCH)/.peers: $(VENV)/.made $(PINS)
	$(PYTHON) -m venv "$(BENCH)"
	$(BENCH)/bin/python -m pip install --quiet --disable-pip-version-check --constraint constraints/dev.txt \
		--editable . 'inseq[sklearn]==0.7.1' 'captum==0.9.0' 'nltk>=3.9'
	@touch $@

$(VENV)/.docs: $(VENV)/.made $(PINS)
	$(INSTALL) --editable '.[docs,petals,quantized,server]'
	@touch $@
