# Two commands matter: `make demo` (train and look at digits) and `make test` (everything that CI checks).
# PYTHON names the Python that makes the environment; without it, .ci/find-python takes any of 3.11 to 3.13.
PYTHON ?=
VENV := .venv
BIN := $(VENV)/bin
PY ?= $(BIN)/python
PLUGINS := $(sort $(wildcard plugins/*/pyproject.toml))
EDITABLE := $(foreach p,$(PLUGINS),-e $(dir $(p)))
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: demo test fast fast-tests setup lint types docs nightly faults bench gpu release clean

# Python compiles a module when it is first imported: to compile all 12,000 files of the packages takes 50 seconds.
$(VENV)/.installed: pyproject.toml constraints.txt $(PLUGINS)
	@test -x $(BIN)/python || { python=$$(.ci/find-python $(PYTHON)) && $$python -m venv $(VENV); }
	$(BIN)/pip install -q -c constraints.txt hatchling editables
	$(BIN)/pip install -q --no-compile -c constraints.txt --no-build-isolation -e ".[test,docs]" $(EDITABLE)
	touch $@

setup: $(VENV)/.installed

demo: setup
	$(BIN)/diffkit run digits
	@echo "report: $(CURDIR)/runs/digits/report.html"

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: setup
	$(BIN)/mypy

docs: setup
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict -q

# The tests of an `xdist_group` share a fixture that takes long, so they run in one process.
# Python 3.12 and later measure coverage at little cost; on 3.11 it takes a third longer, so only `make nightly` does.
COVERAGE = $$($(BIN)/python -c 'import sys; print("--cov" if sys.version_info >= (3, 12) else "")')
test: setup
	@$(MAKE) --no-print-directory -j 2 --output-sync=target lint types docs
	COVERAGE_CORE=sysmon OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 --dist loadgroup $(COVERAGE)

# Under a minute: lint, types, and the tests of what changed against main, as far as the time allows.
fast: setup
	@$(MAKE) --no-print-directory -j 3 lint types fast-tests

fast-tests: setup
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 --dist loadgroup --seconds 25 $$($(BIN)/python .ci/fast_tests.py)

# The deep form of the fault tests: every crash point, kill, signal and flipped bit.
faults: setup
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 --dist loadgroup tests/faults --slow

nightly: setup
	HYPOTHESIS_PROFILE=nightly OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 --dist loadgroup --slow --cov --cov-fail-under=85

bench: setup
	$(BIN)/python benchmarks/sampler_overhead.py
	$(BIN)/python benchmarks/sampler_error.py
	$(BIN)/python benchmarks/train_step.py
	$(BIN)/python benchmarks/digits_quality.py
	$(BIN)/python benchmarks/variants.py

# Every test and benchmark that needs a GPU, under 9 minutes. PY names the Python of a machine that has CUDA.
gpu:
	$(PY) -m pytest -q -m gpu tests/gpu
	$(PY) benchmarks/sampler_overhead.py --device cuda --rounds 5
	$(PY) benchmarks/gpu.py

# One version for all packages, built into dist/ and checked: make release VERSION=0.2.0. Nothing is uploaded.
release: setup
	$(BIN)/python .ci/release.py $(VERSION)

clean:
	rm -rf $(VENV) site dist .mypy_cache .pytest_cache .ruff_cache
