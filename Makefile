# Every target brings its own environment in .venv. uv (from PyPI) fills it by hard links from its cache, so that
# the second checkout is a matter of seconds.
PYTHON ?= python3
BIN := .venv/bin
PACKAGES := pyproject.toml constraints.lock.txt

.PHONY: quickstart test test-all test-avx2 check lint docs clean

quickstart: .venv/core
	$(BIN)/segmv3 data mini-city data/mini-city
	$(BIN)/segmv3 train configs/quickstart.py --run runs/quickstart
	$(BIN)/segmv3 evaluate configs/quickstart.py --weights runs/quickstart/best.safetensors
	$(BIN)/segmv3 evaluate configs/quickstart.py --weights runs/quickstart/best.safetensors --multi-scale-flip
	$(BIN)/segmv3 predict data/mini-city/leftImg8bit/val --weights runs/quickstart/best.safetensors \
		--output runs/quickstart/overlays --overwrite
	@echo "Look at runs/quickstart/report.html and runs/quickstart/overlays"

test: .venv/dev
	$(BIN)/pytest -n 2 -m "not slow"

test-all: .venv/dev
	$(BIN)/pytest

# What depends on the processor, as on one without AVX-512 and VNNI: tools/test_avx2.sh says what that proves.
test-avx2: .venv/dev
	tools/test_avx2.sh

check: lint test

lint: .venv/dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# Strict: a dead link, a page without a place, or something that would be loaded from another host ends the build.
docs: .venv/dev
	$(BIN)/python tools/build_docs.py

.venv/bin/uv:
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet uv

# The marks say which set of packages .venv holds; constraints.lock.txt pins them with hashes.
.venv/core: .venv/bin/uv $(PACKAGES)
	$(BIN)/uv pip install --quiet --constraint constraints.lock.txt --editable '.[video]'
	@touch $@

.venv/dev: .venv/bin/uv $(PACKAGES)
	$(BIN)/uv pip install --quiet --constraint constraints.lock.txt --editable '.[dev]'
	@touch .venv/core $@

clean:
	rm -rf .venv build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis
