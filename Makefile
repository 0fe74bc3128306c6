# Two commands do everything on a fresh machine: `make demo` and `make test`. Each builds .venv by itself; so does `make docs`.

PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/pip --disable-pip-version-check -q
export PIP_CONSTRAINT := $(CURDIR)/constraints.txt

.PHONY: demo test lint docs clean

demo: .venv/.run
	$(BIN)/evomerge demo --out runs/demo

test: .venv/.dev
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 --dist loadgroup --no-loadscope-reorder

lint: .venv/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/hadolint Dockerfile
	$(BIN)/check-jsonschema --builtin-schema vendor.github-workflows .github/workflows/*.yml
	$(BIN)/check-jsonschema --builtin-schema vendor.citation-file-format CITATION.cff

docs: .venv/.docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

# torch first and pinned: a range would fetch gigabytes of CUDA that nothing here needs. The zoos' data packages go into a
# folder of their own: only their files are read, and what they require need not be there.
.venv/.run: pyproject.toml constraints.txt requirements-zoo.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(PIP) install torch==2.13.0
	$(PIP) install --no-deps --upgrade --target .venv/share/evomerge/packages -r requirements-zoo.txt
	$(PIP) install -e '.[zoo]'
	touch $@

# The peers that tests compare with pin old versions of what evomerge uses, so they are installed without what they require.
.venv/.dev: .venv/.run requirements-peers.txt
	$(PIP) install -e '.[dev]'
	$(PIP) install --no-deps -r requirements-peers.txt
	touch $@

.venv/.docs: .venv/.run
	$(PIP) install -e '.[docs]'
	touch $@

clean:
	rm -rf .venv build site *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
