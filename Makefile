# What a newcomer types. The first target that needs it sets up .venv; nothing here leaves the git tree dirty.
PYTHON ?= python3
BIN := .venv/bin
UV := $(BIN)/uv pip install --quiet --python $(BIN)/python
.DEFAULT_GOAL := help
.PHONY: help setup evaluate test check format bench leaderboards lock clean

help:  ## this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "make %-13s %s\n", $$1, $$2}' Makefile

setup: .venv/installed  ## everything installed into .venv, once

# Hashes name the exact files, all from one index: a CPU build of torch never meets a CUDA build of torchvision.
.venv/installed: requirements.txt pyproject.toml
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(0 if v >= (3, 11) else f"Python 3.11 or newer is needed, $(PYTHON) is {v[0]}.{v[1]}: make PYTHON=python3.12")'
	@echo "setting up .venv (once, some gigabytes)"
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	@$(UV) --require-hashes -r requirements.txt
	@$(UV) --no-deps --no-build-isolation --editable .
	@touch $@

.venv/installed-bench: requirements-bench.txt .venv/installed
	@$(UV) --require-hashes -r requirements-bench.txt
	@touch $@

evaluate: .venv/installed  ## robust accuracy of a ResNet-18 on real digits under PGD
	@$(BIN)/rbl evaluate --model resnet18 --attack pgd

test: .venv/installed  ## the tests, in a few minutes
	@$(BIN)/python -m pytest --numprocesses auto --dist worksteal

check: .venv/installed  ## style and types
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

format: .venv/installed  ## put the code into the house's style, and fill the README's tables
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .
	@$(BIN)/python scripts/leaderboards.py --tables

bench: .venv/installed-bench  ## speed against torchattacks, foolbox and ART, as ratios
	@$(BIN)/python -m benchmarks

leaderboards: .venv/installed  ## make the committed leaderboards and the README's tables anew
	@$(BIN)/python scripts/leaderboards.py

lock: .venv/installed  ## resolve the dependencies anew
	@scripts/lock

clean:  ## remove .venv and caches
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .hypothesis build dist
