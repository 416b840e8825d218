# Two commands do everything on a fresh machine with Python 3.11 or newer:
#   make quickstart   install, train on the built-in stories, tell one
#   make test         install, run the tests
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: quickstart test regression slow lint format clean

quickstart: $(VENV)/installed
	$(BIN)/python -m slm.cli fit --config configs/quickstart.yaml
	@echo; echo "To use the commands above, first: . $(BIN)/activate"

test: $(VENV)/installed
	$(BIN)/python -m pytest -n auto --maxprocesses 4 --dist loadfile -m "not slow and not regression"

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
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache
