# Copyright 2026 The vgf-llm authors. Licensed under the Apache License, Version 2.0.
# `make demo` and `make test` need nothing but Python 3.11 to 3.13; both create .venv on the first call.
#   make demo ARGS="--seed 1"          more arguments for the main job
#   make test ARGS="-k simplex -x"     more arguments for pytest
#   make test PYTHON=python3.13 VENV=.venv313

PYTHON ?= python3
VENV ?= .venv
ARGS ?=
BIN := $(VENV)/bin
ENV_STAMP := $(VENV)/.installed-test
DEV_STAMP := $(VENV)/.installed-dev
DOCS_STAMP := $(VENV)/.installed-docs

.DEFAULT_GOAL := help
.PHONY: help env demo results test test-slow quality format docs clean

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /  \1\t/' | expand -t 16

env: $(ENV_STAMP)  ## create .venv and install the package with its test dependencies

demo: $(ENV_STAMP)  ## run the main job: learn a value on grade-school math and spend a step budget
	$(BIN)/vgf recipe gsm8k_vgf $(ARGS)

# Hours on two cores; every run is kept in outputs/, so that a second call goes on where the first one stopped.
results: $(ENV_STAMP)  ## print the embedded tables of docs/results.md again
	$(BIN)/accelerate launch recipes/gsm8k_vgf.py --skip_evaluation true $(ARGS)
	$(BIN)/python -m eval.run --model outputs/gsm8k_embedded --task embedded_math --cache_implementation static \
		--seeds 0 1 --output_dir outputs/results/embedded_math
	$(BIN)/python -m eval.compare --recipe embedded_math --seeds 0 1 2 --output_dir outputs/results/compare_math \
		--write_reference
	$(BIN)/python -m eval.compare --recipe embedded_preference --seeds 0 1 2 \
		--output_dir outputs/results/compare_preference
	$(BIN)/python -m benchmarks.training_seconds --recipe embedded_math --num_train 768 \
		--methods grpo rloo online_dpo dpo rft:2 rft:4 rft:8 --json outputs/results/seconds_math.json
	$(BIN)/python -m benchmarks.training_seconds --recipe embedded_preference \
		--json outputs/results/seconds_preference.json

test: $(ENV_STAMP)  ## run the tests, except those marked slow
	$(BIN)/python -m pytest -m "not slow" $(ARGS)

test-slow: $(ENV_STAMP)  ## run the tests marked slow
	$(BIN)/python -m pytest -m slow $(ARGS)

quality: $(DEV_STAMP)  ## ruff, mypy and the import contracts
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(DEV_STAMP)  ## let ruff fix and format the tree
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(DOCS_STAMP)  ## check the references of the documentation and build it as a site into site/
	$(BIN)/python scripts/check_docs.py
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet
	@echo "open site/index.html"

clean:  ## remove caches and builds, keep .venv
	rm -rf build dist site .pytest_cache .mypy_cache .ruff_cache .import_linter_cache
	find . -path ./.venv -prune -o -name __pycache__ -type d -exec rm -rf {} +

$(ENV_STAMP): pyproject.toml scripts/setup_env.sh
	PYTHON="$(PYTHON)" bash scripts/setup_env.sh "$(VENV)" test
	@touch $@

$(DEV_STAMP): $(ENV_STAMP)
	PYTHON="$(PYTHON)" bash scripts/setup_env.sh "$(VENV)" dev
	@touch $@

$(DOCS_STAMP): $(ENV_STAMP)
	PYTHON="$(PYTHON)" bash scripts/setup_env.sh "$(VENV)" docs
	@touch $@
