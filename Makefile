# natengine: `make demo` shows it, `make test` tests it; both install what is missing first (Debian, root).

PYTHON ?= python3
VENV ?= .venv
PY := $(VENV)/bin/python

.PHONY: demo test setup build lint bench clean help

help:
	@echo "make demo    the gateway at work in a lab of network namespaces (root)"
	@echo "make test    all tests; those that need root and NFQUEUE are skipped without (ARGS='-k name')"
	@echo "make setup   install what is missing, and build into $(VENV)"
	@echo "make bench   benchmarks      make lint   ruff and mypy      make clean   remove what was built"

demo: setup
	@$(PY) netns-lab/lab demo

test: setup
	$(PY) -m pytest $(ARGS)

setup:
	@PYTHON=$(PYTHON) netns-lab/setup-host
	@$(MAKE) --no-print-directory $(VENV)/built

# everything that the compiled extension, or what pip installed, was made from
$(VENV)/built: pyproject.toml setup.py $(wildcard natengine/*.pyx natengine/*.pxd natengine/*/*.pyx)
	test -x $(PY) || $(PYTHON) -m venv $(VENV)
	$(PY) -m pip install --quiet --disable-pip-version-check --editable '.[test]'
	touch $@

lint: setup
	$(PY) -m pip install --quiet --disable-pip-version-check --editable '.[lint]'
	$(PY) -m ruff check .
	$(PY) -m mypy

bench: setup
	$(PY) -m pytest bench --benchmark-enable --benchmark-only $(ARGS)

clean:
	rm -rf $(VENV) build natengine.egg-info natengine/*.so natengine/*.c natengine/*/*.so natengine/*/*.c
