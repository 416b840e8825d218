# Two commands do everything on a fresh machine with Python 3.11 or newer:
#   make quickstart   install, train on the built-in stories, generate one
#   make test         install, run the tests
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: quickstart test test-avx2 test-lowest regression slow lint format clean

quickstart: $(VENV)/installed
	$(BIN)/python -m slm.cli fit --config configs/quickstart.yaml
	@echo; echo "To use the commands above, first: . $(BIN)/activate"

PYTEST := -m pytest -n auto --maxprocesses 4 --dist loadfile -m "not slow and not regression"

test: $(VENV)/installed
	$(BIN)/python -m slm.hardware
	$(BIN)/python $(PYTEST)

# Simulates a CPU without AVX-512 by limiting torch and oneDNN. Kernels that torch has compiled for
# this CPU cannot be reused, hence a separate cache.
test-avx2: $(VENV)/installed
	ATEN_CPU_CAPABILITY=avx2 ONEDNN_MAX_CPU_ISA=AVX2 \
		TORCHINDUCTOR_CACHE_DIR=$(CURDIR)/$(VENV)/inductor-avx2 $(MAKE) test

# Tests with the lowest versions that pyproject.toml allows, except torch and the linters.
test-lowest:
	$(PYTHON) -m venv $(VENV)-lowest
	grep -oE '"[A-Za-z0-9_-]+(\[[a-z,]+\])?>=[0-9.]+' pyproject.toml \
		| sed -E 's/"([A-Za-z0-9_-]+)(\[.*\])?>=/\1==/' \
		| grep -vE '^(torch|hatchling|ruff|mypy|types-.*)==' > $(VENV)-lowest/constraints.txt
	$(VENV)-lowest/bin/python -m pip install --quiet --editable '.[dev]' \
		--constraint $(VENV)-lowest/constraints.txt
	$(VENV)-lowest/bin/python -m slm.hardware
	$(VENV)-lowest/bin/python $(PYTEST)

regression: $(VENV)/installed
	$(BIN)/python -m pytest -m regression

slow: $(VENV)/installed
	$(BIN)/python -m pytest -m slow

lint: $(VENV)/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/installed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

$(VENV)/installed: pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	touch $@

clean:
	rm -rf $(VENV) $(VENV)-lowest .pytest_cache .mypy_cache .ruff_cache
