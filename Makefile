# Two commands on a fresh clone: `make demo` and `make test`. Both make .venv and install into it first.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
SOURCES := setup.py pyproject.toml $(wildcard kernels/*.pyx kernels/*.pxd kernels/*.pxi kernels/*.h)

.PHONY: demo test benchmark lint clean

demo: $(INSTALLED)
	$(BIN)/dd2424fast demo

test: $(INSTALLED)
	$(BIN)/python -m pytest

benchmark: $(INSTALLED)
	$(BIN)/python -m pytest --benchmark

lint: $(INSTALLED)
	$(BIN)/python -m pip install --quiet pre-commit
	$(BIN)/pre-commit run --all-files

$(INSTALLED): $(SOURCES)
	@echo "Installing into $(VENV): fetching packages, then compiling the kernels (once; some minutes)"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --upgrade pip
	@$(BIN)/python -m pip install --quiet --editable '.[test]'
	@touch $@

clean:
	rm -rf $(VENV) build *.egg-info kernels/*.so kernels/*.c kernels/_build.py
