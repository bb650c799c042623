# Two commands do everything on a machine with Python 3.11+ and make: `make demo` and `make test`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: demo test verify lint ruff mypy pyright browser models docs fuzz audit bench-quick chaos clean

$(STAMP): pyproject.toml constraints-dev.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --upgrade "pip>=25.1"
	$(BIN)/pip install --disable-pip-version-check --progress-bar on -c constraints-dev.txt -e ".[all]" --group dev
	touch $(STAMP)

.typing: $(STAMP)
	mkdir -p .typing/sixfold
	for d in core plugins scaling; do ln -sfn ../../$$d .typing/sixfold/$$d; done

demo: $(STAMP)  ## install, pull the demo models, serve them on port 8000
	$(BIN)/sixfold pull examples/demo.yaml
	$(BIN)/sixfold serve examples/demo.yaml

lint: .typing
	$(MAKE) --no-print-directory -j2 ruff mypy pyright

ruff: .typing
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

mypy: .typing
	$(BIN)/mypy

pyright: .typing
	$(BIN)/pyright

browser:  ## Chromium for the tests of the playground, which skip without it; where apt-get may install it
	command -v chromium >/dev/null || sh tests/install_chromium.sh

models: $(STAMP)
	$(BIN)/sixfold pull examples/demo.yaml

# Folders of which two files may be tested at once: none looks at times of this machine, or at what another file leaves behind.
SIDE_BY_SIDE := $(addprefix tests/,core docs examples fuzz plugins scaling)

test: .typing  ## all tests that fit 40 minutes on two cores
	$(MAKE) --no-print-directory -j2 ruff mypy pyright browser models
	$(BIN)/python -m pytest -m "not slow and not gpu" --numprocesses 2 --dist loadfile $(SIDE_BY_SIDE)
	$(BIN)/python -m pytest -m "not slow and not gpu" $(SIDE_BY_SIDE:%=--ignore=%)

verify: $(STAMP) lint browser models  ## what people rely on in one table, then all tests; those of Ray, and of torchao, which prints much, too
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints-dev.txt --group fuzz
	$(BIN)/python bench/trust.py
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints-dev.txt torchao "ray[serve]" --group docs
	$(BIN)/python -m pytest -m "not gpu"

fuzz: $(STAMP)  ## six minutes of hostile bytes and requests; fails on a finding
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints-dev.txt --group fuzz
	$(BIN)/sixfold pull examples/demo.yaml
	$(BIN)/python -m tests.fuzz --minutes 6

audit:  ## asks PyPI's advisory database about every version that is tested; fails where it cannot be asked, too
	test -x .venv-audit/bin/pip-audit || ($(PYTHON) -m venv .venv-audit && .venv-audit/bin/pip install --quiet pip-audit)
	.venv-audit/bin/pip-audit --requirement constraints-dev.txt --no-deps --disable-pip --strict --progress-spinner off

docs: $(STAMP)  ## the documentation as a site, in site/, its reference pages made anew from the code
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints-dev.txt --group docs
	$(BIN)/python -m docs.generate
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

bench-quick: $(STAMP)
	$(BIN)/python bench/quick.py

chaos: $(STAMP)  ## loses a region of a real Ray cluster under load
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints-dev.txt "ray[serve]"
	$(BIN)/python bench/region_loss.py

clean:
	rm -rf $(VENV) .venv-audit .typing .pytest_cache .mypy_cache .ruff_cache build site *.egg-info
