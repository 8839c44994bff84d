# Azekura: `make run` and `make test` need a Debian 12 or 13 and nothing else; `make help` lists all.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

BIN := .venv/bin
# More words for the command that a target runs: make run ARGS="--data /srv/demo"
ARGS ?=

.PHONY: help setup run test check bench soak seeded lock docs clean

help: ## list the targets
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## /\1\t/' | expand -t 10

setup: ## install what running, testing and developing need
	@tools/setup test

run: ## start the demo: an archive, an object store and sample studies, all on this machine
	@tools/setup demo
	@exec $(BIN)/azekura demo $(ARGS)

test: check ## run every check and test but the long ones, and print coverage
	@$(BIN)/coverage erase
	@$(BIN)/coverage run -m pytest -m "not soak" $(ARGS)
	@tools/coverage index packs seal archive

check: ## lint, format, types, layers, house rules
	@tools/setup test
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m pytest -q tests/unit/test_repository.py

bench: ## measure against DCMTK and Orthanc on this machine
	@tools/setup test
	@$(BIN)/python -m tests.bench $(ARGS)

soak: ## run the tests that take longer than a minute
	@tools/setup test
	@$(BIN)/python -m pytest -m soak $(ARGS)

seeded: ## put known bugs into a copy, one by one, and see that the tests notice each
	@tools/setup test
	@$(BIN)/python -m tests.seeded $(ARGS)

lock: ## write requirements/*.txt anew; needs uv
	@tools/lock $(ARGS)

docs: ## write the generated pages anew
	@tools/setup test
	@$(BIN)/python -m appliance.config.describe > docs/configuration.md

clean: ## remove the virtual environment and every cache; data stays
	rm -rf .venv build *.egg-info .coverage .coverage.* .hypothesis .import_linter_cache
	rm -rf .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
