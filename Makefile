# Two commands do everything on a fresh machine: `make demo` and `make test`. Each builds .venv by itself.

PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/pip --disable-pip-version-check -q
export PIP_CONSTRAINT := $(CURDIR)/constraints.txt

.PHONY: demo test lint clean

demo: .venv/.run
	$(BIN)/evomerge demo --out runs/demo

test: .venv/.dev
	$(BIN)/pytest -n 2 --dist loadgroup

lint: .venv/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# torch first and pinned: a range would fetch gigabytes of CUDA that nothing here needs.
.venv/.run: pyproject.toml constraints.txt requirements-zoo.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(PIP) install torch==2.13.0
	$(PIP) install --no-deps -r requirements-zoo.txt
	$(PIP) install -e '.[zoo]'
	touch $@

.venv/.dev: .venv/.run
	$(PIP) install -e '.[dev]'
	touch $@

clean:
	rm -rf .venv build runs *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
